"""Measure models on sources that they were not trained on.

Training recipes are chosen by this measure.

Usage:
    python benchmarks/unseen.py DATA --name NAME [--fold a ...] [--curve] [-- OPTIONS OF ffd-train]
    python benchmarks/unseen.py DATA --run runs/RUN
    python benchmarks/unseen.py DATA --embedded SOURCE [--embedded SOURCE ...]

The first form trains a network for each fold of unseen.toml without the fold's sources, and
resumes a training that was interrupted. `--curve` trains with more and more generated sources
instead, and measures the same sources each time. The second form measures a run that exists. The
third form measures the embedded model, whose training sources are named. All forms measure each
source without images in the training split of the model, and print a CSV table.

Columns: `auc` is the ROC-AUC of a generated source against all photographs of the validation split
and of unseen sources. `called_generated`, `unsure` and `called_photograph` are shares of the
source's images: the first at the threshold of the model card, the other two by its unsure band.
`found_at_2` is the share of a generated source found at the threshold that calls at most 2 % of
any unseen source's photographs generated.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from machine import describe
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from ffd_runtime import Classifier
from ffd_runtime.model.card import ModelCard
from ffd_train.calibrate import fit_threshold
from ffd_train.checkpoint import load_checkpoint
from ffd_train.face_data import FaceData, Sample
from ffd_train.predict import predict_logits
from ffd_train.scanning import scan
from ffd_train.settings import Settings

FOLDS = Path(__file__).with_name("unseen.toml")
# Pictures of one source that are measured; the first by sha256, which is a random order.
MAX_IMAGES = 400
FALSE_ALARMS = 0.02
COLUMNS = (
    "experiment",
    "source",
    "class",
    "images",
    "auc",
    "found_at_2",
    "called_generated",
    "unsure",
    "called_photograph",
)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """P(generated) of a source's images, float64 [N]."""

    source: str
    generated: bool
    scores: Floats


def train_fold(data: Path, run: Path, sources: Iterable[str], options: list[str]) -> None:
    """Train without some sources, or resume; do nothing where the run is complete."""
    if (run / "card.json").is_file():
        return
    ffd_train = [sys.executable, "-m", "ffd_train.cli.train", str(data)]
    if (run / "settings.json").is_file():
        command = [*ffd_train, "--resume", str(run)]
    else:
        left_out = [word for source in sources for word in ("--leave-out", source)]
        command = [*ffd_train, "--runs", str(run.parent), "--name", run.name, *left_out, *options]
    subprocess.run(command, check=True, stdout=sys.stderr)


def score_run(
    data: FaceData, run: Path, skipped: Collection[str] = ()
) -> tuple[list[Scored], Floats, ModelCard]:
    """Scores of the sources that a run did not train on and that are not skipped."""
    net, card = load_checkpoint(run / "best.safetensors")
    settings = Settings.from_json((run / "settings.json").read_text())
    seen = {s.source for s in data.split("train")} - set(settings.leave_out)

    def score(samples: list[Sample]) -> Floats:
        logits = predict_logits(net, data, samples, card.preprocess)
        scores: Floats = expit((logits[:, 0] - logits[:, 1]) / card.temperature)
        return scores

    return *score_unseen(data, seen, score, skipped), card


def score_embedded(data: FaceData, seen: set[str | None]) -> tuple[list[Scored], Floats, ModelCard]:
    """Scores by the embedded model, which was trained on the sources `seen`; see `score_unseen`."""
    with Classifier.open(device="cpu") as classifier:

        def score(samples: list[Sample]) -> Floats:
            rows = classifier.classify_items(data.item(sample) for sample in samples)
            return np.array([row.score for row in rows], np.float64)

        return *score_unseen(data, seen, score), classifier.card


def score_unseen(
    data: FaceData,
    seen: set[str | None],
    score: Callable[[list[Sample]], Floats],
    skipped: Collection[str] = (),
) -> tuple[list[Scored], Floats]:
    """Score every source that a model did not train on.

    Returns:
        The scores by source; those of the seen photographs in the validation split.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in data.samples:
        if sample.source and sample.source not in seen and sample.source not in skipped:
            groups.setdefault(sample.source, []).append(sample)
    for source, samples in groups.items():
        groups[source] = sorted(samples, key=lambda sample: sample.sha256)[:MAX_IMAGES]
    photographs = [s for s in data.split("val") if s.label == 1 and s.source in seen]
    by_source = [Scored(n, s[0].label == 0, score(s)) for n, s in sorted(groups.items())]
    return by_source, score(photographs)


def tabulate(
    experiment: str, by_source: list[Scored], seen: Floats, card: ModelCard
) -> list[dict[str, object]]:
    """Rows of the table: generated sources, photographs, and the mean of the generated ones."""
    unseen = [scored for scored in by_source if not scored.generated]
    photographs = np.concatenate([seen, *(scored.scores for scored in unseen)])
    names = [scored.source for scored in unseen for _ in scored.scores]
    pooled = np.concatenate([scored.scores for scored in unseen]) if unseen else seen
    strict = fit_threshold(pooled, np.zeros(len(pooled), bool), names or None, FALSE_ALARMS)
    rows = []
    for scored in sorted(by_source, key=lambda scored: not scored.generated):
        low, high = card.unsure
        row: dict[str, object] = {
            "experiment": experiment,
            "source": scored.source,
            "class": "generated" if scored.generated else "photograph",
            "images": len(scored.scores),
            "called_generated": np.mean(scored.scores >= card.threshold),
            "unsure": np.mean((scored.scores >= low) & (scored.scores < high)),
            "called_photograph": np.mean(scored.scores < low),
        }
        if scored.generated:
            both = np.concatenate([scored.scores, photographs])
            truth = np.arange(len(both)) < len(scored.scores)
            row["auc"] = roc_auc_score(truth, both)
            row["found_at_2"] = np.mean(scored.scores >= strict)
        rows.append(row)
    return rows


def average(rows: list[dict[str, object]], diffusion: Collection[str]) -> list[dict[str, object]]:
    """Rows of means over the generated sources of an experiment: all, by GANs, by diffusion."""
    generated = [row for row in rows if row["class"] == "generated"]
    families = {
        "mean of generated": generated,
        "mean of GANs": [row for row in generated if row["source"] not in diffusion],
        "mean of diffusion": [row for row in generated if row["source"] in diffusion],
    }
    return [
        {
            "experiment": chosen[0]["experiment"],
            "source": name,
            "class": "generated",
            "images": sum(int(str(row["images"])) for row in chosen),
            **{column: np.mean([row[column] for row in chosen]) for column in COLUMNS[4:]},
        }
        for name, chosen in families.items()
        if chosen
    ]


def write(rows: list[dict[str, object]]) -> None:
    """Print the table."""
    print(f"# {describe()}")
    table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()})


def main() -> None:
    """Train what is missing, measure, print."""
    own, options = sys.argv[1:], []
    if "--" in own:
        cut = own.index("--")
        own, options = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path, action="append", default=[])
    parser.add_argument("--embedded", metavar="SOURCE", action="append", default=[])
    parser.add_argument("--name", help="of the experiment; its runs are runs/NAME-FOLD")
    parser.add_argument("--fold", action="append", help="of unseen.toml; all, if not given")
    parser.add_argument("--curve", action="store_true", help="train the curve of unseen.toml")
    arguments = parser.parse_args(own)
    tables = tomllib.loads(FOLDS.read_text())
    folds = tables["curve" if arguments.curve else "folds"]
    diffusion = tables["families"]["diffusion"]
    runs = list(arguments.run)
    if arguments.name:
        for fold in arguments.fold or folds:
            run = Path("runs", f"{arguments.name}-{fold}")
            train_fold(arguments.data, run, folds[fold]["sources"], options)
            runs.append(run)
    if not runs and not arguments.embedded:
        parser.error("give --name to train the folds, --run to measure a run, or --embedded")
    data = scan(arguments.data, ("train", "val"))
    rows = []
    # Runs of a curve are measured on the same sources: those that none of them trained on.
    left_out = [set(fold["sources"]) for fold in folds.values()] if arguments.curve else [set()]
    skipped = set.union(*left_out) - set.intersection(*left_out)
    for run in runs:
        measured = tabulate(run.name, *score_run(data, run, skipped))
        rows += measured + average(measured, diffusion)
    if arguments.embedded:
        scored = score_embedded(data, set(arguments.embedded))
        measured = tabulate(scored[-1].name, *scored)
        rows += measured + average(measured, diffusion)
    write(rows)


if __name__ == "__main__":
    main()

"""Measure the mean logits of several networks, and of each image and its mirror image.

Usage: python benchmarks/views.py BOTH FACES MEAN [MEAN ...] > benchmarks/views.csv

MEAN is `RUN:WEIGHT[,RUN:WEIGHT ...]`, with folders of `ffd-train`. The first run states which
sources were left out of training. BOTH has all sources, FACES has a test split. The threshold of
each mean is fitted as by `tools.calibrate_unseen`: on the validation images of trained sources, and
on all images of those that were left out. Sources without training images are only measured.

Columns: `forward_passes` for each image. `test_` columns are for the test split of FACES.
`trained_` columns are for the validation images of trained sources: ROC-AUC, and the share found of
the generated source that is found least. `unknown_` columns are for the sources without training
images: ROC-AUC of the generated ones against all photographs, share found, and share of the
photographs that are called generated.
"""

from __future__ import annotations

import csv
import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from machine import describe
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from ffd_train.calibrate import fit_threshold
from ffd_train.checkpoint import load_checkpoint
from ffd_train.face_data import FaceData, Sample
from ffd_train.predict import predict_logits
from ffd_train.scanning import scan
from ffd_train.settings import Settings

MAX_FPR = 0.02
MEANS = {"image": (False,), "image and mirror image": (False, True)}

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@cache
def infer(run: Path, data: FaceData, samples: tuple[Sample, ...], mirrored: bool) -> Floats:
    """Return the difference of both logits of each image, float64 [N]."""
    net, card = load_checkpoint(run / "best.safetensors")
    if mirrored:
        # Images are [N, height, width, 3].
        net.register_forward_pre_hook(lambda _, images: images[0].flip(2))
    logits = predict_logits(net, data, samples, card.preprocess)
    return np.asarray(logits[:, 0] - logits[:, 1], np.float64)


def measure(
    both: tuple[Floats, tuple[Sample, ...]],
    test: tuple[Floats, tuple[Sample, ...]],
    trained: list[str],
    unknown: list[str],
) -> dict[str, float]:
    """Return the columns of a mean, from its logits and the samples of both data sets."""
    logits, samples = both
    scores, test_scores = expit(logits), expit(test[0])
    generated = np.array([sample.label == 0 for sample in samples])
    sources = np.array([sample.source for sample in samples])
    is_unknown, is_trained = np.isin(sources, unknown), np.isin(sources, trained)
    fitted = ~is_unknown
    threshold = fit_threshold(scores[fitted], generated[fitted], list(sources[fitted]), MAX_FPR)
    called = scores >= threshold
    truth = np.array([sample.label == 0 for sample in test[1]])
    against = ~generated | is_unknown
    return {
        "test_auc": roc_auc_score(truth, test[0]),
        "test_accuracy": np.mean((test_scores >= threshold) == truth),
        "trained_auc": roc_auc_score(generated[is_trained], logits[is_trained]),
        "trained_least_found": min(
            np.mean(called[sources == name]) for name in set(sources[generated & is_trained])
        ),
        "unknown_auc": roc_auc_score(generated[against], logits[against]),
        "unknown_found": np.mean(called[is_unknown & generated]),
        "unknown_false_alarms": np.mean(called[is_unknown & ~generated]),
    }


def main() -> None:
    """Print a CSV."""
    both, faces = scan(Path(sys.argv[1]), ("train", "val")), scan(Path(sys.argv[2]), ("test",))
    means = [[part.rsplit(":", 1) for part in mean.split(",")] for mean in sys.argv[3:]]
    settings = Settings.from_json((Path(means[0][0][0]) / "settings.json").read_text())
    left_out = set(settings.leave_out)
    trained = {str(sample.source) for sample in both.split("train")} - left_out
    unknown = {str(sample.source) for sample in both.samples} - trained - left_out
    samples = tuple(s for s in both.samples if s.source in left_out or s.split == "val")
    test = tuple(faces.split("test"))
    table = None
    for mean in means:
        for views, mirrors in MEANS.items():
            row: dict[str, object] = {
                "networks": " + ".join(f"{weight} {Path(run).name}" for run, weight in mean),
                "views": views,
                "forward_passes": len(mean) * len(mirrors),
            }
            sums = [
                np.sum(
                    [
                        float(weight) * infer(Path(run), data, images, mirrored) / len(mirrors)
                        for run, weight in mean
                        for mirrored in mirrors
                    ],
                    axis=0,
                )
                for data, images in ((both, samples), (faces, test))
            ]
            measured = measure((sums[0], samples), (sums[1], test), list(trained), list(unknown))
            row |= {column: f"{value:.4f}" for column, value in measured.items()}
            if table is None:
                print(f"# {describe()}")
                table = csv.DictWriter(sys.stdout, row, lineterminator="\n")
                table.writeheader()
            table.writerow(row)
            sys.stdout.flush()


if __name__ == "__main__":
    main()

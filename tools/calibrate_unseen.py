"""Calibrate a run for unseen sources: temperature, threshold and unsure band of its model card.

Usage: python -m tools.calibrate_unseen RUN DATA [--int8 FILE]

RUN is a folder of `ffd-train` with `--leave-out SOURCE`. The values are fitted on the validation
split of the sources that it was trained on, and on all images of those that it left out. A source
of DATA without images in its training split takes no part: it stays unseen, for measurements.

Both files of `tools.embed` contain the same card, but their scores differ a little. To fit the
values on the scores of both: calibrate, embed, calibrate again with the INT8 file, embed again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import cv2
import numpy as np
from scipy.special import expit, logit

from ffd_runtime.cli.command import Command, say
from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import DataError
from ffd_train.calibrate import Floats
from ffd_train.checkpoint import load_checkpoint, save_checkpoint
from ffd_train.classification_metrics import measure_scores
from ffd_train.evaluation import evaluate, open_model
from ffd_train.face_data import FaceData, Sample
from ffd_train.predict import predict_logits
from ffd_train.scanning import scan
from ffd_train.settings import Settings

from .unseen_calibration import calibrate_unseen

MAX_FPR = 0.02
# Share of correct verdicts outside the band. With 0.99, most images of unknown sources would be
# unsure.
CONFIDENCE = 0.95


@click.command(cls=Command)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--max-fpr",
    type=click.FloatRange(0, 0.5),
    default=MAX_FPR,
    show_default=True,
    help="Largest share of a source's photographs that are called generated.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0.5, 1),
    default=CONFIDENCE,
    show_default=True,
    help="Share of correct verdicts outside the unsure band.",
)
@click.option(
    "--int8",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="INT8 file of this run: fit threshold and band on its scores too.",
)
def main(run: Path, data: Path, max_fpr: float, confidence: float, int8: Path | None) -> None:
    """Calibrate RUN on DATA for unseen sources, and write its model card anew."""
    settings = Settings.from_json((run / "settings.json").read_text())
    if not settings.leave_out:
        raise DataError(f"{run} left no source out of training: nothing unseen to calibrate on")
    face_data = scan(data, ("train", "val"))
    samples = choose_samples(face_data, settings.leave_out)
    checkpoint = run / "best.safetensors"
    net, card = load_checkpoint(checkpoint)
    logits = predict_logits(net, face_data, samples, card.preprocess, workers=0)
    generated = np.array([sample.label == 0 for sample in samples])
    sources = [sample.source or "" for sample in samples]
    left_out = list(settings.leave_out)
    fitted_on = logits
    if int8:
        # The same images again, as sources of their own: every limit holds for both files.
        fitted_on = np.concatenate([logits, predict_int8(int8, face_data, samples)])
        generated = np.tile(generated, 2)
        sources += [f"{source}, INT8" for source in sources]
        left_out += [f"{source}, INT8" for source in left_out]
    fitted = calibrate_unseen(
        fitted_on, generated, sources, left_out, max_fpr, confidence=confidence
    )
    card = card.replace(
        temperature=fitted.temperature, threshold=fitted.threshold, unsure=fitted.unsure
    )
    trained = [i for i, one in enumerate(samples) if one.source not in settings.leave_out]
    scores = expit((logits[trained, 0] - logits[trained, 1]) / card.temperature)
    report = measure_scores(scores, [samples[i].label for i in trained], card)
    card = card.replace(metrics={"val": report.summary()})
    save_checkpoint(checkpoint, net, card)
    write_output(run / "card.json", (card.to_json(indent=2) + "\n").encode())
    say(
        f"{len(samples)} images: temperature {fitted.temperature:.3f}, threshold "
        f"{fitted.threshold:.3f}, unsure from {fitted.unsure[0]:.3f} to {fitted.unsure[1]:.3f}"
    )


def predict_int8(path: Path, data: FaceData, samples: list[Sample]) -> Floats:
    """Return the logits of an exported model, not divided by its temperature: [N, 2].

    The second logit is 0, because a score determines only their difference.

    Raises:
        DataError: an image cannot be read.
    """
    cv2.setNumThreads(1)
    with Classifier(open_model(path, "cpu")) as classifier:
        evaluation = evaluate(classifier, replace(data, samples=tuple(samples)))
    for row in evaluation.unreadable:
        assert row.error is not None
        raise DataError(f"{row.source}: {row.error.message}")
    # Clipped, because a score of exactly 0 or 1 has no finite logit.
    margin = evaluation.card.temperature * logit(evaluation.scores.clip(1e-7, 1 - 1e-7))
    return np.stack([margin, np.zeros_like(margin)], 1)


def choose_samples(data: FaceData, left_out: tuple[str, ...]) -> list[Sample]:
    """Return the validation images of trained sources, and all images of those left out."""
    trained = {s.source for s in data.samples if s.split == "train"} - set(left_out)
    return [
        sample
        for sample in data.samples
        if sample.source in left_out or (sample.split == "val" and sample.source in trained)
    ]


if __name__ == "__main__":
    main()

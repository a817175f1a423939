"""Calibrate a run for unseen sources: temperature, threshold and unsure band of its model card.

Usage: python -m tools.calibrate_unseen RUN DATA

RUN is a folder of `ffd-train` with `--leave-out SOURCE`. The values are fitted on the validation
split of the sources that it was trained on, and on all images of those that it left out. A source
of DATA without images in its training split takes no part: it stays unseen, for measurements.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from scipy.special import expit

from ffd_runtime.cli.command import Command, say
from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.core.errors import DataError
from ffd_train.checkpoint import load_checkpoint, save_checkpoint
from ffd_train.classification_metrics import measure_scores
from ffd_train.face_data import FaceData, Sample
from ffd_train.predict import predict_logits
from ffd_train.scanning import scan
from ffd_train.settings import Settings
from ffd_train.unseen_calibration import calibrate_unseen

MAX_FPR = 0.02
# Sources that a network does not know are judged too. A share of 0.99 would leave most of their
# images unsure.
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
def main(run: Path, data: Path, max_fpr: float, confidence: float) -> None:
    """Calibrate RUN on DATA for unseen sources, and write its model card anew."""
    settings = Settings.from_json((run / "settings.json").read_text())
    if not settings.leave_out:
        raise DataError(f"{run} left no source out of training: nothing unseen to calibrate on")
    face_data = scan(data)
    samples = choose_samples(face_data, settings.leave_out)
    checkpoint = run / "best.safetensors"
    net, card = load_checkpoint(checkpoint)
    logits = predict_logits(net, face_data, samples, card.preprocess, workers=0)
    fitted = calibrate_unseen(
        logits,
        np.array([sample.label == 0 for sample in samples]),
        [sample.source or "" for sample in samples],
        settings.leave_out,
        max_fpr,
        confidence=confidence,
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

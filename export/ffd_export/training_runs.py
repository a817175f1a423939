"""The folders that ffd-train leaves: which is newest, and which images a run was validated on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ffd_runtime.core.errors import DataError, ModelError
from ffd_train.shards import is_packed

from .sample_images import Example, balance, find_images, packed_images

CHECKPOINT = "best.safetensors"
MOST = 512


def find_checkpoint(model: Path | None, runs: Path) -> Path:
    """The checkpoint that is meant.

    Args:
        model: a checkpoint, a run's folder, or None for the newest run.
        runs: folder that holds the runs.

    Raises:
        ModelError: there is none.
    """
    if model is None:
        # The card is written last: a run without one is still training, or was killed.
        ended = [card.with_name(CHECKPOINT) for card in runs.glob("*/card.json")]
        found = sorted(filter(Path.is_file, ended), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ModelError(f"no finished run in {runs}/: train one with ffd-train, or give MODEL")
        return found[-1]
    if not model.exists():
        raise ModelError(f"{model}: no such file")
    if model.suffix in (".engine", ".plan"):
        raise ModelError(f"{model} is an engine already: give the ONNX that it was built from")
    if model.is_dir():
        if not (model / CHECKPOINT).is_file():
            raise ModelError(f"{model} is not a run: it has no {CHECKPOINT}")
        return model / CHECKPOINT
    return model


def find_verification(model: Path, folder: Path | None) -> list[Example]:
    """Images to verify an export with, at most `MOST`, of both classes alike.

    Args:
        model: the checkpoint, or an ONNX beside it; its run names its validation images.
        folder: a folder of images instead; of a packed data set, what is in val, else in test.

    Raises:
        DataError: there are none.
    """
    return _find(
        model,
        "val",
        "--verify",
        folder,
        MOST,
        "the run's validation images are not to be found: give a folder of images by --verify DIR, "
        "or --verify none to leave the export unverified",
    )


def find_calibration(model: Path, folder: Path | None, count: int) -> list[Example]:
    """Images to calibrate with, at most `count`, of both classes alike.

    Args:
        model: the checkpoint, or an ONNX beside it; its run names its training images.
        folder: a folder of images instead; of a packed data set, what is in train.
        count: how many at most.

    Raises:
        DataError: there are none.
    """
    return _find(
        model,
        "train",
        "--calibrate",
        folder,
        count,
        "--int8 is calibrated on real images, and the run's training images are not to be found: "
        "give a folder of images by --calibrate DIR",
    )


def run_images(run: Path, split: str) -> list[Example]:
    """Images of a run's data set that are still there; none where the run does not say."""
    try:
        root = Path(json.loads((run / "settings.json").read_text())["data"])
        with (run / "manifest.csv").open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            paths = [row["path"] for row in csv.DictReader(file) if row["split"] == split]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if is_packed(root):
        # Of them, those that the run did not leave out.
        used = {str(root / path) for path in paths}
        return [e for e in packed_images(root, split) if e.item.source in used]
    found = (str(root / path) for path in paths if (root / path).is_file())
    return [Example.of_file(path) for path in found]


def _find(
    model: Path, split: str, option: str, folder: Path | None, count: int, absent: str
) -> list[Example]:
    """Images of the folder that an option names, else of a split of the model's run."""
    if not folder:
        found = run_images(model.parent, split)
        if not found:
            raise DataError(absent)
        return balance(found, count)
    try:
        # Of a packed data set: no image both calibrates and verifies.
        return find_images(folder, count, ("val", "test") if split == "val" else (split,))
    except DataError as error:
        raise DataError(f"{option} {error}") from None

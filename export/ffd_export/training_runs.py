"""Find the newest run of ffd-train, and the images of a run's data set."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ffd_runtime.core.errors import DataError, ModelError
from ffd_train.shards import is_packed

from .sample_images import Example, balance, find_images, packed_images

CHECKPOINT = "best.safetensors"
MAX_VERIFICATION_IMAGES = 512


def find_checkpoint(model: Path | None, runs: Path) -> Path:
    """Find the checkpoint or the ONNX to export.

    Args:
        model: a checkpoint, an ONNX, the folder of a run, or None for the newest run.
        runs: folder that contains the runs.

    Raises:
        ModelError: there is no such model.
    """
    if model is None:
        # The card is written last. A run without a card is still training, or was killed.
        finished = [card.with_name(CHECKPOINT) for card in runs.glob("*/card.json")]
        found = sorted(filter(Path.is_file, finished), key=lambda path: path.stat().st_mtime)
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
    """Find images to verify an export on, balanced between the classes.

    Args:
        model: the checkpoint, or an ONNX in the folder of its run.
        folder: a folder of images, or a packed data set, whose val or else test split is used;
            None for the validation images of the model's run.

    Raises:
        DataError: there are no images.
    """
    if folder:
        return _find_in(folder, "--verify", MAX_VERIFICATION_IMAGES, ("val", "test"))
    if found := run_images(model.parent, "val"):
        return balance(found, MAX_VERIFICATION_IMAGES)
    raise DataError(
        "the run's validation images cannot be found: give a folder of images by --verify DIR, "
        "or skip the verification with --verify none"
    )


def find_calibration(model: Path, folder: Path | None, count: int) -> list[Example]:
    """Find at most `count` images to calibrate INT8 with, balanced between the classes.

    The train split is used, so that no image of a packed data set both calibrates and verifies.
    `find_verification` describes the other arguments and the errors.
    """
    if folder:
        return _find_in(folder, "--calibrate", count, ("train",))
    if found := run_images(model.parent, "train"):
        return balance(found, count)
    raise DataError(
        "--int8 needs images to calibrate with, and the run's training images cannot be found: "
        "give a folder of images by --calibrate DIR"
    )


def run_images(run: Path, split: str) -> list[Example]:
    """Return the images of a run's data set that still exist, if the run lists any."""
    try:
        root = Path(json.loads((run / "settings.json").read_text())["data"])
        with (run / "manifest.csv").open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            paths = [
                str(root / row["path"]) for row in csv.DictReader(file) if row["split"] == split
            ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    if is_packed(root):
        # The run may have excluded some images of the split.
        used = set(paths)
        return [e for e in packed_images(root, split) if e.item.source in used]
    return [Example.of_file(path) for path in paths if Path(path).is_file()]


def _find_in(folder: Path, option: str, count: int, splits: tuple[str, ...]) -> list[Example]:
    """Find images in the folder of an option, and name the option in errors."""
    try:
        return find_images(folder, count, splits)
    except DataError as error:
        raise DataError(f"{option} {error}") from None

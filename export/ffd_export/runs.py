"""The folders that ffd-train leaves: which is newest, and which images a run was validated on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from ffd_runtime.errors import DataError, ModelError
from ffd_runtime.sources import find_files

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
    if model.is_dir():
        if not (model / CHECKPOINT).is_file():
            raise ModelError(f"{model} is not a run: it has no {CHECKPOINT}")
        return model / CHECKPOINT
    return model


def find_verification(checkpoint: Path, folder: Path | None) -> list[str]:
    """Images to verify an export with, at most `MOST`, spread evenly.

    Args:
        checkpoint: the checkpoint; its run names its validation images.
        folder: a folder of images instead.

    Raises:
        DataError: there are none.
    """
    if folder:
        found = [item.source for item in find_files([str(folder)])]
        if not folder.is_dir() or not found:
            raise DataError(f"--verify {folder}: no such folder, or nothing in it")
    else:
        found = _validation_images(checkpoint.parent)
        if not found:
            raise DataError(
                "the run's validation images are not to be found: give a folder of images by "
                "--verify DIR, or --verify none to leave the export unverified"
            )
    step = -(-len(found) // MOST)
    return found[::step]


def _validation_images(run: Path) -> list[str]:
    try:
        root = Path(json.loads((run / "settings.json").read_text())["data"])
        with (run / "manifest.csv").open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            paths = [row["path"] for row in csv.DictReader(file) if row["split"] == "val"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(root / path) for path in paths if (root / path).is_file()]

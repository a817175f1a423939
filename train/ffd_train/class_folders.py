"""The layout of a data set on disk: a folder for each class, optionally within split folders."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from ffd_runtime.core.errors import DataError
from ffd_runtime.model.card import CLASSES

from .folders import SPLITS, ClassFolder, list_files, list_folders
from .shards import BEGUN, DATASET

# Split names that other data sets use.
_ALIASES = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}


def find_class_folders(root: Path) -> list[ClassFolder]:
    """List the class folders of a data set with their images, split by split.

    Raises:
        DataError: the folder does not exist or has no image, a split folder has an unknown name,
            or a class folder is next to a split folder or contains one.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder")
    names = list_folders(root)
    for name in names:
        split = _ALIASES.get(name.lower(), name.lower())
        if split in SPLITS and name not in SPLITS and set(CLASSES) & set(list_folders(root / name)):
            raise DataError(f"{root / name} is not a known split: rename it to {split}/")
    splits = [split for split in SPLITS if split in names]
    unsplit = [name for name in CLASSES if name in names]
    if splits and unsplit:
        raise DataError(
            f"{root} has both {unsplit[0]}/ and {splits[0]}/: move all images into split folders, "
            f"or remove {splits[0]}/"
        )
    folders = [
        ClassFolder(root, below, label, split, list_files(root / below))
        for split in splits or ("",)
        for label in CLASSES
        if os.path.isdir(root / (below := f"{split}/{label}" if split else label))
    ]
    for folder in folders:
        _refuse_splits_inside(root, folder)
    if not any(folder.listing.images for folder in folders):
        raise DataError(_explain_no_images(root))
    return folders


def _refuse_splits_inside(root: Path, folder: ClassFolder) -> None:
    """Check that a class folder has no splits in it: all its images would be split again."""
    for name in list_folders(folder.path):
        split = _ALIASES.get(name.lower(), name.lower())
        if split in SPLITS and any(one.startswith(f"{name}/") for one in folder.listing.images):
            raise DataError(
                f"{folder.path / name} is a split within a class: move it to "
                f"{root / split / folder.label}"
            )


def count_ignored(folders: Collection[ClassFolder]) -> int:
    """Count the files that are not images."""
    return sum(folder.listing.ignored for folder in folders)


def require_both_classes(root: Path, labels: Collection[int], where: str) -> None:
    """Check that both classes have an image; `where` names the part of the data set.

    Raises:
        DataError: a class has no image.
    """
    for label, name in enumerate(CLASSES):
        if label not in labels:
            raise DataError(
                f"{root}: no {name} image in {where}: both classes are needed"
                + _suggest_rename(root)
            )


def _explain_no_images(root: Path) -> str:
    if (root / BEGUN).exists():
        return f"{root} is not fully packed: run the same ffd-data prepare command to resume"
    if any(root.glob("*.tar")):
        return (
            f"{root} has shards but no {DATASET}: copy that file from the original, or remove the "
            "folder and pack it again"
        )
    return (
        f"{root} has no images: expected the folders {CLASSES[0]}/ and {CLASSES[1]}/, "
        "or train/, val/ and test/ with these two in each" + _suggest_rename(root)
    )


def _suggest_rename(root: Path) -> str:
    """Name the folders that may be a class under another name; possibly empty."""
    parents = [root / split for split in SPLITS if (root / split).is_dir()] or [root]
    others = {
        f"{(parent / name).relative_to(root).as_posix()}/"
        for parent in parents
        for name in list_folders(parent)
        if name not in CLASSES and not name.startswith(".")
    }
    if not others:
        return ""
    shown = ", ".join(sorted(others)[:4]) + (", ..." if len(others) > 4 else "")
    return f" (it has {shown}; if that is one of the classes, rename it)"

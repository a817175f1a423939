"""The images of the input folders, with their metadata."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.core.errors import DataError

from ..class_folders import find_class_folders
from ..folders import ClassFolder, list_files, refuse_shared_people
from ..shards import is_packed
from .image_metadata import ImageMetadata, read_metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(ImageMetadata):
    """An image to pack.

    Attributes:
        label: `generated` or `groundtruth`.
        root: input folder.
        name: path below the root, with forward slashes.
    """

    label: str
    root: Path
    name: str

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.root / self.name


@dataclass(frozen=True)
class Input:
    """An input folder.

    Attributes:
        label: class of all its images; None for a folder with class folders.
        source: name of the source; None for the folder's name.
    """

    path: Path
    label: str | None = None
    source: str | None = None

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source or self.path.resolve().name


@dataclass(frozen=True)
class Found:
    """The images of input folders, the number of other files, and messages for the user."""

    entries: list[Entry]
    ignored: int
    notes: list[str]


def find_entries(inputs: Sequence[Input]) -> Found:
    """Find the images of all input folders.

    Raises:
        DataError: a folder does not exist, has no images, has an unknown layout or is inside
            another, two sources have the same name, or a person is in two splits.
    """
    _refuse_overlaps(inputs)
    entries: list[Entry] = []
    ignored = 0
    notes: list[str] = []
    for given in inputs:
        found = _find_in(given)
        if not found.entries:
            raise DataError(f"{given.path} has no images")
        entries += found.entries
        ignored += found.ignored
        notes += found.notes
    refuse_shared_people(
        ((e.person, e.split, f"{e.path} ({e.split})") for e in entries if e.identity and e.split),
        "move the images of each person into one split, or remove the partition file, the "
        "manifest's column split or the split folders to create new splits",
    )
    return Found(entries, ignored, notes)


def _refuse_overlaps(inputs: Sequence[Input]) -> None:
    """Check that no image is given twice, and that source names are unique.

    Raises:
        DataError: they are not.
    """
    for number, given in enumerate(inputs):
        own = given.path.resolve()
        for other in inputs[:number]:
            theirs = other.path.resolve()
            if own == theirs:
                raise DataError(f"{given.path} is given twice: give it once")
            if own.is_relative_to(theirs) or theirs.is_relative_to(own):
                raise DataError(
                    f"one of {given.path} and {other.path} is inside the other: give each image "
                    "once"
                )
            if given.name == other.name:
                raise DataError(f"two sources are named {given.name}: give one as OTHER_NAME=PATH")
        if not given.name:
            raise DataError(f"{given.path} has no name: give it as NAME=PATH")


def _find_in(given: Input) -> Found:
    """Find the images of an input folder with their metadata."""
    if given.label is None:
        if is_packed(given.path):
            raise DataError(f"{given.path} is already packed: give the original folders")
        folders = find_class_folders(given.path)
    elif os.path.isdir(given.path):
        folders = [ClassFolder(given.path, "", given.label, "", list_files(given.path))]
    else:
        raise DataError(f"{given.path}: no such folder")
    if not any(folder.listing.images for folder in folders):
        return Found([], 0, [])
    known, notes = read_metadata(folders, given.name)
    entries = []
    for folder in folders:
        source = given.name if given.label else f"{given.name}-{folder.label}"
        for path in folder.images:
            of = known[path]
            facts = of.source or source, of.split, of.identity, of.scope, of.family
            entries.append(Entry(*facts, label=folder.label, root=given.path, name=path))
    return Found(entries, sum(folder.listing.ignored for folder in folders), notes)

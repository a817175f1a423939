"""What is there to prepare: every picture of the given folders, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.core.errors import DataError

from ..class_folders import find_class_folders
from ..folders import ClassFolder, find_shared, list_files
from ..shards import is_packed
from .picture_metadata import read_metadata


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture to prepare.

    Attributes:
        label: `generated` or `groundtruth`.
        source: name of where it came from.
        root: folder that was given.
        name: path below it, with forward slashes.
        identity: whom it shows; empty where nobody says.
        split: that its makers put it in; empty where they do not say.
        scope: list within which an identity means one person; None for the folder.
    """

    label: str
    source: str
    root: Path
    name: str
    identity: str = ""
    split: str = ""
    scope: Path | None = None

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.root / self.name

    @property
    def person(self) -> tuple[Path, str]:
        """Whom it shows, among all folders."""
        return self.scope or self.root, self.identity


@dataclass(frozen=True)
class Input:
    """A folder as it was given.

    Attributes:
        path: the folder.
        label: of all its pictures; None for one laid out as ffd-train takes it.
        source: name of its pictures' source; None for the folder's.
    """

    path: Path
    label: str | None = None
    source: str | None = None

    @property
    def name(self) -> str:
        """What its source is called."""
        return self.source or self.path.resolve().name


@dataclass(frozen=True)
class Found:
    """All that was given.

    Attributes:
        entries: every picture, in a fixed order.
        ignored: how many other files there were.
        notes: what a person is told of them.
    """

    entries: list[Entry]
    ignored: int
    notes: list[str]


def find_entries(inputs: Sequence[Input]) -> Found:
    """Every picture of some folders.

    Raises:
        DataError: a folder is absent, has no pictures or another layout, lies in another, two
            sources have one name, or the split that was given has one person in two of its parts.
    """
    _refuse_overlaps(inputs)
    entries: list[Entry] = []
    ignored = 0
    notes: list[str] = []
    for given in inputs:
        found = _find_labelled(given) if given.label is None else _find_class(given, given.label)
        if not found.entries:
            raise DataError(f"{given.path} has no pictures")
        entries += found.entries
        ignored += found.ignored
        notes += found.notes
    _refuse_shared_identities(entries)
    return Found(entries, ignored, notes)


def _refuse_overlaps(inputs: Sequence[Input]) -> None:
    """Each picture may be given once, and each name may mean one folder.

    Raises:
        DataError: it is otherwise.
    """
    for number, given in enumerate(inputs):
        own = given.path.resolve()
        for other in inputs[:number]:
            theirs = other.path.resolve()
            if own == theirs:
                raise DataError(f"{given.path} is given twice: give it once")
            if own.is_relative_to(theirs) or theirs.is_relative_to(own):
                raise DataError(
                    f"{given.path} and {other.path} lie one in the other: give each picture once"
                )
            if given.name == other.name:
                raise DataError(f"two sources are called {given.name}: give one as OTHER_NAME=PATH")
        if not given.name:
            raise DataError(f"{given.path} has no name: give it as NAME=PATH")


def _find_labelled(given: Input) -> Found:
    """A folder with generated/ and groundtruth/, or with these in each split."""
    if is_packed(given.path):
        raise DataError(f"{given.path} is packed already: give the folders that it was made from")
    return _describe(given, find_class_folders(given.path))


def _find_class(given: Input, label: str) -> Found:
    """A folder of one class, nested as it may be."""
    if not os.path.isdir(given.path):
        raise DataError(f"{given.path}: no such folder")
    return _describe(given, [ClassFolder(given.path, "", label, "", list_files(given.path))])


def _describe(given: Input, folders: Sequence[ClassFolder]) -> Found:
    """The pictures of a given folder, with all that is known of them."""
    if not any(folder.listing.pictures for folder in folders):
        return Found([], 0, [])
    known, notes = read_metadata(folders, given.name)
    entries = []
    for folder in folders:
        source = given.name if given.label else f"{given.name}-{folder.label}"
        for path in folder.pictures:
            of = known[path]
            entries.append(
                Entry(
                    folder.label,
                    of.source or source,
                    given.path,
                    path,
                    of.identity,
                    of.split,
                    of.scope,
                )
            )
    return Found(entries, sum(folder.listing.ignored for folder in folders), notes)


def _refuse_shared_identities(entries: Iterable[Entry]) -> None:
    """Nobody may be in two of the splits that the makers made.

    Raises:
        DataError: somebody is.
    """
    placed = (entry for entry in entries if entry.identity and entry.split)
    shared = find_shared((entry.person, entry.split, str(entry.path)) for entry in placed)
    if shared:
        (split, one), (other, two) = shared[0]
        raise DataError(
            f"{len(shared)} persons are in two splits, such as on {one} in {split} and {two} in "
            f"{other}: move the pictures of each into one, or remove the partition's file, the "
            "manifest's column split or the split folders to have the persons split anew"
        )

"""What is there to prepare: every picture of the given folders, and what is known of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.card import CLASSES
from ffd_runtime.errors import DataError

from ..data import find_images
from ..folders import SPLITS, find_shared, list_files, read_rows
from ..shards import MANIFEST, is_packed
from .celeba import read_lists


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture to prepare.

    Attributes:
        label: `generated` or `groundtruth`.
        source: name of where it came from.
        root: folder that was given.
        name: path below it, with forward slashes.
        identity: whom it shows, the same one in all of the folder; empty where nobody says.
        split: that its makers put it in; empty where they do not say.
    """

    label: str
    source: str
    root: Path
    name: str
    identity: str = ""
    split: str = ""

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.root / self.name

    @property
    def person(self) -> tuple[Path, str]:
        """Whom it shows, among all folders."""
        return self.root, self.identity


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
    found, ignored = find_images(given.path)
    known = read_rows(given.path / MANIFEST, [name for name, _, _ in found])
    entries = []
    for name, label, folder in found:
        row = known.get(name, {})
        split = _split_of(given, row)
        if folder and split and folder != split:
            raise DataError(
                f"{given.path / MANIFEST} puts {name} into {split}: move it there, or remove the "
                "column split"
            )
        source = row.get("source") or f"{given.name}-{CLASSES[label]}"
        identity = row.get("identity", "")
        entries.append(Entry(CLASSES[label], source, given.path, name, identity, folder or split))
    return Found(entries, ignored, [])


def _find_class(given: Input, label: str) -> Found:
    """A folder of one class, nested as it may be."""
    if not os.path.isdir(given.path):
        raise DataError(f"{given.path}: no such folder")
    listing = list_files(given.path)
    if not listing.pictures:
        return Found([], 0, [])
    # Generated pictures may be numbered like CelebA's, and lie beside it.
    above = label == "groundtruth"
    lists = read_lists(given.path, given.name, listing.pictures, listing.others, above)
    known = read_rows(given.path / MANIFEST, listing.pictures)
    entries = []
    for name in listing.pictures:
        row = known.get(name, {})
        identity = row.get("identity") or lists.identities.get(name, "")
        split = _split_of(given, row) or lists.splits.get(name, "")
        source = row.get("source") or given.name
        entries.append(Entry(label, source, given.path, name, identity, split))
    return Found(entries, listing.ignored, [lists.said] if lists.said else [])


def _split_of(given: Input, row: dict[str, str]) -> str:
    """What manifest.csv says; empty where it says nothing."""
    split = row.get("split", "")
    if split and split not in SPLITS:
        raise DataError(f"{given.path / MANIFEST}: {split!a} is none of {', '.join(SPLITS)}")
    return split


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
            f"{other}: move the pictures of each into one, or remove the partition's file or the "
            "manifest's column split to have the persons split anew"
        )

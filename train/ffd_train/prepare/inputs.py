"""What is there to prepare: every picture of the given folders, and what is known of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.card import CLASSES
from ffd_runtime.errors import DataError

from ..data import SPLITS, SUFFIXES, find_images
from ..shards import is_packed

# CelebA's own files, as torchvision, the authors' drive and others' CSVs have them. "Deep Learning
# Face Attributes in the Wild", Liu et al., 2015: 0 is training, 1 validation, 2 testing.
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")


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


def find_entries(inputs: Iterable[Input]) -> tuple[list[Entry], int]:
    """Every picture, in a fixed order, and how many other files there were.

    Raises:
        DataError: a folder is absent, has no pictures or another layout, two sources have one name,
            or the split that was given has one person in two of its parts.
    """
    entries: list[Entry] = []
    ignored = 0
    names: dict[str, Path] = {}
    for given in inputs:
        if names.setdefault(given.name, given.path) != given.path or not given.name:
            raise DataError(f"two sources are called {given.name}: give one as OTHER_NAME=PATH")
        found, others = _find_labelled(given) if given.label is None else _find_class(given)
        if not found:
            raise DataError(f"{given.path} has no pictures")
        entries += found
        ignored += others
    _refuse_shared_identities(entries)
    return entries, ignored


def _find_labelled(given: Input) -> tuple[list[Entry], int]:
    """A folder with generated/ and groundtruth/, or with these in each split."""
    if is_packed(given.path):
        raise DataError(f"{given.path} is packed already: give the folders that it was made from")
    found, ignored = find_images(given.path)
    known = _read_manifest(given.path / "manifest.csv")
    entries = []
    for name, label, split in found:
        row = known.get(name, {})
        source = row.get("source") or f"{given.name}-{CLASSES[label]}"
        identity = row.get("identity") or ""
        entries.append(Entry(CLASSES[label], source, given.path, name, identity, split or ""))
    return entries, ignored


def _find_class(given: Input) -> tuple[list[Entry], int]:
    """A folder of one class, nested as it may be."""
    assert given.label
    if not given.path.is_dir():
        raise DataError(f"{given.path}: no such folder")
    pictures: list[str] = []
    others: list[str] = []
    for name in _walk(given.path):
        (pictures if Path(name).suffix.lower() in SUFFIXES else others).append(name)
    facts = [given.path / name for name in others]
    if given.path.name.startswith("img_"):
        # CelebA's pictures alone were given: what its authors say of them lies beside.
        facts += [given.path.parent / name for name in PARTITIONS + IDENTITIES]
    partition = _read_pairs(facts, PARTITIONS)
    identities = _read_pairs(facts, IDENTITIES)
    known = _read_manifest(given.path / "manifest.csv")
    entries = []
    for name in pictures:
        base, row = name.rsplit("/", 1)[-1], known.get(name, {})
        identity = row.get("identity") or identities.get(base, "")
        split = row.get("split") or _split_of(partition.get(base))
        if split and split not in SPLITS:
            raise DataError(
                f"{given.path / 'manifest.csv'}: {split} is none of {', '.join(SPLITS)}"
            )
        entries.append(
            Entry(given.label, row.get("source") or given.name, given.path, name, identity, split)
        )
    return entries, len(others)


def _walk(root: Path) -> Iterator[str]:
    """Files below a folder, sorted; hidden ones left out, such as a Mac's ._NAME."""

    def fail(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}")

    for folder, below, files in os.walk(root, onerror=fail):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


def _read_pairs(paths: Iterable[Path], names: tuple[str, ...]) -> dict[str, str]:
    """The second column by the first, of the first of the paths that has one of the names.

    Raises:
        DataError: it is a text of another kind.
    """
    for path in paths:
        if path.name in names and path.is_file():
            rows = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            pairs = [row.replace(",", " ").split() for row in rows if row.strip()]
            # A CSV has a heading.
            pairs = [pair for pair in pairs if len(pair) != 2 or pair[1].isdigit()]
            if not pairs or any(len(pair) != 2 for pair in pairs):
                raise DataError(f"{path} should have a file's name and a number in each line")
            return {pair[0]: pair[1] for pair in pairs}
    return {}


def _split_of(number: str | None) -> str:
    if number is None:
        return ""
    if number not in ("0", "1", "2"):
        raise DataError(f"CelebA's partition has {number}: known are 0, 1 and 2")
    return SPLITS[int(number)]


def _read_manifest(path: Path) -> dict[str, dict[str, str]]:
    """Rows by path; of them split, source and identity are known, each where it is there."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            return {}
        try:
            return {row["path"]: row for row in rows}
        except csv.Error as error:
            raise DataError(f"{path} is no CSV ({error}): mend or remove it") from None


def _refuse_shared_identities(entries: Iterable[Entry]) -> None:
    """Nobody may be in two of the splits that the makers made.

    Raises:
        DataError: somebody is.
    """
    first: dict[tuple[str, str], Entry] = {}
    shared: dict[tuple[str, str], tuple[Entry, Entry]] = {}
    for entry in entries:
        if entry.identity and entry.split:
            person = entry.source, entry.identity
            other = first.setdefault(person, entry)
            if other.split != entry.split:
                shared.setdefault(person, (other, entry))
    if shared:
        (source, identity), (one, two) = next(iter(shared.items()))
        raise DataError(
            f"{source}: {len(shared)} persons are in two splits, such as {identity} in {one.split} "
            f"({one.name}) and {two.split} ({two.name}): remove the partition's file or the "
            "manifest's split column to have the persons split anew"
        )

"""Folders of single pictures: which files lie in them, and what a manifest.csv says of them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ffd_runtime.core.errors import DataError

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .avif .ppm .pgm".split()
)
# Of a manifest.csv, besides the path; all else that it may say is not ours.
COLUMNS = ("source", "split", "identity")
# Of the pictures that a manifest with persons or splits seems to mean. Where it names fewer, paths
# are wrong, and persons would get into two splits unseen.
FEWEST = 0.75


@dataclass
class Listing:
    """Files below a folder, as paths relative to it with forward slashes, in a fixed order.

    Attributes:
        pictures: those that are named like one.
        others: the rest.
        hidden: how many files and folders begin with a dot, such as a Mac's `._NAME`; they are
            neither, and what is in such a folder is not counted.
    """

    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: int = 0

    @property
    def ignored(self) -> int:
        """Files that are no picture."""
        return len(self.others) + self.hidden


@dataclass(frozen=True)
class ClassFolder:
    """A folder with pictures of one class.

    Attributes:
        root: folder that was given.
        below: its path below that, with forward slashes; empty for that folder itself.
        label: `generated` or `groundtruth`.
        split: that it lies in; empty for none.
        listing: what is in it.
    """

    root: Path
    below: str
    label: str
    split: str
    listing: Listing

    @property
    def path(self) -> Path:
        """Of the folder."""
        return self.root / self.below

    @property
    def pictures(self) -> list[str]:
        """Their paths below the root."""
        start = f"{self.below}/" if self.below else ""
        return [start + picture for picture in self.listing.pictures]


def list_files(root: Path) -> Listing:
    """Everything below a folder, links followed.

    Raises:
        DataError: a folder cannot be read, or lies in itself by a link.
    """
    found = Listing()
    for name in sorted(_walk(root, "", (), found), key=lambda name: name.split("/")):
        picture = os.path.splitext(name)[1].lower() in SUFFIXES
        (found.pictures if picture else found.others).append(name)
    return found


def list_folders(root: Path) -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
        DataError: it cannot be read.
    """
    return sorted(entry.name for entry in _scan(root) if _is_folder(entry))


def _walk(
    folder: Path, below: str, above: tuple[tuple[int, int], ...], found: Listing
) -> Iterator[str]:
    status = _stat(folder)
    own = status.st_dev, status.st_ino
    if own in above:
        raise DataError(f"{folder} is a link to a folder that it lies in: remove the link")
    for entry in _scan(folder):
        if entry.name.startswith("."):
            found.hidden += 1
        elif _is_folder(entry):
            yield from _walk(folder / entry.name, f"{below}{entry.name}/", (*above, own), found)
        else:
            yield below + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Without asking the disk, but for links; one that leads nowhere is a file that cannot be read.
    if entry.is_symlink():
        return os.path.isdir(entry.path)
    return entry.is_dir()


def _stat(folder: Path) -> os.stat_result:
    try:
        return folder.stat()
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from None


def read_rows(path: Path, names: Collection[str]) -> dict[str, dict[str, str]]:
    """What a manifest.csv says of the pictures beside it.

    Args:
        path: the file; one that is not there says nothing.
        names: paths of the pictures, relative to its folder.

    Returns:
        By picture, those of `COLUMNS` that it has.

    Raises:
        DataError: it cannot be read, has none of the columns, names none of the pictures, or has
            persons or splits and its paths fit few of them.
    """
    if not os.path.lexists(path):
        return {}
    known = frozenset(names)
    rows: dict[str, dict[str, str]] = {}
    strange: list[str] = []
    for row in _parse(path):
        written = name = row.pop("path")
        if name not in known:
            # Windows writes .\folder\name.
            name = name.replace("\\", "/").removeprefix("./")
        if name in known:
            rows[name] = row
        else:
            strange.append(written)
    if not rows:
        has = f"it has {strange[0]!a}" if strange else "it has no rows"
        raise DataError(
            f"{path} names none of the pictures beside it ({has}): write their paths relative to "
            f"{path.parent}, or remove the file"
        )
    # Rows of pictures that are gone do no harm, nor do pictures that no row could mean.
    missed = min(len(strange), len(known) - len(rows))
    told = any(row.get("split") or row.get("identity") for row in rows.values())
    if told and len(rows) < FEWEST * (len(rows) + missed):
        raise DataError(
            f"{path} names {len(rows)} of {len(known)} pictures, and {len(strange)} of its rows, "
            f"such as {strange[0]!a}, none: write their paths relative to {path.parent}, or remove "
            "these rows"
        )
    return rows


def _parse(path: Path) -> Iterator[dict[str, str]]:
    """Rows with a path, and what they have of `COLUMNS`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if b"\0" in data[:1024]:
        raise DataError(f"{path} is not UTF-8 (UTF-16?): save it again as CSV, UTF-8")
    # Excel writes a byte order mark, and file names may be any bytes.
    text = data.decode("utf-8-sig", "surrogateescape")
    heading = text.partition("\n")[0]
    # Where a comma is a decimal point, Excel writes semicolons.
    delimiter = ";" if heading.count(";") > heading.count(",") else ","
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [column.strip().lower() for column in next(rows, [])]
        ours = [name for name in ("path", *COLUMNS) if name in columns]
        if "path" not in ours or len(ours) == 1:
            raise DataError(
                f"{path} should have the columns path and source, split or identity, and has "
                f"{', '.join(columns)[:80]!a}: rename its columns, or the file"
            )
        for row in rows:
            said = dict(zip(columns, row, strict=False))
            if said.get("path"):
                yield {name: said.get(name, "") for name in ours}
    except csv.Error as error:
        raise DataError(f"{path} is no CSV ({error}): mend or remove it") from None


def find_shared(
    pictures: Iterable[tuple[Hashable, str, str]],
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Persons who are in two splits.

    Args:
        pictures: of each that is in a split: whom it shows, the split, its name.

    Returns:
        Of each such person, split and name of a picture in one, and in another.
    """
    first: dict[Hashable, tuple[str, str]] = {}
    shared: dict[Hashable, tuple[tuple[str, str], tuple[str, str]]] = {}
    for person, split, name in pictures:
        one = first.setdefault(person, (split, name))
        if one[0] != split:
            shared.setdefault(person, (one, (split, name)))
    return list(shared.values())

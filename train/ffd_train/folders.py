"""Folders of images: their files and their manifest.csv."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ffd_runtime.core.errors import DataError, os_errors_as
from ffd_runtime.core.tree_walk import walk_tree

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .avif .ppm .pgm".split()
)
# Columns of manifest.csv besides the path; others are ignored.
COLUMNS = ("source", "split", "identity", "family")
# Minimum share of images that a manifest with identities or splits must name. With fewer, its
# paths are probably wrong, and one person could end up in two splits.
MIN_MATCHED_SHARE = 0.75


@dataclass
class Listing:
    """The files below a folder, as sorted relative paths with forward slashes.

    Attributes:
        images: files with an image suffix.
        others: other files.
        hidden: number of files and folders whose names begin with a dot, such as macOS's `._NAME`.
            The contents of hidden folders are not counted.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: int = 0

    @property
    def ignored(self) -> int:
        """Number of files that are not images."""
        return len(self.others) + self.hidden


@dataclass(frozen=True)
class ClassFolder:
    """A folder with images of one class.

    Attributes:
        root: folder given by the user.
        below: path below the root, with forward slashes; empty for the root.
        label: `generated` or `groundtruth`.
        split: split of the folder; empty for none.
        listing: files in the folder.
    """

    root: Path
    below: str
    label: str
    split: str
    listing: Listing

    @property
    def path(self) -> Path:
        """Path of the folder."""
        return self.root / self.below

    @property
    def images(self) -> list[str]:
        """Paths of the images below the root."""
        start = f"{self.below}/" if self.below else ""
        return [start + name for name in self.listing.images]


def list_files(root: Path) -> Listing:
    """List all files below a folder, and follow links.

    Raises:
        DataError: a folder cannot be read, or a link points to one of its parents.
    """
    found = Listing()

    def keep(name: str) -> bool:
        found.hidden += name.startswith(".")
        return not name.startswith(".")

    for path, error in walk_tree(str(root), keep):
        if error and error.errno == errno.ELOOP:
            raise DataError(f"{path} is a link to one of its parent folders: remove the link")
        if error:
            raise DataError(f"cannot read {path}: {error.strerror}")
        is_image = os.path.splitext(path)[1].lower() in SUFFIXES
        name = path.removeprefix(str(root)).replace(os.sep, "/").lstrip("/")
        (found.images if is_image else found.others).append(name)
    return found


def list_folders(root: Path) -> list[str]:
    """List the names of the folders in a folder, sorted.

    Raises:
        DataError: the folder cannot be read.
    """
    with os_errors_as(DataError, f"cannot read {root}"), os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if os.path.isdir(entry.path))


def read_rows(path: Path, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Read the rows of a manifest.csv for the images in its folder.

    Args:
        path: the file; may not exist.
        names: paths of the images, relative to its folder.

    Returns:
        The existing `COLUMNS` of each image, by path.

    Raises:
        DataError: the file cannot be read, lacks the columns, names no image, has two different
            rows for an image, or has identities or splits and names too few images.
    """
    if not os.path.lexists(path):
        return {}
    known = frozenset(names)
    rows: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for row in _parse(path):
        written = name = row.pop("path")
        if name not in known:
            # A path from Windows, such as .\folder\name.
            name = name.replace("\\", "/").removeprefix("./")
        if name in known:
            if rows.setdefault(name, row) != row:
                raise DataError(f"{path} has two different rows for {name!a}: remove one of them")
        else:
            unknown.append(written)
    if not rows:
        has = f"it has {unknown[0]!a}" if unknown else "it has no rows"
        raise DataError(
            f"{path} names none of the images in its folder ({has}): write their paths relative to "
            f"{path.parent}, or remove the file"
        )
    # Rows of deleted images are harmless, and so are images without a row.
    missed = min(len(unknown), len(known) - len(rows))
    decisive = any(row.get("split") or row.get("identity") for row in rows.values())
    if decisive and len(rows) < MIN_MATCHED_SHARE * (len(rows) + missed):
        raise DataError(
            f"{path} names {len(rows)} of {len(known)} images, and {len(unknown)} of its rows, for "
            f"example {unknown[0]!a}, name no image: write paths relative to {path.parent}, or "
            "remove these rows"
        )
    return rows


def _parse(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows with a path, reduced to the path and `COLUMNS`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if b"\0" in data[:1024]:
        raise DataError(f"{path} is not UTF-8 (UTF-16?): save it as CSV, UTF-8")
    # Excel writes a byte order mark. File names may contain any bytes.
    text = data.decode("utf-8-sig", "surrogateescape")
    heading = text.partition("\n")[0]
    # Excel separates by semicolons in languages with a decimal comma.
    delimiter = ";" if heading.count(";") > heading.count(",") else ","
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [column.strip().lower() for column in next(rows, [])]
        ours = [name for name in ("path", *COLUMNS) if name in columns]
        if "path" not in ours or len(ours) == 1:
            raise DataError(
                f"{path} needs the column path and one of {', '.join(COLUMNS)}, and has "
                f"{', '.join(columns)[:80]!a}: rename its columns, or the file"
            )
        for row in rows:
            values = dict(zip(columns, row, strict=False))
            if values.get("path"):
                yield {name: values.get(name, "") for name in ours}
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV ({error}): correct or remove it") from None


def refuse_shared_people(images: Iterable[tuple[Hashable, str, str]], remedy: str) -> None:
    """Check that the images of each person are in one split.

    Args:
        images: person, split and name of each image in a split.
        remedy: end of the message.

    Raises:
        DataError: a person is in two splits.
    """
    first: dict[Hashable, tuple[str, str]] = {}
    shared: dict[Hashable, str] = {}
    for person, split, name in images:
        ours, one = first.setdefault(person, (split, name))
        if ours != split:
            shared.setdefault(person, f"for example in {one} and {name}")
    if shared:
        count = f"{len(shared)} people are" if len(shared) > 1 else "a person is"
        raise DataError(f"{count} in two splits, {next(iter(shared.values()))}: {remedy}")

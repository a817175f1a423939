"""What is known of pictures besides their class: by their folder, manifest.csv, CelebA's lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.core.errors import DataError

from ..folders import SPLITS, ClassFolder, read_rows
from ..shards import MANIFEST
from .celeba import read_lists


@dataclass(frozen=True, slots=True)
class PictureMetadata:
    """What is known of a picture.

    Attributes:
        source: where it came from; empty where nobody says.
        split: its folder's, else the manifest's, else CelebA's; empty where nobody says.
        identity: whom it shows; empty where nobody says.
        scope: list that says so, or the root whose manifest does; it means one person there.
    """

    source: str
    split: str
    identity: str
    scope: Path

    @property
    def person(self) -> tuple[Path, str] | None:
        """Whom it shows, among all pictures; None where nobody says."""
        return (self.scope, self.identity) if self.identity else None


def read_metadata(
    folders: Sequence[ClassFolder], name: str
) -> tuple[dict[str, PictureMetadata], list[str]]:
    """What is known of every picture of a root.

    Args:
        folders: of one root, with its pictures.
        name: of the root, for a person.

    Returns:
        By the picture's path below the root; and what a person is told.

    Raises:
        DataError: the manifest or a list is damaged or of other pictures, or the manifest puts a
            picture into another split than it lies in.
    """
    root = folders[0].root
    pictures = [picture for folder in folders for picture in folder.pictures]
    rows = read_rows(root / MANIFEST, pictures)
    notes = []
    if 0 < len(rows) < len(pictures):
        notes.append(f"{root / MANIFEST} names {len(rows)} of {len(pictures)} pictures")
    known: dict[str, PictureMetadata] = {}
    for folder in folders:
        if folder.listing.pictures:
            notes += _know(folder, rows, f"{name}/{folder.below}".rstrip("/"), known)
    return known, notes


def _know(
    folder: ClassFolder,
    rows: dict[str, dict[str, str]],
    name: str,
    known: dict[str, PictureMetadata],
) -> list[str]:
    """Add what is known of one folder's pictures; gives what a person is told."""
    lists = read_lists(folder, name)
    for path, picture in zip(folder.pictures, folder.listing.pictures, strict=True):
        row = rows.get(path, {})
        split = _split_of(folder, path, row) or lists.splits.get(picture, "")
        identity, scope = row.get("identity", ""), folder.root
        if not identity and lists.persons and picture in lists.identities:
            identity, scope = lists.identities[picture], lists.persons
        known[path] = PictureMetadata(row.get("source", ""), split, identity, scope)
    return [lists.said] if lists.said else []


def _split_of(folder: ClassFolder, path: str, row: dict[str, str]) -> str:
    """What folder or manifest.csv say; empty where neither does."""
    split = row.get("split", "")
    manifest = folder.root / MANIFEST
    if split and split not in SPLITS:
        raise DataError(f"{manifest}: {split!a} is none of {', '.join(SPLITS)}")
    if folder.split and split and folder.split != split:
        raise DataError(
            f"{manifest} puts {path} into {split}: move it there, or remove the column split"
        )
    return folder.split or split

"""Source, split and identity of images, from their folder, manifest.csv and CelebA's lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.core.errors import DataError

from ..folders import SPLITS, ClassFolder, read_rows
from ..shards import MANIFEST
from .celeba import Lists, read_lists


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """The metadata of an image.

    Attributes:
        source: name of the source; empty if unknown.
        split: split of the folder, else of the manifest, else of CelebA; empty if unassigned.
        identity: the person in the image; empty if unknown.
        scope: list, or root of the manifest, in which the identity is unique.
        family: generator family of a generated image; empty if the manifest names none.
    """

    source: str
    split: str
    identity: str
    scope: Path
    family: str = ""

    @property
    def person(self) -> tuple[Path, str] | None:
        """The identity, unique among all images; None if unknown."""
        return (self.scope, self.identity) if self.identity else None


def read_metadata(
    folders: Sequence[ClassFolder], name: str
) -> tuple[dict[str, ImageMetadata], list[str]]:
    """Read the metadata of all images in the class folders of one root.

    Returns:
        The metadata by the image's path below the root, and messages for the user.

    Raises:
        DataError: the manifest or a list is invalid or belongs to other images, or the manifest
            and the folder of an image disagree about its split.
    """
    root = folders[0].root
    pictures = [picture for folder in folders for picture in folder.images]
    rows = read_rows(root / MANIFEST, pictures)
    notes = []
    if 0 < len(rows) < len(pictures):
        notes.append(f"{root / MANIFEST} names {len(rows)} of {len(pictures)} images")
    metadata: dict[str, ImageMetadata] = {}
    for folder in folders:
        if folder.listing.images:
            lists = read_lists(folder, f"{name}/{folder.below}".rstrip("/"))
            notes += [lists.summary] if lists.summary else []
            metadata |= _combine(folder, rows, lists)
    return metadata, notes


def _combine(
    folder: ClassFolder, rows: dict[str, dict[str, str]], lists: Lists
) -> dict[str, ImageMetadata]:
    """Return the metadata of one folder's images."""
    metadata = {}
    for path, picture in zip(folder.images, folder.listing.images, strict=True):
        row = rows.get(path, {})
        split = _split_of(folder, path, row) or lists.splits.get(picture, "")
        identity, scope = row.get("identity", ""), folder.root
        if not identity and lists.persons and picture in lists.identities:
            identity, scope = lists.identities[picture], lists.persons
        source, family = row.get("source", ""), row.get("family", "")
        metadata[path] = ImageMetadata(source, split, identity, scope, family)
    return metadata


def _split_of(folder: ClassFolder, path: str, row: dict[str, str]) -> str:
    """Return the split of the folder or of manifest.csv; empty if both leave it open."""
    split = row.get("split", "")
    manifest = folder.root / MANIFEST
    if split and split not in SPLITS:
        raise DataError(f"{manifest}: unknown split {split!a}: use {', '.join(SPLITS)}")
    if folder.split and split and folder.split != split:
        raise DataError(
            f"{manifest} assigns {path} to {split}: move it there, or remove the column split"
        )
    return folder.split or split

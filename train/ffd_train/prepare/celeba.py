"""CelebA's lists of identities and splits.

"Deep Learning Face Attributes in the Wild", Liu et al., 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ffd_runtime.core.errors import DataError, os_errors_as

from ..folders import SPLITS, ClassFolder

# File names of the authors' drive and torchvision, and of CSV copies.
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")
# The authors' drive has Img/img_align_celeba/, Anno/ and Eval/; some copies nest the images twice.
MAX_PARENTS = 2
LIST_FOLDERS = ("", "Anno", "Eval")
# Minimum share of images that a list must name. With fewer, it is a list of other images, or the
# images were renamed.
MIN_MATCHED_SHARE = 0.5


@dataclass(frozen=True)
class Lists:
    """The lists' entries for the images of a folder, by their paths in the folder.

    Attributes:
        persons: path of the list of identities, with links resolved; None without such a list.
        summary: message for the user; empty if the folder does not look like CelebA.
    """

    splits: dict[str, str] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)
    persons: Path | None = None
    summary: str = ""


def read_lists(folder: ClassFolder, name: str) -> Lists:
    """Read CelebA's lists for a folder. Names are compared without suffix: PNG copies are common.

    The lists are searched in the folder, and for photographs also above it and above the target of
    a link. A folder in a split keeps this split.

    Raises:
        DataError: a list is invalid, or names too few of the images.
    """
    path, pictures = folder.path, folder.listing.images
    places = [path / other for other in folder.listing.others]
    # Generated images next to CelebA may have the same numbers as names.
    places += _places_above(path) if folder.label == "groundtruth" else ()
    partition = None if folder.split else _first(places, PARTITIONS)
    splits = _match(partition, path, pictures)
    for picture, number in splits.items():
        if number not in ("0", "1", "2"):
            raise DataError(f"CelebA's partition has {number} for {picture}: expected 0, 1 or 2")
        # 0: training, 1: validation, 2: testing.
        splits[picture] = SPLITS[int(number)]
    persons = _first(places, IDENTITIES)
    identities = _match(persons, path, pictures)
    summary = ""
    if splits or identities or _is_named_celeba(path):
        summary = (
            f"{name}: CelebA's lists assign a split to {len(splits)} and an identity to "
            f"{len(identities)} of {len(pictures)} images"
        )
    return Lists(splits, identities, persons and persons.resolve(), summary)


def _is_named_celeba(folder: Path) -> bool:
    return "celeba" in "/".join(folder.resolve().parts[-3:]).lower()


def _places_above(folder: Path) -> Iterator[Path]:
    # The lists may be next to a link or next to its target.
    for start in dict.fromkeys((folder.absolute(), folder.resolve())):
        for parent in start.parents[:MAX_PARENTS]:
            for beside in LIST_FOLDERS:
                yield from (parent / beside / name for name in PARTITIONS + IDENTITIES)


def _first(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((path for path in places if path.name in names and path.is_file()), None)


def _match(path: Path | None, folder: Path, pictures: Sequence[str]) -> dict[str, str]:
    """Return the second column of a list, by image."""
    if path is None:
        return {}
    listed = {PurePosixPath(name).stem: value for name, value in _read_pairs(path)}
    stems = ((picture, PurePosixPath(picture).stem) for picture in pictures)
    found = {picture: listed[stem] for picture, stem in stems if stem in listed}
    if not found and folder not in path.parents and not _is_named_celeba(folder):
        # The list of a neighbouring folder.
        return {}
    if len(found) < MIN_MATCHED_SHARE * len(pictures):
        lacking = next(picture for picture in pictures if picture not in found)
        raise DataError(
            f"{path} names {len(found)} of {len(pictures)} images, for example not {lacking!a}: "
            "restore CelebA's file names, copy the list again if it is truncated, or move it away "
            "if these are other images"
        )
    return found


def _read_pairs(path: Path) -> list[list[str]]:
    with os_errors_as(DataError, f"cannot read {path}"):
        rows = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    pairs = [row.replace(",", " ").split() for row in rows if row.strip()]
    # A CSV has a heading.
    pairs = [pair for pair in pairs if len(pair) != 2 or pair[1].isdigit()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{path} must have a file name and a number in each line")
    return pairs

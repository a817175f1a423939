"""CelebA's own lists: who is on a picture, and which split its authors put it in.

"Deep Learning Face Attributes in the Wild", Liu et al., 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ffd_runtime.core.errors import DataError

from ..folders import SPLITS, ClassFolder

# As torchvision, the authors' drive and others' CSVs have them.
PARTITIONS = ("list_eval_partition.txt", "list_eval_partition.csv")
IDENTITIES = ("identity_CelebA.txt", "identity_CelebA.csv")
# The authors' drive has Img/img_align_celeba/, Anno/ and Eval/; others nest the pictures twice.
MAX_PARENTS = 2
LIST_FOLDERS = ("", "Anno", "Eval")
# A list that names fewer of the pictures is of other pictures, or these were renamed.
MIN_MATCHED_SHARE = 0.5


@dataclass(frozen=True)
class Lists:
    """What the lists say of a folder's pictures.

    Attributes:
        splits: by the picture's path in the folder.
        identities: by the picture's path in the folder.
        persons: the list of identities, links followed; None where there is none.
        said: what was found, for a person; empty where nothing looks like CelebA.
    """

    splits: dict[str, str] = field(default_factory=dict)
    identities: dict[str, str] = field(default_factory=dict)
    persons: Path | None = None
    said: str = ""


def read_lists(folder: ClassFolder, name: str) -> Lists:
    """What CelebA's lists say, by the pictures' names without suffix: copies as PNG are common.

    They are looked for in the folder, and above it where it, or what it is a link to, has
    photographs. A folder that lies in a split stays there, whatever the partition says.

    Args:
        folder: of the pictures.
        name: of the folder, for a person.

    Raises:
        DataError: a list is damaged, or names few of the pictures.
    """
    path, pictures = folder.path, folder.listing.pictures
    places = [path / other for other in folder.listing.others]
    # Generated pictures may be numbered like CelebA's, and lie beside it.
    places += _places_above(path) if folder.label == "groundtruth" else ()
    partition = None if folder.split else _first(places, PARTITIONS)
    splits = _match(partition, path, pictures)
    for picture, number in splits.items():
        if number not in ("0", "1", "2"):
            raise DataError(f"CelebA's partition has {number} for {picture}: known are 0, 1 and 2")
        # 0 is training, 1 validation, 2 testing.
        splits[picture] = SPLITS[int(number)]
    persons = _first(places, IDENTITIES)
    identities = _match(persons, path, pictures)
    said = ""
    if splits or identities or _is_called_so(path):
        said = (
            f"{name}: CelebA's partition of {len(splits)}, identity of {len(identities)} of "
            f"{len(pictures)} pictures"
        )
    return Lists(splits, identities, persons and persons.resolve(), said)


def _is_called_so(folder: Path) -> bool:
    return "celeba" in "/".join(folder.resolve().parts[-3:]).lower()


def _places_above(folder: Path) -> Iterator[Path]:
    # A link may lie beside the lists, or what it leads to.
    for start in dict.fromkeys((folder.absolute(), folder.resolve())):
        for parent in start.parents[:MAX_PARENTS]:
            for beside in LIST_FOLDERS:
                yield from (parent / beside / name for name in PARTITIONS + IDENTITIES)


def _first(places: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((path for path in places if path.name in names and path.is_file()), None)


def _match(path: Path | None, folder: Path, pictures: Sequence[str]) -> dict[str, str]:
    """A list's second column, by picture."""
    if path is None:
        return {}
    listed = {PurePosixPath(name).stem: value for name, value in _read_pairs(path)}
    stems = ((picture, PurePosixPath(picture).stem) for picture in pictures)
    found = {picture: listed[stem] for picture, stem in stems if stem in listed}
    if not found and folder not in path.parents and not _is_called_so(folder):
        # Of a folder that lies beside this one.
        return {}
    if len(found) < MIN_MATCHED_SHARE * len(pictures):
        lacking = next(picture for picture in pictures if picture not in found)
        raise DataError(
            f"{path} names {len(found)} of {len(pictures)} pictures, such as {lacking!a} not: "
            "give them their names in CelebA, copy the list again if it is cut off, or, if they "
            "are others, keep it elsewhere"
        )
    return found


def _read_pairs(path: Path) -> list[list[str]]:
    try:
        rows = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    pairs = [row.replace(",", " ").split() for row in rows if row.strip()]
    # A CSV has a heading.
    pairs = [pair for pair in pairs if len(pair) != 2 or pair[1].isdigit()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{path} should have a file's name and a number in each line")
    return pairs

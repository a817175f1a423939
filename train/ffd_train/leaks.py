"""Checks that no image or person is in two splits, and no image in both classes."""

from __future__ import annotations

from collections.abc import Mapping

from ffd_runtime.core.errors import DataError

from .face_data import FaceData, Sample
from .folders import find_shared
from .prepare.picture_metadata import PictureMetadata


def refuse_shared_images(data: FaceData) -> None:
    """Check that identical files are in one split and one class.

    Raises:
        DataError: they are in two.
    """
    first: dict[str, Sample] = {}
    classes, splits = [], []
    for sample in data.samples:
        other = first.setdefault(sample.sha256, sample)
        if other.label != sample.label:
            classes.append((other, sample))
        elif other.split != sample.split:
            splits.append((other, sample))
    for pairs, places in ((classes, "both classes"), (splits, "two splits")):
        if pairs:
            one, two = pairs[0]
            count = f"{len(pairs)} images are" if len(pairs) > 1 else "an image is"
            raise DataError(
                f"{data.root}: {count} in {places}, for example {one.path} and {two.path}: remove "
                "one of each, or pack the folder with ffd-data prepare, which removes copies"
            )


def refuse_shared_people(data: FaceData, metadata: Mapping[str, PictureMetadata]) -> None:
    """Check that the images of each person are in one split; the metadata are by path.

    Raises:
        DataError: a person is in two splits.
    """
    people = ((metadata[s.path].person, s) for s in data.samples)
    shared = find_shared((person, s.split, s.path) for person, s in people if person)
    if shared:
        (_, one), (_, two) = shared[0]
        count = f"{len(shared)} people are" if len(shared) > 1 else "a person is"
        raise DataError(
            f"{data.root}: {count} in two splits, for example in {one} and {two}: move the images "
            "of each person into one split, or pack them without splits with ffd-data prepare, "
            "which keeps them together"
        )

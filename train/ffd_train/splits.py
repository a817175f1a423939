"""Assignment of images to train, val and test where a data set leaves it open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ffd_runtime.model.card import CLASSES

from .folders import SPLITS


class LabelledPath(NamedTuple):
    """An image: path below the root, class index, and split; empty if unassigned."""

    path: str
    label: int
    split: str


def find_created_splits(images: Sequence[LabelledPath]) -> set[str]:
    """Return the splits that `assign_splits` creates or extends."""
    given = {image.split for image in images}
    if "" in given:
        return set(SPLITS)
    return {"train", "val"} if "train" in given and "val" not in given else set()


def find_unassigned(images: Sequence[LabelledPath], label: int) -> list[int]:
    """Return the indices of a class's images that `assign_splits` assigns.

    These are the images without a split. If every image has a split, and val is empty, they are
    those of train.
    """
    own = [i for i, image in enumerate(images) if image.label == label]
    unassigned = [i for i in own if not images[i].split]
    if unassigned or any(image.split == "val" for image in images):
        return unassigned
    return [i for i in own if images[i].split == "train"]


def assign_splits(images: Sequence[LabelledPath], identities: Sequence[str]) -> list[str]:
    """Return a split for every image; given splits are kept.

    For each class, the unassigned tenth with the lowest sha256 becomes val and the next tenth
    test. Each gets at least one image as long as one is left for train. If only val is missing, a
    tenth of train becomes val.

    Args:
        images: all images.
        identities: sha256 of each image; equal images get the same split.
    """
    splits = [image.split for image in images]
    for label in range(len(CLASSES)):
        unassigned = find_unassigned(images, label)
        ranked = sorted({identities[i] for i in unassigned})
        tenth = max(1, round(len(ranked) / 10))
        val = set(ranked[: min(tenth, len(ranked) - 1)])
        test = set(ranked[tenth : min(2 * tenth, len(ranked) - 1)])
        for i in unassigned:
            # Images from train stay there unless they become val.
            other = "train" if splits[i] or identities[i] not in test else "test"
            splits[i] = "val" if identities[i] in val else other
    return splits

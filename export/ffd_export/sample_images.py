"""Real images in memory, to calibrate and to verify models with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.core.pipeline import prepare
from ffd_runtime.core.text import counted
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.model.card import CLASSES, PreprocessSpec
from ffd_train.folders import SPLITS
from ffd_train.scanning import list_samples
from ffd_train.shards import is_packed

T = TypeVar("T")


@dataclass(frozen=True)
class SampleImages:
    """Preprocessed images in memory.

    Attributes:
        sources: path of each image.
        pixels: uint8 [N, size, size, 3], RGB, from `preprocess`.
        labels: 0 generated, 1 groundtruth, None without a label.
        unreadable: path and reason of each unreadable file.
    """

    sources: list[str]
    pixels: npt.NDArray[np.uint8]
    labels: list[int | None]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label and both classes are present."""
        return set(self.labels) == {0, 1}

    def describe(self) -> str:
        """Return a text such as `512 images (256 generated, 256 groundtruth)`."""
        names = [*CLASSES, "unlabelled"]
        counts = [self.labels.count(label) for label in (0, 1, None)]
        parts = ", ".join(f"{n} {name}" for n, name in zip(counts, names, strict=True) if n)
        return f"{counted(len(self), 'image')} ({parts})"

    def batches(self, size: int = 8) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the pixels in batches of at most `size` images."""
        for start in range(0, len(self), size):
            yield self.pixels[start : start + size]

    def spread(self, count: int) -> SampleImages:
        """Return at most `count` images, evenly spaced."""
        return self.select(spread(range(len(self)), count))

    def select(self, indices: Sequence[int]) -> SampleImages:
        """Return the images of some indices."""
        return SampleImages(
            [self.sources[i] for i in indices],
            self.pixels[list(indices)],
            [self.labels[i] for i in indices],
        )


@dataclass(frozen=True)
class Example:
    """An image that is not read yet, and its label: 0 generated, 1 groundtruth, None for none."""

    item: Item
    label: int | None

    @classmethod
    def of_file(cls, path: str) -> Example:
        """Return a file, labelled by its folder."""
        return cls(Item(path), label_of(path))


def prepare_images(examples: Sequence[Example], spec: PreprocessSpec) -> SampleImages:
    """Read, decode and preprocess images as the runtime does; skip and list unreadable files.

    Raises:
        DataError: every file is unreadable.
    """
    with ThreadPoolExecutor(count_cores()) as pool:
        prepared = list(pool.map(partial(prepare, spec=spec), [e.item for e in examples]))
    good = [
        (example, one.image)
        for example, one in zip(examples, prepared, strict=True)
        if not isinstance(one.image, InputError)
    ]
    if not good:
        raise DataError(
            f"none of the {len(examples)} files to calibrate or verify with is a readable image "
            f"(the first is {examples[0].item.source}): give other images"
        )
    return SampleImages(
        [example.item.source for example, _ in good],
        np.stack([pixels for _, pixels in good]),
        [example.label for example, _ in good],
        tuple((p.source, p.image.message) for p in prepared if isinstance(p.image, InputError)),
    )


def find_images(
    folder: os.PathLike[str] | str, count: int, splits: Sequence[str] = SPLITS
) -> list[Example]:
    """Find at most `count` images in a folder, balanced between the classes.

    Args:
        folder: a packed data set, or a folder that is searched recursively. The innermost folder
            called `generated` or `groundtruth` is the label of a file.
        count: largest number of images.
        splits: of a packed data set; the first split with images is used.

    Raises:
        DataError: the folder is absent or empty.
    """
    if is_packed(Path(folder)):
        for split in splits:
            if examples := packed_images(Path(folder), split):
                return balance(examples, count)
        raise DataError(f"{folder}: no images in {' or '.join(splits)}")
    items = find_files([os.fsdecode(folder)]) if os.path.isdir(folder) else ()
    found = [Example.of_file(item.source) for item in items if not item.error]
    if not found:
        raise DataError(f"{folder}: no such folder, or no file in it")
    return balance(found, count)


def packed_images(root: Path, split: str) -> list[Example]:
    """Return the images in a split of a packed data set.

    Raises:
        DataError: the data set is incomplete.
    """
    data = list_samples(root)
    return [Example(data.item(sample), sample.label) for sample in data.split(split)]


def balance(examples: Sequence[Example], count: int) -> list[Example]:
    """Return at most `count` examples, balanced between the classes and evenly spaced in each."""
    groups: dict[int | None, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    chosen: list[Example] = []
    # Start with the smallest class: larger ones take the places that it leaves free.
    ordered = sorted(groups.values(), key=len)
    for index, group in enumerate(ordered):
        chosen += spread(group, (count - len(chosen)) // (len(ordered) - index))
    return sorted(chosen, key=lambda example: example.item.source)


def label_of(path: str) -> int | None:
    """Return the index of the class whose folder contains a path, or None."""
    for part in reversed(PurePath(path).parts[:-1]):
        if part in CLASSES:
            return CLASSES.index(part)
    return None


def spread(values: Sequence[T], count: int) -> list[T]:
    """Return at most `count` values, evenly spaced."""
    if len(values) <= count:
        return list(values)
    return [values[i * len(values) // count] for i in range(count)]

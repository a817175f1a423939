"""Real images, preprocessed once, for calibrating and for comparing models."""

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

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.core.pipeline import prepare
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.model.card import CLASSES, PreprocessSpec
from ffd_runtime.model.devices import count_cores
from ffd_train.folders import SPLITS
from ffd_train.shards import is_packed, read_index

T = TypeVar("T")


@dataclass(frozen=True)
class Images:
    """Preprocessed images in memory.

    Attributes:
        sources: path of each.
        pixels: uint8 [N, size, size, 3], RGB, what `preprocess` gives.
        labels: 0 generated, 1 groundtruth, None where a path does not say it.
        unreadable: path and reason of each that could not be read.
    """

    sources: list[str]
    pixels: npt.NDArray[np.uint8]
    labels: list[int | None]
    unreadable: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def labelled(self) -> bool:
        """Whether every image has a label and both classes are there."""
        return set(self.labels) == {0, 1}

    def describe(self) -> str:
        """Such as `512 images (256 generated, 256 groundtruth)`."""
        names = [*CLASSES, "unlabelled"]
        counts = [self.labels.count(label) for label in (0, 1, None)]
        parts = ", ".join(f"{n} {name}" for n, name in zip(counts, names, strict=True) if n)
        return f"{len(self)} images ({parts})"

    def batches(self, size: int = 8) -> Iterator[npt.NDArray[np.uint8]]:
        """The pixels in parts of at most `size` images."""
        for start in range(0, len(self), size):
            yield self.pixels[start : start + size]

    def first(self, count: int) -> Images:
        """At most `count` of them, spread evenly."""
        return self.select(spread(range(len(self)), count))

    def select(self, numbers: Sequence[int]) -> Images:
        """Those of these numbers, from 0."""
        return Images(
            [self.sources[i] for i in numbers],
            self.pixels[list(numbers)],
            [self.labels[i] for i in numbers],
        )


@dataclass(frozen=True)
class Example:
    """An image that is not read yet.

    Attributes:
        item: gives its bytes.
        label: 0 generated, 1 groundtruth, None where nothing says it.
    """

    item: Item
    label: int | None

    @classmethod
    def of_file(cls, path: str) -> Example:
        """A file, labelled by the folder that it is in."""
        return cls(Item(path), label_of(path))


def prepare_images(examples: Sequence[Example], spec: PreprocessSpec) -> Images:
    """Read, decode and preprocess as the runtime does; what cannot be read is left out, and noted.

    Raises:
        DataError: not one can be read.
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
    return Images(
        [example.item.source for example, _ in good],
        np.stack([pixels for _, pixels in good]),
        [example.label for example, _ in good],
        tuple((p.source, p.image.message) for p in prepared if isinstance(p.image, InputError)),
    )


def find_images(
    folder: os.PathLike[str] | str, count: int, splits: Sequence[str] = SPLITS
) -> list[Example]:
    """Files of a folder, at most `count`, as many of each class as there are.

    Args:
        folder: a packed data set; or searched with everything below it, where a path's innermost
            folder that is called `generated` or `groundtruth` is its label.
        count: how many at most.
        splits: of a packed data set, the first of these that has images is taken.

    Raises:
        DataError: there is no such folder, or nothing in it.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder, or no file in it")
    if is_packed(Path(folder)):
        for split in splits:
            if examples := packed_images(Path(folder), split):
                return balance(examples, count)
        raise DataError(f"{folder}: no images in {' or '.join(splits)}")
    items = find_files([os.fsdecode(folder)])
    found = [Example.of_file(item.source) for item in items if not item.error]
    if not found:
        raise DataError(f"{folder}: no such folder, or no file in it")
    return balance(found, count)


def packed_images(root: Path, split: str | None = None) -> list[Example]:
    """The images of a packed data set, or of one split of it.

    Raises:
        DataError: it is not whole.
    """
    reader, members = read_index(root)
    return [
        Example(
            Item(
                str(root / m.path),
                fetch=partial(reader.read, shard, m.offset, m.size, m.sha256),
            ),
            CLASSES.index(m.label),
        )
        for shard, m in members
        if split in (None, m.split)
    ]


def balance(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of them, as evenly from each class, and over each, as they allow."""
    groups: dict[int | None, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    chosen: list[Example] = []
    # The smallest class first: what it lacks, the others may fill.
    ordered = sorted(groups.values(), key=len)
    for place, group in enumerate(ordered):
        chosen += spread(group, (count - len(chosen)) // (len(ordered) - place))
    return sorted(chosen, key=lambda example: example.item.source)


def label_of(path: str) -> int | None:
    """Index of the class whose folder a path is in, None if it is in none."""
    for part in reversed(PurePath(path).parts[:-1]):
        if part in CLASSES:
            return CLASSES.index(part)
    return None


def spread(values: Sequence[T], count: int) -> list[T]:
    """At most `count` of the values, evenly over all of them."""
    if len(values) <= count:
        return list(values)
    return [values[i * len(values) // count] for i in range(count)]

"""Real images, preprocessed once, for calibrating and for comparing models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ffd_runtime.card import CLASSES, PreprocessSpec
from ffd_runtime.devices import count_cores
from ffd_runtime.errors import DataError, InputError
from ffd_runtime.pipeline import prepare
from ffd_runtime.sources import Item, find_files

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
        chosen = spread(range(len(self)), count)
        return Images(
            [self.sources[i] for i in chosen],
            self.pixels[list(chosen)],
            [self.labels[i] for i in chosen],
        )


def prepare_images(sources: Sequence[str], spec: PreprocessSpec) -> Images:
    """Read, decode and preprocess as the runtime does; what cannot be read is left out, and noted.

    Raises:
        DataError: not one can be read.
    """
    with ThreadPoolExecutor(count_cores()) as pool:
        prepared = list(pool.map(partial(prepare, spec=spec), map(Item, sources)))
    good = [(p.source, p.image) for p in prepared if not isinstance(p.image, InputError)]
    if not good:
        raise DataError(
            f"none of the {len(sources)} files to calibrate or verify with is a readable image "
            f"(the first is {sources[0]}): give other images"
        )
    names = [source for source, _ in good]
    return Images(
        names,
        np.stack([pixels for _, pixels in good]),
        [label_of(name) for name in names],
        tuple((p.source, p.image.message) for p in prepared if isinstance(p.image, InputError)),
    )


def find_images(folder: os.PathLike[str] | str, count: int) -> list[str]:
    """Files of a folder, at most `count`, as many of each class as there are.

    Args:
        folder: searched with everything below it; a path's innermost folder that is called
            `generated` or `groundtruth` is its label.
        count: how many at most.

    Raises:
        DataError: there is no such folder, or nothing in it.
    """
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder")
    found = [item.source for item in find_files([os.fsdecode(folder)]) if not item.error]
    if not found:
        raise DataError(f"{folder}: nothing in it")
    return balance(found, count)


def balance(sources: Sequence[str], count: int) -> list[str]:
    """At most `count` of the paths, as evenly from each class, and over each, as they allow."""
    groups: dict[int | None, list[str]] = {}
    for source in sources:
        groups.setdefault(label_of(source), []).append(source)
    chosen: list[str] = []
    # The smallest class first: what it lacks, the others may fill.
    ordered = sorted(groups.values(), key=len)
    for place, group in enumerate(ordered):
        chosen += spread(group, (count - len(chosen)) // (len(ordered) - place))
    return sorted(chosen)


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

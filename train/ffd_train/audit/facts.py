"""The facts of every image of a data set, as columns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffd_runtime.core.errors import InputError
from ffd_runtime.image.decode import decode
from ffd_runtime.model.devices import count_cores

from ..face_data import FaceData, Sample
from ..scanning import list_samples
from .encoding import Encoding, read_encoding
from .picture import SMALL, Picture, measure_picture

# Images handed to the threads at a time: what Ctrl-C waits for.
_BATCH = 256
# Median texture below which a background counts as plain: nine in ten studio portraits lie below,
# one in six snapshots.
PLAIN = 1.5


@dataclass(frozen=True)
class Fact:
    """One thing that is known of every image.

    Attributes:
        name: its column.
        title: for a person.
        view: where it shows: `file`, `border`, `thumbnail` or `detail`.
        family: facts that say the same; a verdict names the first of them that tells most.
        digits: shown after the point; None for a category.
    """

    name: str
    title: str
    view: str
    family: str
    digits: int | None


# In the order in which a verdict prefers them where they tell equally much: causes first.
FACTS = (
    Fact("format", "format", "file", "format", None),
    Fact("quality", "JPEG quality", "file", "compression", 0),
    Fact("subsampling", "chroma subsampling", "file", "subsampling", None),
    Fact("progressive", "progressive JPEG", "file", "progressive", None),
    Fact("exif", "EXIF", "file", "exif", None),
    Fact("width", "width in pixels", "file", "size", 0),
    Fact("height", "height in pixels", "file", "size", 0),
    Fact("aspect", "aspect (width/height)", "file", "aspect", 2),
    Fact("megapixels", "megapixels", "file", "size", 3),
    Fact("bytes_per_pixel", "bytes per pixel", "file", "compression", 3),
    Fact("kilobytes", "kilobytes", "file", "compression", 1),
    Fact("frame", "bars at opposite sides, % of the side", "border", "frame", 1),
    Fact("texture", "texture of the background", "border", "texture", 1),
    Fact("background_lightness", "lightness of the background", "border", "background", 0),
    Fact("background_redness", "redness of the background", "border", "background", 0),
    Fact("background_yellowness", "yellowness of the background", "border", "background", 0),
    Fact("brightness", "brightness", "thumbnail", "brightness", 0),
    Fact("contrast", "contrast", "thumbnail", "contrast", 0),
    Fact("chroma", "chroma", "thumbnail", "chroma", 0),
    Fact("redness", "redness", "thumbnail", "colour", 0),
    Fact("yellowness", "yellowness", "thumbnail", "colour", 0),
    Fact("sharpness", "sharpness", "detail", "sharpness", 0),
)


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be measured, and why: an `InputError.CODES` code and a sentence."""

    sample: Sample
    code: str
    message: str


@dataclass(frozen=True)
class Table:
    """What is known of N readable images.

    Attributes:
        data: reads them again.
        samples: the readable ones.
        unreadable: the others.
        columns: by name of `FACTS`: float64 [N], NaN where there is none, or str [N]; and
            `frame_grey`.
        digests: sha256 of each file, bytes [N, 32].
        hashes: uint64 [N], perceptual.
        smalls: uint8 [N, 16, 16, 3], BGR: the centre square.
    """

    data: FaceData
    samples: tuple[Sample, ...]
    unreadable: tuple[Unreadable, ...]
    columns: dict[str, npt.NDArray[Any]]
    digests: npt.NDArray[np.uint8]
    hashes: npt.NDArray[np.uint64]
    smalls: npt.NDArray[np.uint8]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """[N], indices into `CLASSES`."""
        return np.array([sample.label for sample in self.samples], np.int64)

    @property
    def sources(self) -> npt.NDArray[np.str_]:
        """[N], by name; empty where the manifest does not say."""
        return np.array([sample.source or "" for sample in self.samples], np.str_)


def list_images(root: Path, sample: int | None = None) -> FaceData:
    """Every labelled image of a data set, none of them read.

    Args:
        root: a folder, as `ffd_train.scanning.list_samples` takes it.
        sample: at most so many of each class and source, chosen by name: the same every time.

    Raises:
        DataError: there are none, or the layout is another one.
    """
    data = list_samples(root)
    return replace(data, samples=tuple(_choose(data.samples, sample)))


def _choose(samples: Sequence[Sample], count: int | None) -> Sequence[Sample]:
    if count is None:
        return samples
    groups: dict[tuple[int, str | None], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.label, sample.source), []).append(sample)
    chosen = {
        one.path for group in groups.values() for one in sorted(group, key=_hash_order)[:count]
    }
    return [sample for sample in samples if sample.path in chosen]


def _hash_order(sample: Sample) -> bytes:
    return hashlib.sha256(sample.path.encode("utf-8", "surrogateescape")).digest()


def measure(data: FaceData, advance: Callable[[], object] = lambda: None) -> Table:
    """Read and decode every image once, in as many threads as there are cores.

    Args:
        data: what to read.
        advance: called after each image.
    """
    count = len(data.samples)
    samples: list[Sample] = []
    unreadable: list[Unreadable] = []
    rows: dict[str, list[Any]] = {name: [] for name in (*(f.name for f in FACTS), "frame_grey")}
    digests = np.empty((count, 32), np.uint8)
    hashes = np.empty(count, np.uint64)
    smalls = np.empty((count, SMALL, SMALL, 3), np.uint8)
    for sample, result in _results(data):
        advance()
        if isinstance(result, InputError):
            unreadable.append(Unreadable(sample, result.code, result.message))
            continue
        digest, encoding, picture = result
        at = len(samples)
        samples.append(sample)
        digests[at] = np.frombuffer(digest, np.uint8)
        hashes[at] = picture.phash
        smalls[at] = picture.small
        for name, value in _row(encoding, picture).items():
            rows[name].append(value)
    known = len(samples)
    return Table(
        data,
        tuple(samples),
        tuple(unreadable),
        _columns(rows),
        digests[:known],
        hashes[:known],
        smalls[:known],
    )


def _columns(rows: dict[str, list[Any]]) -> dict[str, npt.NDArray[Any]]:
    categories = {fact.name for fact in FACTS if fact.digits is None}
    return {
        name: np.array(values, np.str_ if name in categories else np.float64)
        for name, values in rows.items()
    }


# The file's sha256, and what was measured; or why that could not be.
_Result = tuple[bytes, Encoding, Picture] | InputError


def _results(data: FaceData) -> Iterator[tuple[Sample, _Result]]:
    """Every image's result, in order."""
    with ThreadPoolExecutor(count_cores()) as pool:
        for begin in range(0, len(data.samples), _BATCH):
            batch = data.samples[begin : begin + _BATCH]
            yield from zip(batch, pool.map(partial(_read, data), batch), strict=True)


def _read(data: FaceData, sample: Sample) -> _Result:
    try:
        content = data.read(sample)
        image = decode(content)
        encoding = read_encoding(content)
    except InputError as error:
        return error
    return hashlib.sha256(content).digest(), encoding, measure_picture(image)


def _row(encoding: Encoding, picture: Picture) -> dict[str, float | str]:
    pixels = encoding.width * encoding.height
    lightness, redness, yellowness = picture.background
    return {
        "format": encoding.format,
        "quality": np.nan if encoding.quality is None else encoding.quality,
        "subsampling": encoding.subsampling,
        "progressive": "yes" if encoding.progressive else "no",
        "exif": "yes" if encoding.exif else "no",
        "width": encoding.width,
        "height": encoding.height,
        "aspect": encoding.width / encoding.height,
        "megapixels": pixels / 1e6,
        "bytes_per_pixel": encoding.bytes / pixels,
        "kilobytes": encoding.bytes / 1000,
        "frame": 100 * picture.frame,
        "frame_grey": picture.frame_grey,
        "texture": picture.texture,
        "background_lightness": lightness,
        "background_redness": redness,
        "background_yellowness": yellowness,
        "brightness": picture.brightness,
        "contrast": picture.contrast,
        "chroma": picture.chroma,
        "redness": picture.redness,
        "yellowness": picture.yellowness,
        "sharpness": picture.sharpness,
    }


def facts_of_view(view: str) -> Sequence[Fact]:
    """The facts that show in one place."""
    return [fact for fact in FACTS if fact.view == view]

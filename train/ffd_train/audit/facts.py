"""Facts about every image of a data set, as columns."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.errors import InputError
from ffd_runtime.core.ordered_map import map_in_order
from ffd_runtime.image.decode import decode

from ..face_data import FaceData, Sample
from ..scanning import list_samples
from .appearance import SMALL, Appearance, measure_appearance
from .encoding import Encoding, read_encoding

# Number of images that the threads read ahead; Ctrl-C waits for those under way.
_AHEAD = 256
# Median texture below which a background counts as plain: true for nine in ten studio portraits,
# and for one in six snapshots.
PLAIN = 1.5


@dataclass(frozen=True)
class Fact:
    """A property of every image.

    Attributes:
        name: name of the column.
        title: name in tables.
        view: where it is visible: `file`, `border`, `thumbnail` or `detail`.
        family: name of a group of related facts; a finding names one fact of each family.
        digits: decimal places; None for a category.
    """

    name: str
    title: str
    view: str
    family: str
    digits: int | None


# Findings prefer earlier facts, which are closer to the cause.
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
    """An unreadable image, with a code of `InputError.CODES` and a message."""

    sample: Sample
    code: str
    message: str


@dataclass(frozen=True)
class Table:
    """Facts about N readable images.

    Attributes:
        data: the data set.
        samples: readable images.
        unreadable: unreadable images.
        columns: columns by name of `FACTS`, and `frame_grey`: float64 [N], NaN if unknown, or
            str [N].
        digests: uint8 [N, 32], sha256 of each file.
        hashes: uint64 [N], perceptual hashes.
        smalls: uint8 [N, 16, 16, 3], BGR, thumbnails of the centre squares.
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
        """[N], names of the sources; empty if unknown."""
        return np.array([sample.source or "" for sample in self.samples], np.str_)


def list_images(root: Path, sample: int | None = None) -> FaceData:
    """List the labelled images of a data set without reading them.

    `sample` limits the images of each class and source, which a hash of the name chooses.

    Raises:
        DataError: there is no image, or the layout is unknown.
    """
    data = list_samples(root)
    if sample is None:
        return data
    counts: Counter[tuple[int, str | None]] = Counter()
    chosen = set()
    for one in sorted(data.samples, key=_hash_order):
        counts[one.label, one.source] += 1
        if counts[one.label, one.source] <= sample:
            chosen.add(one.path)
    return replace(data, samples=tuple(one for one in data.samples if one.path in chosen))


def _hash_order(sample: Sample) -> bytes:
    return hashlib.sha256(sample.path.encode("utf-8", "surrogateescape")).digest()


def measure(data: FaceData, advance: Callable[[], object] = lambda: None) -> Table:
    """Read and decode every image once, in one thread per core; call `advance` after each."""
    count = len(data.samples)
    samples: list[Sample] = []
    unreadable: list[Unreadable] = []
    rows: dict[str, list[Any]] = {name: [] for name in (*(f.name for f in FACTS), "frame_grey")}
    digests = np.empty((count, 32), np.uint8)
    hashes = np.empty(count, np.uint64)
    smalls = np.empty((count, SMALL, SMALL, 3), np.uint8)
    with ThreadPoolExecutor(count_cores()) as pool:
        results = map_in_order(pool, partial(_read, data), data.samples, ahead=_AHEAD)
        for sample, result in zip(data.samples, results, strict=True):
            advance()
            if isinstance(result, InputError):
                unreadable.append(Unreadable(sample, result.code, result.message))
                continue
            digest, encoding, appearance = result
            at = len(samples)
            samples.append(sample)
            digests[at] = np.frombuffer(digest, np.uint8)
            hashes[at] = appearance.phash
            smalls[at] = appearance.small
            row = _row(encoding, appearance)
            for name, values in rows.items():
                values.append(row[name])
    known = len(samples)
    categories = {fact.name for fact in FACTS if fact.digits is None}
    columns = {
        name: np.array(values, np.str_ if name in categories else np.float64)
        for name, values in rows.items()
    }
    arrays = digests[:known], hashes[:known], smalls[:known]
    return Table(data, tuple(samples), tuple(unreadable), columns, *arrays)


# The sha256 of the file, its encoding and its content, or the error.
_Result = tuple[bytes, Encoding, Appearance] | InputError


def _read(data: FaceData, sample: Sample) -> _Result:
    try:
        content = data.read(sample)
        image = decode(content)
        encoding = read_encoding(content)
    except InputError as error:
        return error
    return hashlib.sha256(content).digest(), encoding, measure_appearance(image)


def _row(encoding: Encoding, appearance: Appearance) -> dict[str, Any]:
    """Return the facts by name, and other measurements."""
    pixels = encoding.width * encoding.height
    lightness, redness, yellowness = appearance.background
    return {
        **vars(encoding),
        **vars(appearance),
        "quality": np.nan if encoding.quality is None else encoding.quality,
        "progressive": "yes" if encoding.progressive else "no",
        "exif": "yes" if encoding.exif else "no",
        "aspect": encoding.width / encoding.height,
        "megapixels": pixels / 1e6,
        "bytes_per_pixel": encoding.bytes / pixels,
        "kilobytes": encoding.bytes / 1000,
        "frame": 100 * appearance.frame,
        "background_lightness": lightness,
        "background_redness": redness,
        "background_yellowness": yellowness,
    }

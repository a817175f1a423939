"""Data sets on disk: what is in them, how they are split, and how a sample is read."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ffd_runtime.card import CLASSES, PreprocessSpec
from ffd_runtime.decode import decode, read_file
from ffd_runtime.errors import DataError, InputError
from ffd_runtime.preprocess import preprocess

from .augment import Augmentation

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .tif .tiff .gif .avif .ppm .pgm".split()
)


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        path: relative to the data set's root, with forward slashes.
        label: index into `CLASSES`: 0 generated, 1 groundtruth.
        split: `train`, `val` or `test`.
        sha256: of the file.
        source: where it came from, by manifest.csv; None where that does not say.
    """

    path: str
    label: int
    split: str
    sha256: str
    source: str | None = None


@dataclass(frozen=True)
class FaceData:
    """A scanned data set: every image was read and decoded once.

    Attributes:
        root: the folder.
        samples: in the order of their paths.
        ignored: files left out because their names do not end like an image's.
    """

    root: Path
    samples: tuple[Sample, ...]
    ignored: int = 0

    def split(self, name: str) -> list[Sample]:
        """The samples of one split."""
        return [sample for sample in self.samples if sample.split == name]

    @property
    def manifest_sha256(self) -> str:
        """Identity of the training manifest: path, label, split and content of every image."""
        digest = hashlib.sha256()
        for s in self.samples:
            digest.update(
                f"{s.path}\0{s.label}\0{s.split}\0{s.sha256}\n".encode("utf-8", "surrogateescape")
            )
        return digest.hexdigest()


def scan(root: str | Path, splits: Sequence[str] = SPLITS) -> FaceData:
    """Find, read and decode every image of a data set once.

    `root` holds `generated/` and `groundtruth/`, or `train/`, `val/` and `test/` with those two in
    each. Without split folders, 80/10/10 by content, so that copies of a picture stay together;
    with `train/` but no `val/`, a tenth of train becomes val. `manifest.csv` in the root, where
    there is one, names each path's source.

    Args:
        root: the folder.
        splits: splits that will be used, each of which must hold both classes.

    Raises:
        DataError: the layout is another one, a class is empty, or images cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    sources = _read_sources(root / "manifest.csv")
    found, ignored = _find(root)
    if not found:
        raise DataError(
            f"{root} has no images: expected the folders {CLASSES[0]}/ and {CLASSES[1]}/, "
            "or train/, val/ and test/ with these two in each"
        )
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda item: _check(root / item[0]), found))
    _refuse_unreadable([(found[i][0], d) for i, d in enumerate(digests) if not _is_digest(d)])
    samples = tuple(
        Sample(path, label, split, digest, sources.get(path))
        for (path, label, _), split, digest in zip(
            found, _assign(found, digests), digests, strict=True
        )
    )
    data = FaceData(root, samples, ignored)
    for split in splits:
        _require_both_classes(root, data.split(split), split)
    return data


def write_manifest(path: Path, data: FaceData) -> None:
    """Write what a run was trained on: path, label, split, source and sha256 of every image."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split", "source", "sha256"])
        for s in data.samples:
            rows.writerow([s.path, CLASSES[s.label], s.split, s.source, s.sha256])


def find_labelled(root: Path, split: str | None = None) -> list[Sample]:
    """Labelled images for evaluation, not decoded.

    Args:
        root: laid out as for `scan`, and split like there.
        split: `train`, `val` or `test`; None for test where there are split folders, else for
            everything.

    Raises:
        DataError: there are none, one class has none, or the split is not there.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found, _ = _find(root)
    given = {folder for _, _, folder in found if folder}
    wanted = split or ("test" if given else None)
    made = _makes(given)
    if wanted and wanted not in given | made:
        there = ", ".join(sorted(given | made))
        raise DataError(f"{root} has no images in {wanted}/ (it has {there}): choose --split")
    folders = [folder or "" for _, _, folder in found]
    if wanted in made:
        folders = _assign(found, [_identity(root / path) for path, _, _ in found])
    sources = _read_sources(root / "manifest.csv")
    samples = [
        Sample(path, label, folder, "", sources.get(path))
        for (path, label, _), folder in zip(found, folders, strict=True)
        if wanted in (None, folder)
    ]
    _require_both_classes(root, samples, wanted or "it")
    return samples


# Path, label, and the split folder if there is one.
Found = tuple[str, int, str | None]


def _find(root: Path) -> tuple[list[Found], int]:
    """Every image, and how many other files there were."""
    split_folders = [name for name in SPLITS if (root / name).is_dir()]
    found: list[Found] = []
    ignored = 0
    for split in split_folders or (None,):
        for label, name in enumerate(CLASSES):
            folder = root / split / name if split else root / name
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in SUFFIXES:
                    found.append((path.relative_to(root).as_posix(), label, split))
                elif not path.is_dir():
                    ignored += 1
    return found, ignored


def _check(path: Path) -> str:
    """The file's sha256, or what is wrong with it."""
    try:
        content = read_file(path)
        decode(content)
    except InputError as error:
        return f"{error.code}: {error.message}"
    return hashlib.sha256(content).hexdigest()


def _is_digest(text: str) -> bool:
    return len(text) == 64 and ":" not in text


def _refuse_unreadable(bad: list[tuple[str, str]]) -> None:
    if bad:
        shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{len(bad)} images cannot be read, remove or replace them: {shown}{more}")


def _makes(given: set[str]) -> set[str]:
    """The splits that are made here, by the split folders that there are."""
    if not given:
        return set(SPLITS)
    return {"train", "val"} if "train" in given and "val" not in given else set()


def _assign(found: list[Found], identities: Sequence[str]) -> list[str]:
    """A split for every image: its folder's, or one by content where that must be made.

    Of each class, the tenth of the pictures whose sha256 is lowest is val, and the next tenth test
    if that is made too; at least one picture each, as long as one is left to train on.
    """
    given = {folder for _, _, folder in found if folder}
    made = _makes(given)
    splits = [folder or "" for _, _, folder in found]
    for label in range(len(CLASSES)):
        free = [
            i
            for i, (_, own, folder) in enumerate(found)
            if own == label and (folder or "train") in made
        ]
        ranked = sorted({identities[i] for i in free})
        tenth = max(1, round(len(ranked) / 10))
        val = set(ranked[: min(tenth, len(ranked) - 1)])
        test = set(ranked[tenth : min(2 * tenth, len(ranked) - 1)]) if "test" in made else set()
        for i in free:
            identity = identities[i]
            splits[i] = "val" if identity in val else "test" if identity in test else "train"
    return splits


def _identity(path: Path) -> str:
    """A file's sha256; of one that cannot be read, which evaluation will report, of its name."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except InputError:
        return hashlib.sha256(os.fsencode(path)).hexdigest()


def _require_both_classes(root: Path, samples: list[Sample], where: str) -> None:
    for label, name in enumerate(CLASSES):
        if not any(sample.label == label for sample in samples):
            raise DataError(f"{root}: no {name} image in {where}: both classes are needed")


def _read_sources(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    # Excel writes a byte order mark, and file names may be any bytes.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        if not {"path", "source"} <= set(rows.fieldnames or ()):
            return {}
        try:
            return {row["path"]: row["source"] for row in rows}
        except csv.Error as error:
            raise DataError(f"{path} is no CSV ({error}): mend or remove it") from None


class FaceDataset(Dataset[tuple[Tensor, int]]):
    """Samples as the network takes them.

    An item is a uint8 tensor [size, size, 3], RGB, equal byte for byte to what the runtime feeds,
    and its label.

    Args:
        data: a scanned data set.
        samples: which of it.
        spec: preprocessing.
        augmentation: None to leave images as they are.
        crop: side of a random crop of the preprocessed image, in pixels; None for the whole.
        seed: with `epoch` and the index, decides every random choice.
        epoch: set it before each epoch.
    """

    def __init__(
        self,
        data: FaceData,
        samples: Sequence[Sample],
        spec: PreprocessSpec,
        augmentation: Augmentation | None = None,
        crop: int | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.root = data.root
        self.samples = samples
        self.spec = spec
        self.augmentation = augmentation
        self.crop = crop
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        image = decode(read_file(self.root / sample.path), at_least=self.spec.decode_side)
        if self.augmentation:
            image = self.augmentation(image, rng)
        pixels = preprocess(image, self.spec)
        if self.crop:
            top, left = rng.integers(0, self.spec.size - self.crop + 1, size=2)
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        return torch.from_numpy(np.ascontiguousarray(pixels)), sample.label


class Shuffled(Sampler[int]):
    """The order of an epoch: the same however often it is asked for, unlike a generator's.

    Args:
        size: how many samples.
        seed: of the run.
        epoch: over all stages.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist()

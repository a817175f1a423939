"""Data sets on disk: what is in them, how they are split, and how a sample is read."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ffd_runtime.card import CLASSES, PreprocessSpec
from ffd_runtime.decode import decode, read_file
from ffd_runtime.devices import count_cores
from ffd_runtime.errors import DataError, InputError
from ffd_runtime.preprocess import preprocess
from ffd_runtime.sources import Item

from .folders import SPLITS, find_shared, list_files, list_folders, read_rows
from .recipe import Recipe
from .shards import BEGUN, DATASET, MANIFEST, ShardReader, is_packed, read_index


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        path: relative to the data set's root, with forward slashes; of a packed one,
            `train-000000.tar!/KEY.jpg`.
        label: index into `CLASSES`: 0 generated, 1 groundtruth.
        split: `train`, `val` or `test`.
        sha256: of the file; empty where it was not read.
        source: where it came from, by manifest.csv; None where that does not say.
        shard: number of the shard that holds it; None for a file of its own.
        offset: of its bytes in the shard.
        size: of its bytes in the shard.
    """

    path: str
    label: int
    split: str
    sha256: str
    source: str | None = None
    shard: int | None = None
    offset: int = 0
    size: int = 0


@dataclass(frozen=True)
class FaceData:
    """The samples of a data set, and how they are read.

    Attributes:
        root: the folder.
        samples: split by split and class by class, by path; packed ones as they lie in the shards.
        ignored: files left out, hidden ones and those whose names do not end like an image's.
        shards: reads a packed data set; None for a folder of pictures.
    """

    root: Path
    samples: tuple[Sample, ...]
    ignored: int = 0
    shards: ShardReader | None = field(default=None, compare=False, repr=False)

    def split(self, name: str) -> list[Sample]:
        """The samples of one split."""
        return [sample for sample in self.samples if sample.split == name]

    def read(self, sample: Sample) -> bytes:
        """The file of a sample.

        Raises:
            InputError: it cannot be read any more, or its shard was changed.
        """
        if self.shards and sample.shard is not None:
            return self.shards.read(sample.shard, sample.offset, sample.size, sample.sha256)
        return read_file(self.root / sample.path)

    def item(self, sample: Sample) -> Item:
        """A sample as the runtime's pipeline takes it, named by its whole path."""
        fetch = None if sample.shard is None else partial(self.read, sample)
        return Item(str(self.root / sample.path), fetch=fetch)

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
    """Find every image of a data set; read and decode each once, unless they are packed.

    `root` holds the shards of `ffd-data prepare`, whose pictures were checked when they were packed
    and are compared with their sha256 whenever they are read. Or it holds `generated/` and
    `groundtruth/`, or `train/`, `val/` and `test/` with those two in each. Without split folders,
    80/10/10 by content, so that copies of a picture stay together; with `train/` but no `val/`, a
    tenth of train becomes val. `manifest.csv` in the root, where there is one, names each path's
    source, and identity.

    Args:
        root: the folder.
        splits: splits that will be used, each of which must hold both classes.

    Raises:
        DataError: the layout is another one, a class is empty, images cannot be read, or the same
            picture is in two splits or in both classes, or a person in two splits.
    """
    root = Path(root)
    data = _open_packed(root) if is_packed(root) else _scan_folders(root)
    for split in splits:
        _require_both_classes(root, {sample.label for sample in data.split(split)}, split)
    _refuse_leaks(data)
    return data


def leave_out(data: FaceData, sources: Sequence[str]) -> FaceData:
    """A data set for training without some of its sources.

    Raises:
        DataError: there is no such source, or a class has no image left to train or validate on.
    """
    if not sources:
        return data
    there = sorted({sample.source for sample in data.samples if sample.source})
    for source in sources:
        if source not in there:
            names = (
                f"it has {', '.join(there)}" if there else "it has no manifest.csv that names any"
            )
            raise DataError(f"{data.root}: no source {source!r} to leave out: {names}")
    kept = tuple(sample for sample in data.samples if sample.source not in sources)
    for split in ("train", "val"):
        _require_both_classes(data.root, {s.label for s in kept if s.split == split}, split)
    return replace(data, samples=kept)


def _open_packed(root: Path) -> FaceData:
    """A data set of shards, none of them read."""
    reader, members = read_index(root)
    samples = tuple(
        Sample(m.path, CLASSES.index(m.label), m.split, m.sha256, m.source, n, m.offset, m.size)
        for n, m in members
    )
    return FaceData(root, samples, shards=reader)


def _scan_folders(root: Path) -> FaceData:
    """A data set of single files, each read and decoded."""
    found, ignored = find_images(root)
    known = _read_manifest(root, found)
    # Before all of one class is read in vain.
    _require_both_classes(root, {label for _, label, _ in found}, "it")
    with ThreadPoolExecutor(count_cores()) as pool:
        digests = list(pool.map(lambda item: _check(root / item[0]), found))
    _refuse_unreadable([(found[i][0], d) for i, d in enumerate(digests) if not _is_digest(d)])
    samples = tuple(
        Sample(path, label, split, digest, _source(known, path))
        for (path, label, _), split, digest in zip(
            found, _assign(found, digests), digests, strict=True
        )
    )
    _refuse_shared_identities(root, samples, known)
    return FaceData(root, samples, ignored)


def manifest_bytes(data: FaceData) -> bytes:
    """What a run was trained on, as CSV: path, label, split, source and sha256 of every image."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["path", "label", "split", "source", "sha256"])
    for s in data.samples:
        rows.writerow([s.path, CLASSES[s.label], s.split, s.source, s.sha256])
    return text.getvalue().encode("utf-8", "surrogateescape")


def find_labelled(root: Path, split: str | None = None) -> FaceData:
    """Labelled images for evaluation, not decoded.

    Args:
        root: laid out as for `scan`, and split like there.
        split: `train`, `val` or `test`; None for test where the images are split already, else for
            everything.

    Returns:
        The wanted samples alone. Those of folders have no sha256, and where they are not split and
        all are wanted, no split.

    Raises:
        DataError: there are none, one class has none, or the split is not there.
    """
    if is_packed(root):
        packed = _open_packed(root)
        samples = packed.split(split or "test")
        data = FaceData(root, tuple(samples), shards=packed.shards)
    else:
        data = _find_in_folders(root, split)
    labels = {sample.label for sample in data.samples}
    _require_both_classes(root, labels, split or "what is measured")
    return data


def _find_in_folders(root: Path, split: str | None) -> FaceData:
    found, ignored = find_images(root)
    given = {folder for _, _, folder in found if folder}
    wanted = split or ("test" if given else None)
    made = _makes(given)
    if wanted and wanted not in given | made:
        there = ", ".join(sorted(given | made))
        raise DataError(f"{root} has no images in {wanted}/ (it has {there}): choose --split")
    folders = [folder or "" for _, _, folder in found]
    if wanted in made:
        folders = _assign(found, [_identity(root / path) for path, _, _ in found])
    known = _read_manifest(root, found)
    samples = tuple(
        Sample(path, label, folder, "", _source(known, path))
        for (path, label, _), folder in zip(found, folders, strict=True)
        if wanted in (None, folder)
    )
    return FaceData(root, samples, ignored)


# Path, label, and the split folder if there is one.
Found = tuple[str, int, str | None]


def list_samples(root: Path) -> FaceData:
    """Every labelled image, none of them read, also where a class has none.

    Samples of folders have no sha256, and where the folders are not split, no split.

    Raises:
        DataError: there are none, or the layout is another one.
    """
    if is_packed(root):
        return _open_packed(root)
    found, ignored = find_images(root)
    known = _read_manifest(root, found)
    samples = [Sample(path, label, at or "", "", _source(known, path)) for path, label, at in found]
    return FaceData(root, tuple(samples), ignored)


def find_images(root: Path) -> tuple[list[Found], int]:
    """Every image, and how many other files there were.

    Raises:
        DataError: there is no such folder, no image, or another layout: a split's folder is named
            otherwise, or a class lies beside the splits.
    """
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such folder")
    names = list_folders(root)
    for name in names:
        meant = _MEANT.get(name.lower(), name.lower())
        if meant in SPLITS and name not in SPLITS and set(CLASSES) & set(list_folders(root / name)):
            raise DataError(f"{root / name} would not be read: rename it to {meant}/")
    splits = [split for split in SPLITS if split in names]
    beside = [name for name in CLASSES if name in names]
    if splits and beside:
        raise DataError(
            f"{root} has {beside[0]}/ beside {splits[0]}/: put all pictures into splits, or remove "
            f"{splits[0]}/"
        )
    found, ignored = _find(root, splits)
    if not found:
        raise DataError(_without_images(root))
    return found, ignored


def _without_images(root: Path) -> str:
    if (root / BEGUN).exists():
        return f"{root} was not packed to its end: run its ffd-data prepare again, it goes on"
    if any(root.glob("*.tar")):
        return (
            f"{root} has shards but no {DATASET}: copy that from where it was packed, or remove "
            "the folder and pack it again"
        )
    return (
        f"{root} has no images: expected the folders {CLASSES[0]}/ and {CLASSES[1]}/, "
        "or train/, val/ and test/ with these two in each" + _instead(root)
    )


# What others call the splits.
_MEANT = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def _instead(root: Path) -> str:
    """The end of an error: which folders are there in place of a class's."""
    places = [root / split for split in SPLITS if (root / split).is_dir()] or [root]
    others = {
        f"{(place / name).relative_to(root).as_posix()}/"
        for place in places
        for name in list_folders(place)
        if name not in CLASSES and not name.startswith(".")
    }
    if not others:
        return ""
    shown = ", ".join(sorted(others)[:4]) + (", ..." if len(others) > 4 else "")
    return f" (it has {shown}; if that is one of the classes, rename it)"


def _find(root: Path, splits: Sequence[str]) -> tuple[list[Found], int]:
    found: list[Found] = []
    ignored = 0
    for split in splits or (None,):
        for label, name in enumerate(CLASSES):
            folder = f"{split}/{name}" if split else name
            if os.path.isdir(root / folder):
                listing = list_files(root / folder)
                found += [(f"{folder}/{path}", label, split) for path in listing.pictures]
                ignored += listing.ignored
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


def _require_both_classes(root: Path, labels: Collection[int], where: str) -> None:
    for label, name in enumerate(CLASSES):
        if label not in labels:
            raise DataError(
                f"{root}: no {name} image in {where}: both classes are needed" + _instead(root)
            )


def _refuse_leaks(data: FaceData) -> None:
    """A picture that is trained on and measured with, or that is of both classes.

    Raises:
        DataError: there are such, byte for byte.
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
            count = f"{len(pairs)} pictures are" if len(pairs) > 1 else "a picture is"
            raise DataError(
                f"{data.root}: {count} in {places}, such as {one.path} and {two.path}: remove "
                "them from one, or pack the folder with ffd-data prepare, which does"
            )


def _read_manifest(root: Path, found: Sequence[Found]) -> dict[str, dict[str, str]]:
    return read_rows(root / MANIFEST, [path for path, _, _ in found])


def _source(known: dict[str, dict[str, str]], path: str) -> str | None:
    return known.get(path, {}).get("source")


def _refuse_shared_identities(
    root: Path, samples: Sequence[Sample], known: dict[str, dict[str, str]]
) -> None:
    """A person who is trained on and measured with.

    Raises:
        DataError: there are such.
    """
    persons = ((known.get(s.path, {}).get("identity"), s) for s in samples)
    shared = find_shared((person, s.split, s.path) for person, s in persons if person)
    if shared:
        (_, one), (_, two) = shared[0]
        count = f"{len(shared)} persons are" if len(shared) > 1 else "a person is"
        raise DataError(
            f"{root}: {count} in two splits, such as on {one} and {two}: move the pictures of each "
            "into one split, or pack them unsplit with ffd-data prepare, which keeps them together"
        )


class UnreadableSampleError(DataError):
    """A picture that could be read when training began cannot be read any more.

    A loader's worker passes it on as text, with its traceback around it; the message stays a line.
    """

    def __init__(self, text: str) -> None:
        """Of `PATH: reason`, or of the text that a worker's error is passed on as."""
        super().__init__(text.strip().rpartition(f"{type(self).__name__}: ")[2])


class FaceDataset(Dataset[tuple[Tensor, int]]):
    """Samples as the network takes them.

    An item is a uint8 tensor [size, size, 3], RGB, equal byte for byte to what the runtime feeds,
    and its label. It is asked for by the sample's index, or, where training draws a sample more
    than once, by the position of the draw and the index.

    Args:
        data: a scanned data set.
        samples: which of it.
        spec: preprocessing.
        recipe: of augmentation; None to leave images as they are.
        crop: side of a random crop of the preprocessed image, in pixels; None for the whole.
        sizes: the preprocessed image's side is drawn from low to high, both included, so that faces
            are seen at several scales; None for the spec's. Low is at least `crop`.
        seed: with `epoch` and the draw, decides every random choice.
        epoch: over all stages.
    """

    def __init__(
        self,
        data: FaceData,
        samples: Sequence[Sample],
        spec: PreprocessSpec,
        recipe: Recipe | None = None,
        crop: int | None = None,
        sizes: tuple[int, int] | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> None:
        self.data = data
        self.samples = samples
        self.spec = spec
        self.recipe = recipe
        self.crop = crop
        self.sizes = sizes
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        draw, index = key if isinstance(key, tuple) else (key, key)
        sample = self.samples[index]
        rng = np.random.default_rng((self.seed, self.epoch, draw))
        # What is done to a picture is done to all of it, whatever format it is in.
        at_least = 0 if self.recipe else self.spec.decode_side
        try:
            image = decode(self.data.read(sample), at_least=at_least)
        except InputError as error:
            raise UnreadableSampleError(
                f"{self.data.root / sample.path}: {error.message}"
            ) from None
        if self.recipe:
            image = self.recipe(image, rng)
        spec = self.spec
        if self.sizes:
            spec = replace(spec, size=int(rng.integers(self.sizes[0], self.sizes[1] + 1)))
        pixels = preprocess(image, spec)
        if self.crop:
            top, left = rng.integers(0, spec.size - self.crop + 1, size=2)
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        return torch.from_numpy(np.ascontiguousarray(pixels)), sample.label

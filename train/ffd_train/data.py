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

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.inputs import Item
from ffd_runtime.model.card import CLASSES, PreprocessSpec
from ffd_runtime.model.devices import count_cores

from .augmentation import Recipe
from .folders import SPLITS, ClassFolder, find_shared, list_files, list_folders, read_rows
from .prepare.picture_metadata import Known, read_known
from .shards import BEGUN, DATASET, MANIFEST, ShardReader, is_packed, read_index

GENERATED, PHOTOGRAPH = range(len(CLASSES))


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
        notes: what a person is told of it.
    """

    root: Path
    samples: tuple[Sample, ...]
    ignored: int = 0
    shards: ShardReader | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

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
    source, identity and split, and CelebA's lists are found as by `ffd-data prepare`; what they
    put into a split stays there.

    Args:
        root: the folder.
        splits: splits that will be used, each of which must hold both classes.

    Raises:
        DataError: the layout is another one, a class is empty, images cannot be read, what is said
            of them is damaged or contradicts their folders, or the same picture is in two splits or
            in both classes, or a person in two splits.
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
    folders = find_images(root)
    known, notes = read_known(folders, root.resolve().name)
    found = _place(folders, known)
    # Before all of one class is read in vain.
    _require_both_classes(root, {label for _, label, _ in found}, "it")
    with ThreadPoolExecutor(count_cores()) as pool:
        digests = list(pool.map(lambda item: _check(root / item[0]), found))
    _refuse_unreadable([(found[i][0], d) for i, d in enumerate(digests) if not _is_digest(d)])
    samples = tuple(
        Sample(path, label, split, digest, known[path].source or None)
        for (path, label, _), split, digest in zip(
            found, _assign(found, digests), digests, strict=True
        )
    )
    _refuse_shared_identities(root, samples, known)
    return FaceData(root, samples, _ignored(folders), notes=tuple(notes))


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
        wanted = split or "test"
        samples = packed.split(wanted)
        if not samples:
            raise _no_images(root, wanted, {sample.split for sample in packed.samples})
        data = FaceData(root, tuple(samples), shards=packed.shards)
    else:
        data = _find_in_folders(root, split)
    labels = {sample.label for sample in data.samples}
    _require_both_classes(root, labels, split or "what is measured")
    return data


def _find_in_folders(root: Path, split: str | None) -> FaceData:
    folders = find_images(root)
    known, notes = read_known(folders, root.resolve().name)
    found = _place(folders, known)
    splits = [given for _, _, given in found]
    given = set(filter(None, splits))
    wanted = split or ("test" if given else None)
    made = _makes(splits)
    if wanted and wanted not in given | made:
        raise _no_images(root, f"{wanted}/", given | made)
    if wanted in made:
        # Few may have no split yet, and only these have to be read.
        free = {i for label in range(len(CLASSES)) for i in _find_free(found, label)}
        splits = _assign(
            found,
            [_identity(root / path) if i in free else "" for i, (path, *_) in enumerate(found)],
        )
    samples = tuple(
        Sample(path, label, at, "", known[path].source or None)
        for (path, label, _), at in zip(found, splits, strict=True)
        if wanted in (None, at)
    )
    return FaceData(root, samples, _ignored(folders), notes=tuple(notes))


def _no_images(root: Path, wanted: str, there: Collection[str]) -> DataError:
    has = ", ".join(sorted(there))
    return DataError(f"{root} has no images in {wanted} (it has {has}): choose --split")


# Path, label, and the split that is given; empty for none.
Found = tuple[str, int, str]


def _place(folders: Sequence[ClassFolder], known: dict[str, Known]) -> list[Found]:
    """Every picture, and where it was put; a person's others go where one was put."""
    persons: dict[tuple[Path, str] | None, str] = {
        of.person: of.split for of in known.values() if of.person and of.split
    }
    return [
        (path, CLASSES.index(folder.label), of.split or persons.get(of.person, ""))
        for folder in folders
        for path in folder.pictures
        for of in (known[path],)
    ]


def _ignored(folders: Sequence[ClassFolder]) -> int:
    return sum(folder.listing.ignored for folder in folders)


def list_samples(root: Path) -> FaceData:
    """Every labelled image, none of them read, also where a class has none.

    Samples of folders have no sha256, and where the folders are not split, no split.

    Raises:
        DataError: there are none, or the layout is another one.
    """
    if is_packed(root):
        return _open_packed(root)
    folders = find_images(root)
    rows = read_rows(root / MANIFEST, [path for folder in folders for path in folder.pictures])
    samples = [
        Sample(
            path, CLASSES.index(folder.label), folder.split, "", rows.get(path, {}).get("source")
        )
        for folder in folders
        for path in folder.pictures
    ]
    return FaceData(root, tuple(samples), _ignored(folders))


def find_images(root: Path) -> list[ClassFolder]:
    """The folders of both classes, split by split, with every image.

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
    folders = [
        ClassFolder(root, below, label, split, list_files(root / below))
        for split in splits or ("",)
        for label in CLASSES
        if os.path.isdir(root / (below := f"{split}/{label}" if split else label))
    ]
    if not any(folder.listing.pictures for folder in folders):
        raise DataError(_without_images(root))
    return folders


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


def _makes(given: Sequence[str]) -> set[str]:
    """The splits that are made here, by those that the pictures were put in."""
    if "" in given:
        return set(SPLITS)
    return {"train", "val"} if "train" in given and "val" not in given else set()


def _find_free(found: Sequence[Found], label: int) -> list[int]:
    """Pictures of a class without a split; of train, where nothing was put in val."""
    own = [i for i, (_, of, _) in enumerate(found) if of == label]
    free = [i for i in own if not found[i][2]]
    if free or any(split == "val" for _, _, split in found):
        return free
    return [i for i in own if found[i][2] == "train"]


def _assign(found: Sequence[Found], identities: Sequence[str]) -> list[str]:
    """A split for every image: the one that is given, or one by content where that must be made.

    Of the free ones of each class, the tenth whose sha256 is lowest is val, and the next tenth test
    if that is made too; at least one picture each, as long as one is left to train on.
    """
    splits = [split for _, _, split in found]
    for label in range(len(CLASSES)):
        free = _find_free(found, label)
        ranked = sorted({identities[i] for i in free})
        tenth = max(1, round(len(ranked) / 10))
        val = set(ranked[: min(tenth, len(ranked) - 1)])
        rest = set(ranked[tenth : min(2 * tenth, len(ranked) - 1)])
        for i in free:
            # What came from train stays there.
            after = "train" if splits[i] or identities[i] not in rest else "test"
            splits[i] = "val" if identities[i] in val else after
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


def _refuse_shared_identities(
    root: Path, samples: Sequence[Sample], known: dict[str, Known]
) -> None:
    """A person who is trained on and measured with.

    Raises:
        DataError: there are such.
    """
    persons = ((known[s.path].person, s) for s in samples)
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
    and its label: the sample's, or generated where the recipe makes a pseudo-fake of a photograph.
    It is asked for by the sample's index, or, where training draws a sample more than once, by the
    position of the draw and the index.

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
        label = sample.label
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
            if label == PHOTOGRAPH and (fake := self.recipe.fake(image, rng)) is not None:
                image, label = fake, GENERATED
            image = self.recipe(image, rng)
        spec = self.spec
        if self.sizes:
            spec = replace(spec, size=int(rng.integers(self.sizes[0], self.sizes[1] + 1)))
        pixels = preprocess(image, spec)
        if self.crop:
            top, left = rng.integers(0, spec.size - self.crop + 1, size=2)
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        return torch.from_numpy(np.ascontiguousarray(pixels)), label

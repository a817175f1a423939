"""Discovery of a data set's images, in folders or shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.core.file_hash import is_sha256
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.model.card import CLASSES

from .class_folders import count_ignored, find_class_folders, require_both_classes
from .face_data import FaceData, Sample
from .folders import SPLITS, ClassFolder, refuse_shared_people
from .prepare.image_metadata import ImageMetadata, read_metadata
from .shards import is_packed, read_index
from .splits import LabelledPath, assign_splits, find_created_splits, find_unassigned


def scan(root: str | Path, splits: Sequence[str] = SPLITS) -> FaceData:
    """Find the images of a data set for training.

    `root` is either a packed data set (see `ffd-data prepare`) or a folder with `generated/` and
    `groundtruth/`, optionally in each of `train/`, `val/` and `test/`. Images in folders are read
    and decoded once; packed images are checked against their sha256 on every read.

    Folders without splits are split 80/10/10 by content, so that copies stay together. If only
    `val/` is missing, a tenth of train becomes val. `manifest.csv` in the root may name each
    image's source, identity and split; CelebA's lists are found as by `ffd-data prepare`. Splits
    from these files are kept.

    Args:
        root: the folder.
        splits: splits that must hold both classes.

    Raises:
        DataError: the layout is unknown, a class is empty, an image cannot be read, the metadata
            are invalid or contradict the folders, an image is in two splits or both classes, or a
            person is in two splits.
    """
    root = Path(root)
    data = _open_packed(root) if is_packed(root) else _scan_folders(root)
    for split in splits:
        require_both_classes(root, {sample.label for sample in data.split(split)}, split)
    _refuse_shared_images(data)
    return data


def leave_out(data: FaceData, sources: Sequence[str]) -> FaceData:
    """Return a data set without some of its sources.

    Raises:
        DataError: a source does not exist, or a class has no image left in train or val.
    """
    if not sources:
        return data
    known = sorted({sample.source for sample in data.samples if sample.source})
    for source in sources:
        if source not in known:
            names = f"it has {', '.join(known)}" if known else "no manifest.csv names a source"
            raise DataError(f"{data.root}: no source {source!r} to leave out: {names}")
    kept = tuple(sample for sample in data.samples if sample.source not in sources)
    for split in ("train", "val"):
        require_both_classes(data.root, {s.label for s in kept if s.split == split}, split)
    return replace(data, samples=kept)


def find_labelled(root: Path, split: str | None = None) -> FaceData:
    """Find labelled images for evaluation without decoding them.

    Args:
        root: folder, laid out and split as for `scan`.
        split: `train`, `val` or `test`. None selects test if the data set has splits, and all
            images otherwise.

    Returns:
        The selected samples. Samples in folders have no sha256, and no split if the folders have
        none and all images are selected.

    Raises:
        DataError: no image is selected, or a class has none.
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
    require_both_classes(root, labels, split or "the images to measure")
    return data


def list_samples(root: Path) -> FaceData:
    """List all labelled images without reading them; a class may be empty.

    Samples in folders have no sha256. They have no split if neither the folders nor metadata do.

    Raises:
        DataError: there is no image, or the layout is unknown.
    """
    if is_packed(root):
        return _open_packed(root)
    folders = find_class_folders(root)
    metadata, notes = read_metadata(folders, root.resolve().name)
    samples = tuple(
        _sample(path, label, split, "", metadata[path])
        for path, label, split in _label_paths(folders, metadata)
    )
    return FaceData(root, samples, count_ignored(folders), notes=tuple(notes))


def _open_packed(root: Path) -> FaceData:
    reader, members = read_index(root)
    samples = tuple(
        Sample(
            *(m.path, CLASSES.index(m.label), m.split, m.sha256, m.source),
            *(n, m.offset, m.size, m.family),
        )
        for n, m in members
    )
    return FaceData(root, samples, shards=reader)


def _scan_folders(root: Path) -> FaceData:
    folders = find_class_folders(root)
    metadata, notes = read_metadata(folders, root.resolve().name)
    images = _label_paths(folders, metadata)
    # Checked first: reading all images of one class takes long.
    require_both_classes(root, {image.label for image in images}, "the data set")
    with ThreadPoolExecutor(count_cores()) as pool:
        digests = list(pool.map(lambda image: _digest_or_error(root / image.path), images))
    _refuse_unreadable([(images[i].path, d) for i, d in enumerate(digests) if not is_sha256(d)])
    samples = tuple(
        _sample(path, label, split, digest, metadata[path])
        for (path, label, _), split, digest in zip(
            images, assign_splits(images, digests), digests, strict=True
        )
    )
    data = FaceData(root, samples, count_ignored(folders), notes=tuple(notes))
    people = ((metadata[s.path].person, s) for s in samples)
    refuse_shared_people(
        ((person, s.split, str(root / s.path)) for person, s in people if person),
        "move the images of each person into one split, or pack them without splits with ffd-data "
        "prepare, which keeps them together",
    )
    return data


def _find_in_folders(root: Path, split: str | None) -> FaceData:
    folders = find_class_folders(root)
    metadata, notes = read_metadata(folders, root.resolve().name)
    images = _label_paths(folders, metadata)
    splits = [image.split for image in images]
    given = set(filter(None, splits))
    wanted = split or ("test" if given else None)
    created = find_created_splits(images)
    if wanted and wanted not in given | created:
        raise _no_images(root, f"{wanted}/", given | created)
    if wanted in created:
        # Only the unassigned images, often few, have to be read.
        unassigned = {i for label in range(len(CLASSES)) for i in find_unassigned(images, label)}
        splits = assign_splits(
            images,
            [_identity(root / of.path) if i in unassigned else "" for i, of in enumerate(images)],
        )
    samples = tuple(
        _sample(path, label, assigned, "", metadata[path])
        for (path, label, _), assigned in zip(images, splits, strict=True)
        if wanted in (None, assigned)
    )
    return FaceData(root, samples, count_ignored(folders), notes=tuple(notes))


def _sample(path: str, label: int, split: str, sha256: str, of: ImageMetadata) -> Sample:
    return Sample(path, label, split, sha256, of.source or None, given_family=of.family)


def _no_images(root: Path, wanted: str, existing: Collection[str]) -> DataError:
    return DataError(
        f"{root} has no images in {wanted} (it has {', '.join(sorted(existing))}): choose --split"
    )


def _label_paths(
    folders: Sequence[ClassFolder], metadata: dict[str, ImageMetadata]
) -> list[LabelledPath]:
    """Return all images; those without a split get the one of the same person's other images."""
    persons: dict[tuple[Path, str] | None, str] = {
        of.person: of.split for of in metadata.values() if of.person and of.split
    }
    return [
        LabelledPath(path, CLASSES.index(folder.label), of.split or persons.get(of.person, ""))
        for folder in folders
        for path in folder.images
        for of in (metadata[path],)
    ]


def _digest_or_error(path: Path) -> str:
    """Return the file's sha256, or why it cannot be decoded."""
    try:
        content = read_file(path)
        decode(content)
    except InputError as error:
        return f"{error.code}: {error.message}"
    return hashlib.sha256(content).hexdigest()


def _refuse_shared_images(data: FaceData) -> None:
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


def _refuse_unreadable(bad: list[tuple[str, str]]) -> None:
    if bad:
        shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DataError(f"{len(bad)} images cannot be read; remove or replace them: {shown}{more}")


def _identity(path: Path) -> str:
    """Return the file's sha256, or that of its name if evaluation will report it as unreadable."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except InputError:
        return hashlib.sha256(os.fsencode(path)).hexdigest()

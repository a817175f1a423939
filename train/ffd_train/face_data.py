"""A data set's samples, and how to read their files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ffd_runtime.core.errors import InputError
from ffd_runtime.image.decode import read_file
from ffd_runtime.inputs import Item
from ffd_runtime.model.card import CLASSES

from .shards import ShardReader, csv_bytes

GENERATED, PHOTOGRAPH = range(len(CLASSES))
# Families of generators. A source whose name begins with `diffusion` is a diffusion source.
DIFFUSION, GAN = "diffusion", "gan"


@dataclass(frozen=True)
class Sample:
    """One labelled image.

    Attributes:
        path: path below the data set's root, with forward slashes; in a packed data set
            `train-000000.tar!/KEY.jpg`.
        label: index into `CLASSES`: 0 generated, 1 groundtruth.
        split: `train`, `val` or `test`; empty if unassigned.
        sha256: digest of the file; empty if the file was not read.
        source: source named in manifest.csv, or None.
        shard: index of the shard, or None for a file in a folder.
        offset: position in the shard, in bytes.
        size: length in the shard, in bytes.
        given_family: generator family named in manifest.csv; empty if it names none.
    """

    path: str
    label: int
    split: str
    sha256: str
    source: str | None = None
    shard: int | None = None
    offset: int = 0
    size: int = 0
    given_family: str = ""

    @property
    def family(self) -> str | None:
        """Generator family of a generated image: the given one, else by the name of the source.

        None for photographs, and for images without a source and a given family.
        """
        if self.label != GENERATED or not (self.given_family or self.source):
            return None
        by_name = DIFFUSION if (self.source or "").lower().startswith(DIFFUSION) else GAN
        return self.given_family or by_name


@dataclass(frozen=True)
class FaceData:
    """The samples of a data set.

    Attributes:
        root: the folder.
        samples: sorted by split, class and path; in shard order if packed.
        ignored: number of skipped files: hidden, or without an image suffix.
        shards: reader of a packed data set; None for a folder of images.
        notes: messages about the data set for the user.
    """

    root: Path
    samples: tuple[Sample, ...]
    ignored: int = 0
    shards: ShardReader | None = field(default=None, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def split(self, name: str) -> list[Sample]:
        """Return the samples of one split."""
        return [sample for sample in self.samples if sample.split == name]

    def read(self, sample: Sample) -> bytes:
        """Read the file of a sample.

        Raises:
            InputError: the file cannot be read, or its shard has changed.
        """
        if self.shards and sample.shard is not None:
            return self.shards.read(sample.shard, sample.offset, sample.size, sample.sha256)
        return read_file(self.root / sample.path)

    def hash(self, sample: Sample) -> str:
        """Return the sha256 of a sample's file; empty if it cannot be read."""
        try:
            return sample.sha256 or hashlib.sha256(self.read(sample)).hexdigest()
        except InputError:
            return ""

    def item(self, sample: Sample) -> Item:
        """Return a sample as an input of the runtime's pipeline, named by its full path."""
        fetch = None if sample.shard is None else partial(self.read, sample)
        return Item(str(self.root / sample.path), fetch=fetch)

    @property
    def manifest_sha256(self) -> str:
        """Digest of the path, label, split and content of every image."""
        digest = hashlib.sha256()
        for s in self.samples:
            digest.update(
                f"{s.path}\0{s.label}\0{s.split}\0{s.sha256}\n".encode("utf-8", "surrogateescape")
            )
        return digest.hexdigest()


def manifest_bytes(data: FaceData) -> bytes:
    """Return a run's training manifest: path, label, split, source and sha256 as CSV."""
    rows = ((s.path, CLASSES[s.label], s.split, s.source, s.sha256) for s in data.samples)
    return csv_bytes(("path", "label", "split", "source", "sha256"), rows)

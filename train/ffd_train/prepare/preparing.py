"""The steps of ffd-data prepare, from the input folders to dataset.json; resumable."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2

from ffd_runtime import __version__
from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.core.errors import DataError, OutputError, os_errors_as
from ffd_runtime.model.card import CLASSES

from ..folders import SPLITS
from ..shards import BEGUN, DATASET, MANIFEST, SCHEMA, Member, Shard, manifest_bytes, read_index
from .entries import Entry, Input, find_entries
from .matching import common_side, max_jpeg_bytes
from .packing import BLOCK, Treatment, plan_shards, write_shard
from .reading import JOURNAL, LINE_BYTES, FileFacts, Journal, OrderedPool, read_all
from .selection import (
    LeftOut,
    Picture,
    assign,
    count_reasons,
    describe_other_splits,
    describe_split_conflicts,
    drop_copies,
    drop_small,
    find_classes_without_val,
    inputs_sha256,
    left_out_bytes,
    require_classes,
    require_splits,
    take_readable,
)

LEFT_OUT = "left_out.csv"
# Files that an interrupted run may have left.
UNFINISHED = {f"{name}.partial" for name in (BEGUN, MANIFEST, LEFT_OUT, DATASET)}
# Versions that affect the packed bytes, in addition to settings and inputs.
VERSION_KEYS = ("version", "opencv")
# Large enough for sequential reads, small enough to copy again after a failed transfer.
SHARD_BYTES = 256 << 20
# Size of a detailed portrait's JPEG relative to noise; most portraits need half of it.
NOISE_SHARE = 1 / 3
# Headers, padding and JSON of one image in a tar.
MEMBER_BYTES = 5 * BLOCK

Say = Callable[[str], None]
# Called with the name and number of steps of a task; returns a function to call after each step.
Track = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class Settings:
    """Options that determine the packed bytes.

    Attributes:
        match: encode all images alike, instead of packing the original files.
        side: side of the squares, in pixels; None for the largest that nearly all images reach.
        quality: lowest and highest JPEG quality.
        split: percentages of train, val and test.
        shard_images: maximum number of images in a shard; None for about 256 MiB.
    """

    match: bool = True
    side: int | None = None
    quality: tuple[int, int] = (75, 95)
    split: tuple[int, int, int] = (80, 10, 10)
    shard_images: int | None = None


@dataclass(frozen=True)
class _Selection:
    """The images to pack, and their encoding."""

    splits: dict[str, list[Picture]]
    left_out: list[LeftOut]
    treatment: Treatment | None

    @property
    def bytes(self) -> int:
        """Size of the shards, in bytes; an upper limit if images are encoded."""
        pictures = [picture for split in self.splits.values() for picture in split]
        if self.treatment:
            high = self.treatment.quality[1]
            return len(pictures) * (max_jpeg_bytes(self.treatment.side, high) + MEMBER_BYTES)
        return sum(picture.facts.size + MEMBER_BYTES for picture in pictures)

    @property
    def likely_bytes(self) -> int:
        """Conservative estimate of the size of the shards, in bytes."""
        return int(self.bytes * NOISE_SHARE) if self.treatment else self.bytes


def prepare(
    inputs: Sequence[Input], output: Path, settings: Settings, workers: int, say: Say, track: Track
) -> int:
    """Pack the images of input folders, which are not modified.

    Running it again resumes an interrupted run; the result is identical, byte for byte. The workers
    are threads: OpenCV releases Python's lock. `say` receives status lines.

    Returns:
        The number of unreadable images.

    Raises:
        DataError: the input folders cannot be packed.
        OutputError: `output` cannot be written, or is from other inputs or settings.
    """
    # As JSON reads them, with lists in place of tuples.
    document: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    origin = {"version": __version__, "opencv": cv2.__version__, "settings": document}
    _require_outside(inputs, output)
    _check_output(output, origin)
    entries = _find_and_report(inputs, say)
    with os_errors_as(OutputError, f"cannot create {output}"):
        output.mkdir(parents=True, exist_ok=True)
    with OrderedPool(workers) as pool, Journal(output / JOURNAL) as journal:
        try:
            _require_space(len(entries) * LINE_BYTES - _size(output / JOURNAL), output)
            facts = read_all(entries, journal, pool, track("reading", len(entries)))
            origin["inputs_sha256"] = inputs_sha256(entries, facts)
            done = _check_output(output, origin) and _is_intact(output, origin, say)
            if not done:
                selection = _select(entries, facts, settings, say)
                _pack(selection, output, origin, settings, pool, say, track)
        finally:
            # The journal's lock is still held: no other run can be writing these files.
            if (output / DATASET).exists():
                (output / BEGUN).unlink(missing_ok=True)
                journal.remove()
    unreadable = sum(bool(one.error) for one in facts)
    say(f"{output} is already complete" if done else f"wrote {output}")
    return unreadable


def _find_and_report(inputs: Sequence[Input], say: Say) -> list[Entry]:
    found = find_entries(inputs)
    sources = {entry.source for entry in found.entries}
    skipped = f" (skipped {found.ignored} other files)" if found.ignored else ""
    say(f"{len(found.entries)} images of {len(sources)} sources{skipped}")
    for note in found.notes:
        say(note)
    return found.entries


def _require_outside(inputs: Sequence[Input], output: Path) -> None:
    for given in inputs:
        if output.resolve().is_relative_to(given.path.resolve()):
            raise OutputError(f"{output} is inside {given.path}: choose an --output outside of it")


def _check_output(output: Path, origin: dict[str, Any]) -> bool:
    """Check that the output folder is empty, or from the same settings and inputs.

    Returns:
        Whether the data set is complete.

    Raises:
        OutputError: the folder has other contents, or is not a folder.
    """
    try:
        names = {path.name for path in output.iterdir()} - UNFINISHED
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"cannot use {output} as --output: {error.strerror}") from None
    finished = DATASET in names
    if not finished and BEGUN not in names:
        if any(name.endswith(".tar") for name in names):
            raise OutputError(
                f"{output} has shards but no {DATASET}: copy that file from the original, or "
                "remove the folder"
            )
        if names - {JOURNAL}:
            raise OutputError(f"{output} is not empty: choose another --output")
        return False
    try:
        before = json.loads((output / (DATASET if finished else BEGUN)).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read the settings of {output} ({error}): remove it") from None
    # A complete data set stays valid even if this version would pack different bytes.
    _require_same(before, origin, output, () if finished else VERSION_KEYS)
    return finished


def _require_same(
    before: dict[str, Any], origin: dict[str, Any], output: Path, makers: Sequence[str]
) -> None:
    for name in ("settings", "inputs_sha256", *makers):
        if name in origin and before.get(name) != origin[name]:
            what = "inputs" if name == "inputs_sha256" else name
            raise OutputError(
                f"{output} was made with other {what}"
                f"{_describe_difference(before.get(name), origin[name])}: "
                "remove it or choose another --output"
            )


def _is_intact(output: Path, origin: dict[str, Any], say: Say) -> bool:
    """Whether a complete data set still has all of its files; missing ones can be packed again.

    Raises:
        OutputError: other versions packed it, and may have packed different bytes.
    """
    try:
        read_index(output)
    except DataError as error:
        say(f"{error}; packing it again")
        before = json.loads((output / DATASET).read_bytes())
        _require_same(before, origin, output, VERSION_KEYS)
        return False
    return True


def _describe_difference(before: Any, now: Any) -> str:
    if not isinstance(before, dict):
        return f" ({before})" if before and len(str(before)) < 20 else ""
    names = [name for name in now if before.get(name) != now[name]]
    return " (" + ", ".join(f"{name} was {before.get(name)}" for name in names) + ")"


def _select(
    entries: Sequence[Entry], facts: Sequence[FileFacts], settings: Settings, say: Say
) -> _Selection:
    pictures, left_out = take_readable(entries, facts)
    pictures, copies = drop_copies(pictures)
    left_out += copies
    require_classes(pictures, left_out)
    treatment = None
    if settings.match:
        sides: dict[str, list[int]] = {}
        for picture in pictures:
            sides.setdefault(picture.entry.source, []).append(picture.facts.side)
        treatment = Treatment(settings.side or common_side(sides), settings.quality)
        pictures, small = drop_small(pictures, treatment.side)
        left_out += small
    if left_out:
        say(f"left out {len(left_out)}: {count_reasons(left_out)} (listed in {LEFT_OUT})")
    if torn := describe_split_conflicts(pictures):
        say(torn)
    lacking, share = sorted(find_classes_without_val(pictures)), settings.split[1]
    if lacking and share:
        say(f"no image is in val: {share} % of the training images of {' and '.join(lacking)} are")
    splits, shared = assign(pictures, settings.split)
    if shared:
        say(f"{describe_other_splits(shared)} (listed in {LEFT_OUT})")
    require_splits(splits, settings.split)
    return _Selection(splits, left_out + shared, treatment)


def _pack(
    selection: _Selection,
    output: Path,
    origin: dict[str, Any],
    settings: Settings,
    pool: OrderedPool,
    say: Say,
    track: Track,
) -> None:
    count = sum(len(pictures) for pictures in selection.splits.values())
    images = settings.shard_images or max(1, SHARD_BYTES * count // selection.likely_bytes)
    plans = plan_shards(selection.splits, images)
    there = sum(_size(output / plan.name) for plan in plans)
    _require_space(selection.likely_bytes - there, output)
    if selection.bytes - there > shutil.disk_usage(output).free:
        say(
            f"very detailed images may need up to {selection.bytes / 1e9:.1f} GB, more than the "
            "disk has free: if it fills up, free some space and run the same command to resume"
        )
    _write(output / BEGUN, json.dumps(origin).encode())
    counts = ", ".join(f"{len(of)} {split}" for split, of in selection.splits.items())
    if selection.treatment:
        low, high = selection.treatment.quality
        side = selection.treatment.side
        say(f"encoding squares of {side} pixels as JPEG, quality {low} to {high}, 4:2:0")
    say(f"packing {count} images ({counts}) into {len(plans)} shards")
    advance = track("packing", count)
    shards: list[Shard] = []
    packed: dict[str, Member] = {}
    same: list[LeftOut] = []
    for plan in plans:
        shard, out = write_shard(output, plan, selection.treatment, pool, packed, advance)
        shards.append(shard)
        same += out
    if same:
        say(f"left out {len(same)} with the same encoding as others: {count_reasons(same)}")
    members, left_out = list(packed.values()), selection.left_out + same
    manifest = manifest_bytes(members)
    _write(output / MANIFEST, manifest)
    _write(output / LEFT_OUT, left_out_bytes(left_out))
    document = {
        "schema": SCHEMA,
        **origin,
        "side": selection.treatment and selection.treatment.side,
        **_totals(members, left_out),
        "shards": [asdict(shard) for shard in shards],
        "manifest_sha256": sha256(manifest).hexdigest(),
    }
    _write(output / DATASET, json.dumps(document, indent=2).encode() + b"\n")


def _require_space(needed: int, output: Path) -> None:
    free = shutil.disk_usage(output).free
    if needed > free:
        raise OutputError(
            f"{output} needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: free "
            "some space, lower --side, or choose another --output"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _totals(members: Sequence[Member], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    counts = Counter((m.split, m.label) for m in members)
    sources: dict[str, Counter[str]] = {}
    for m in members:
        sources.setdefault(m.source, Counter())[m.label] += 1
    return {
        "images": {split: {c: counts[split, c] for c in CLASSES} for split in SPLITS},
        "sources": {source: dict(sorted(of.items())) for source, of in sorted(sources.items())},
        "left_out": dict(sorted(Counter(out.reason for out in left_out).items())),
    }


def _write(path: Path, data: bytes) -> None:
    # The fixed name lets the next run overwrite what a killed process left.
    write_output(path, data, temporary=path.with_name(f"{path.name}.partial"))

"""All of it, from the folders to dataset.json; a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2

from ffd_runtime import __version__
from ffd_runtime.core.errors import DataError, OutputError
from ffd_runtime.model.card import CLASSES

from ..folders import SPLITS
from ..shards import BEGUN, DATASET, MANIFEST, SCHEMA, Member, Shard, manifest_bytes, read_index
from .entries import Entry, Input, find_entries
from .matching import common_side, most_bytes
from .packing import BLOCK, Treatment, plan_shards, write_shard
from .reading import JOURNAL, LINE_BYTES, Facts, Journal, Threads, read_all
from .selection import (
    LeftOut,
    Picture,
    assign,
    count_reasons,
    describe_shared,
    describe_split_conflicts,
    drop_copies,
    drop_small,
    inputs_sha256,
    left_out_bytes,
    require_classes,
    require_splits,
    take_readable,
)

LEFT_OUT = "left_out.csv"
# What a run that was killed may have been writing.
UNFINISHED = {f"{name}.partial" for name in (BEGUN, MANIFEST, LEFT_OUT, DATASET)}
# What decides the bytes, besides settings and inputs.
MAKERS = ("version", "opencv")
# Large enough that a disk reads it in one go, small enough to be copied again when that breaks.
SHARD_BYTES = 256 << 20
# A detailed portrait's share of the bytes that noise takes in the same JPEG: most take half of it.
OF_NOISE = 1 / 3
# Headers, padding and description of a picture in a tar.
MEMBER_BYTES = 5 * BLOCK

Say = Callable[[str], None]
# Told what begins and how many steps it has; gives what is called after each.
Track = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class Settings:
    """How pictures are prepared; what decides the packed bytes, but for the pictures.

    Attributes:
        match: treat all alike, instead of packing files as they are.
        side: pixels of the squares; None for the largest that nearly all pictures have.
        quality: lowest and highest of the JPEGs.
        split: percent of train, val and test.
        shard_images: the most in a shard; None for about 256 MiB.
    """

    match: bool = True
    side: int | None = None
    quality: tuple[int, int] = (75, 95)
    split: tuple[int, int, int] = (80, 10, 10)
    shard_images: int | None = None


@dataclass(frozen=True)
class _Selection:
    """What is packed, and how."""

    splits: dict[str, list[Picture]]
    left_out: list[LeftOut]
    treatment: Treatment | None

    @property
    def bytes(self) -> int:
        """Of the shards; of pictures that are treated, no more than that."""
        pictures = [picture for split in self.splits.values() for picture in split]
        if self.treatment:
            high = self.treatment.quality[1]
            return len(pictures) * (most_bytes(self.treatment.side, high) + MEMBER_BYTES)
        return sum(picture.facts.size + MEMBER_BYTES for picture in pictures)

    @property
    def likely_bytes(self) -> int:
        """Of the shards, rather too many than too few."""
        return int(self.bytes * OF_NOISE) if self.treatment else self.bytes


def prepare(
    inputs: Sequence[Input], output: Path, settings: Settings, workers: int, say: Say, track: Track
) -> int:
    """Pack the pictures of some folders; the folders stay as they are.

    Run again after it was killed, it goes on; the result is the same, byte for byte.

    Args:
        inputs: the folders.
        output: folder of the packed data set; made if needed.
        settings: how.
        workers: threads; OpenCV decodes and encodes without Python's lock.
        say: told one line at each step worth one.
        track: shows progress.

    Returns:
        How many pictures could not be read.

    Raises:
        DataError: the folders cannot be prepared as they are.
        OutputError: `output` cannot be written, or holds what was made of other inputs or settings.
    """
    origin = {"version": __version__, "opencv": cv2.__version__, "settings": _as_json(settings)}
    _require_apart(inputs, output)
    _look_at(output, origin)
    found = find_entries(inputs)
    entries = found.entries
    more = f" (other files left out: {found.ignored})" if found.ignored else ""
    say(f"{len(entries)} pictures of {len({e.source for e in entries})} sources{more}")
    for note in found.notes:
        say(note)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {output}: {error.strerror}") from None
    with Threads(workers) as pool, Journal(output / JOURNAL) as journal:
        try:
            _require_space(len(entries) * LINE_BYTES - _size(output / JOURNAL), output)
            facts = read_all(entries, journal, pool, track("reading", len(entries)))
            origin["inputs_sha256"] = inputs_sha256(entries, facts)
            done = _look_at(output, origin) and _is_whole(output, origin, say)
            if not done:
                selection = _select(entries, facts, settings, say)
                _pack(selection, output, origin, settings, pool, say, track)
        finally:
            # Only here, where no other run can have begun to write them.
            if (output / DATASET).exists():
                (output / BEGUN).unlink(missing_ok=True)
                journal.remove()
    unreadable = sum(bool(one.error) for one in facts)
    say(f"{output} holds all of this already" if done else f"wrote {output}")
    return unreadable


def _require_apart(inputs: Sequence[Input], output: Path) -> None:
    for given in inputs:
        if output.resolve().is_relative_to(given.path.resolve()):
            raise OutputError(f"{output} lies in {given.path}: choose an --output outside of it")


def _as_json(settings: Settings) -> dict[str, Any]:
    """The settings as they come back out of JSON."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return document


def _look_at(output: Path, origin: dict[str, Any]) -> bool:
    """See whether a folder holds the same, as far as is known yet.

    Returns:
        Whether it is finished.

    Raises:
        OutputError: it holds something else, or is no folder.
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
                f"{output} has shards but no {DATASET}: copy that from where it was packed, or "
                "remove the folder"
            )
        if names - {JOURNAL}:
            raise OutputError(f"{output} is not empty: choose another --output")
        return False
    try:
        before = json.loads((output / (DATASET if finished else BEGUN)).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read what {output} was made of ({error}): remove it") from None
    # What is finished stays right when a later version would pack it otherwise.
    _require_same(before, origin, output, () if finished else MAKERS)
    return finished


def _require_same(
    before: dict[str, Any], origin: dict[str, Any], output: Path, makers: Sequence[str]
) -> None:
    for name in ("settings", "inputs_sha256", *makers):
        if name in origin and before.get(name) != origin[name]:
            what = "inputs" if name == "inputs_sha256" else name
            raise OutputError(
                f"{output} was made with other {what}{_differing(before.get(name), origin[name])}: "
                "remove it or choose another --output"
            )


def _is_whole(output: Path, origin: dict[str, Any], say: Say) -> bool:
    """Whether a finished set still has all of its files; what it lacks can be packed again.

    Raises:
        OutputError: other versions packed it, which may have packed otherwise.
    """
    try:
        read_index(output)
    except DataError as error:
        say(f"{error}; packing what is not whole")
        before = json.loads((output / DATASET).read_bytes())
        _require_same(before, origin, output, MAKERS)
        return False
    return True


def _differing(before: Any, now: Any) -> str:
    if not isinstance(before, dict):
        return f" ({before})" if before and len(str(before)) < 20 else ""
    names = [name for name in now if before.get(name) != now[name]]
    return " (" + ", ".join(f"{name} was {before.get(name)}" for name in names) + ")"


def _select(
    entries: Sequence[Entry], facts: Sequence[Facts], settings: Settings, say: Say
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
        say(f"left out {len(left_out)}: {count_reasons(left_out)} (each in {LEFT_OUT})")
    if torn := describe_split_conflicts(pictures):
        say(torn)
    splits, shared = assign(pictures, settings.split)
    if shared:
        say(f"{describe_shared(shared)} (each in {LEFT_OUT})")
    require_splits(splits, settings.split)
    return _Selection(splits, left_out + shared, treatment)


def _pack(
    selection: _Selection,
    output: Path,
    origin: dict[str, Any],
    settings: Settings,
    pool: Threads,
    say: Say,
    track: Track,
) -> None:
    count = sum(len(pictures) for pictures in selection.splits.values())
    images = settings.shard_images or max(1, SHARD_BYTES * count // selection.likely_bytes)
    plans = plan_shards(selection.splits, images)
    there = sum(_size(output / plan.name) for plan in plans)
    _require_space(selection.likely_bytes - there, output)
    if selection.bytes - there > _free(output):
        say(
            f"pictures as detailed as noise would need {selection.bytes / 1e9:.1f} GB, which is "
            "more than the disk has left: if it fills up, free some and run the same command again"
        )
    _write(output / BEGUN, json.dumps(origin).encode())
    counts = ", ".join(f"{len(of)} {split}" for split, of in selection.splits.items())
    if selection.treatment:
        low, high = selection.treatment.quality
        side = selection.treatment.side
        say(f"each becomes a square of {side} pixels, a JPEG of quality {low} to {high} (4:2:0)")
    say(f"packing {count} pictures ({counts}) into {len(plans)} shards")
    advance = track("packing", count)
    shards: list[Shard] = []
    packed: dict[str, Member] = {}
    same: list[LeftOut] = []
    for plan in plans:
        shard, out = write_shard(output, plan, selection.treatment, pool, packed, advance)
        shards.append(shard)
        same += out
    if same:
        say(f"left out {len(same)} that became the same as others: {count_reasons(same)}")
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
    free = _free(output)
    if needed > free:
        raise OutputError(
            f"{output} needs about {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB left: "
            "free some, lower --side, or choose another --output"
        )


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


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
    """A file that appears whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {partial}: {error.strerror}") from None

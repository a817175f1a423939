"""All of it, from the folders to dataset.json; a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2

from ffd_runtime import __version__
from ffd_runtime.card import CLASSES
from ffd_runtime.errors import OutputError

from ..data import SPLITS
from ..shards import DATASET, MANIFEST, SCHEMA, Member, manifest_bytes
from .inputs import Entry, Input, find_entries
from .matching import BYTES_PER_PIXEL, common_side
from .packing import BLOCK, ShardPlan, Treatment, plan_shards, write_shard
from .reading import JOURNAL, Facts, Journal, read_all
from .selection import (
    REASONS,
    LeftOut,
    Picture,
    assign,
    drop_copies,
    drop_small,
    inputs_sha256,
    left_out_bytes,
    take_readable,
)

BEGUN = "prepare.json"
LEFT_OUT = "left_out.csv"
# Large enough that a disk reads it in one go, small enough to be copied again when that breaks.
SHARD_BYTES = 256 << 20
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
        """Of the shards, rather too many than too few."""
        pictures = [picture for split in self.splits.values() for picture in split]
        if self.treatment:
            pixels = len(pictures) * self.treatment.side**2
            return int(pixels * BYTES_PER_PIXEL) + len(pictures) * MEMBER_BYTES
        return sum(picture.facts.size + MEMBER_BYTES for picture in pictures)


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
    entries, ignored = find_entries(inputs)
    more = f" ({ignored} files without an image's name left out)" if ignored else ""
    say(f"{len(entries)} pictures of {len({e.source for e in entries})} sources{more}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {output}: {error.strerror}") from None
    with ThreadPoolExecutor(workers) as pool:
        try:
            with Journal(output / JOURNAL) as journal:
                facts = read_all(entries, journal, pool, track("reading", len(entries)))
                origin["inputs_sha256"] = inputs_sha256(entries, facts)
                done = _look_at(output, origin)
                if not done:
                    selection = _select(entries, facts, settings, say)
                    _pack(selection, output, origin, settings, pool, say, track)
        finally:
            if (output / DATASET).exists():
                for name in (JOURNAL, BEGUN):
                    (output / name).unlink(missing_ok=True)
    unreadable = sum(bool(found.error) for found in facts)
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
        names = {path.name for path in output.iterdir()}
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"cannot use {output} as --output: {error.strerror}") from None
    finished = DATASET in names
    if not finished and BEGUN not in names:
        if names - {JOURNAL}:
            raise OutputError(f"{output} is not empty: choose another --output")
        return False
    try:
        before = json.loads((output / (DATASET if finished else BEGUN)).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read what {output} was made of ({error}): remove it") from None
    # What is finished stays right when a later version would pack it otherwise.
    matters = ("settings", "inputs_sha256") + (() if finished else ("version", "opencv"))
    for name in matters:
        if name in origin and before.get(name) != origin[name]:
            what = "inputs" if name == "inputs_sha256" else name
            raise OutputError(
                f"{output} was made with other {what}{_differing(before.get(name), origin[name])}: "
                "remove it or choose another --output"
            )
    return finished


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
    treatment = None
    if settings.match:
        sides: dict[str, list[int]] = {}
        for picture in pictures:
            sides.setdefault(picture.entry.source, []).append(picture.facts.side)
        treatment = Treatment(settings.side or common_side(sides.values()), settings.quality)
        pictures, small = drop_small(pictures, treatment.side)
        left_out += small
    if left_out:
        reasons = Counter(out.reason for out in left_out)
        counts = ", ".join(f"{count} {REASONS[name]}" for name, count in sorted(reasons.items()))
        say(f"left out {len(left_out)}: {counts} (each in {LEFT_OUT})")
    return _Selection(assign(pictures, settings.split), left_out, treatment)


def _pack(
    selection: _Selection,
    output: Path,
    origin: dict[str, Any],
    settings: Settings,
    pool: ThreadPoolExecutor,
    say: Say,
    track: Track,
) -> None:
    count = sum(len(pictures) for pictures in selection.splits.values())
    images = settings.shard_images or max(1, SHARD_BYTES * count // selection.bytes)
    plans = plan_shards(selection.splits, images)
    _require_space(selection.bytes, plans, output)
    _write(output / BEGUN, json.dumps(origin).encode())
    counts = ", ".join(f"{len(of)} {split}" for split, of in selection.splits.items())
    if selection.treatment:
        low, high = selection.treatment.quality
        side = selection.treatment.side
        say(f"each becomes a square of {side} pixels, a JPEG of quality {low} to {high} (4:2:0)")
    say(f"packing {count} pictures ({counts}) into {len(plans)} shards")
    advance = track("packing", count)
    shards, members = [], []
    for plan in plans:
        shard, inside = write_shard(output, plan, selection.treatment, pool, advance)
        shards.append(shard)
        members += inside
    manifest = manifest_bytes(members)
    _write(output / MANIFEST, manifest)
    _write(output / LEFT_OUT, left_out_bytes(selection.left_out))
    document = {
        "schema": SCHEMA,
        **origin,
        "side": selection.treatment and selection.treatment.side,
        **_totals(members, selection.left_out),
        "shards": [asdict(shard) for shard in shards],
        "manifest_sha256": sha256(manifest).hexdigest(),
    }
    _write(output / DATASET, json.dumps(document, indent=2).encode() + b"\n")


def _require_space(needed: int, plans: Sequence[ShardPlan], output: Path) -> None:
    there = [output / plan.name for plan in plans]
    needed -= sum(path.stat().st_size for path in there if path.exists())
    free = shutil.disk_usage(output).free
    if needed > free:
        raise OutputError(
            f"{output} needs about {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB left: "
            "free some, lower --side, or choose another --output"
        )


def _totals(members: Sequence[Member], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    counts = Counter((m.split, m.label) for m in members)
    sources = Counter((m.source, m.label) for m in members)
    return {
        "images": {split: {c: counts[split, c] for c in CLASSES} for split in SPLITS},
        "sources": {
            source: {"label": label, "images": count}
            for (source, label), count in sorted(sources.items())
        },
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

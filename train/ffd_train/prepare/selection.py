"""Which pictures are packed, and into which split: pure decisions over what was read."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ffd_runtime.card import CLASSES
from ffd_runtime.errors import DataError

from ..audit.copies import find_copies
from ..audit.picture import SMALL
from ..data import SPLITS
from .inputs import Entry
from .reading import Facts

# Above this share of a source, something is wrong with the folder rather than with some files.
MAX_UNREADABLE = 0.05

# Why pictures are left out, and what a person is told of many.
REASONS = {
    "unreadable": "that cannot be read",
    "copy": "copies",
    "near_copy": "near copies",
    "both_classes": "that are in both classes",
    "too_small": "too small",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was read."""

    entry: Entry
    facts: Facts


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that is not packed.

    Attributes:
        entry: the picture.
        reason: one of `REASONS`.
        detail: what is wrong with it, or which picture was kept in its place.
    """

    entry: Entry
    reason: str
    detail: str


def take_readable(
    entries: Sequence[Entry], facts: Sequence[Facts]
) -> tuple[list[Picture], list[LeftOut]]:
    """Those that can be read, and the others.

    Raises:
        DataError: of one source, more than a few cannot.
    """
    pairs = list(zip(entries, facts, strict=True))
    bad = [LeftOut(entry, "unreadable", found.error) for entry, found in pairs if found.error]
    total = Counter(entry.source for entry in entries)
    for source, count in Counter(out.entry.source for out in bad).items():
        if count > max(1, MAX_UNREADABLE * total[source]):
            example = next(out for out in bad if out.entry.source == source)
            raise DataError(
                f"{count} of {source}'s {total[source]} pictures cannot be read, such as "
                f"{example.entry.path} ({example.detail}): copy them again or remove them"
            )
    return [Picture(entry, found) for entry, found in pairs if not found.error], bad


def drop_copies(pictures: Sequence[Picture]) -> tuple[list[Picture], list[LeftOut]]:
    """One of each group of copies, the largest; none where a group is of both classes."""
    digests = [np.frombuffer(bytes.fromhex(p.facts.sha256), np.uint8) for p in pictures]
    smalls = [np.frombuffer(p.facts.small, np.uint8).reshape(SMALL, SMALL, 3) for p in pictures]
    groups = find_copies(
        np.array(digests, np.uint8).reshape(-1, 32),
        np.array([p.facts.hash for p in pictures], np.uint64),
        np.array(smalls, np.uint8).reshape(-1, SMALL, SMALL, 3),
    )
    left_out = [
        out for group in groups for out in _judge_copies([pictures[i] for i in group.members])
    ]
    dropped = {(out.entry.root, out.entry.name) for out in left_out}
    kept = [p for p in pictures if (p.entry.root, p.entry.name) not in dropped]
    return kept, left_out


def _judge_copies(group: list[Picture]) -> Iterator[LeftOut]:
    """Those of a group of copies that are not packed."""
    best, *others = sorted(group, key=_worth)
    other = next((p for p in others if p.entry.label != best.entry.label), None)
    if other:
        for picture in group:
            shown = other if picture.entry.label == best.entry.label else best
            yield LeftOut(picture.entry, "both_classes", _call(shown))
        return
    for picture in others:
        reason = "copy" if picture.facts.sha256 == best.facts.sha256 else "near_copy"
        yield LeftOut(picture.entry, reason, _call(best))


def drop_small(pictures: Sequence[Picture], side: int) -> tuple[list[Picture], list[LeftOut]]:
    """Those with at least `side` pixels in their shorter side, and the others.

    Raises:
        DataError: of one source, no picture has.
    """
    small = [
        LeftOut(p.entry, "too_small", f"{p.facts.side} pixels, less than {side}")
        for p in pictures
        if p.facts.side < side
    ]
    large = [picture for picture in pictures if picture.facts.side >= side]
    lost = {p.entry.source for p in pictures} - {p.entry.source for p in large}
    if lost:
        raise DataError(f"no picture of {min(lost)} has {side} pixels: lower --side")
    return large, small


def assign(pictures: Sequence[Picture], shares: Sequence[int]) -> dict[str, list[Picture]]:
    """The pictures of each split, in the order of their content's hash.

    A picture goes where its makers put it, and everybody's pictures go together. What is free is
    split by its identity's or content's hash, in the same shares of each source.

    Args:
        pictures: all different.
        shares: of train, val and test; they sum to 100.

    Raises:
        DataError: a class has too few for one of the splits.
    """
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    order = sorted(pictures, key=lambda p: (p.entry.label, p.entry.source))
    for _, of_source in groupby(order, key=lambda p: (p.entry.label, p.entry.source)):
        for split, picture in _assign_source(list(of_source), shares):
            splits[split].append(picture)
    for split, share in zip(SPLITS, shares, strict=True):
        splits[split].sort(key=lambda p: p.facts.sha256)
        for label in CLASSES:
            if share and not any(p.entry.label == label for p in splits[split]):
                raise DataError(f"no {label} picture is left for {split}: give more, or --split")
    return splits


def left_out_bytes(left_out: Iterable[LeftOut]) -> bytes:
    """left_out.csv."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["label", "source", "original", "reason", "detail"])
    rows.writerows(
        sorted((o.entry.label, o.entry.source, o.entry.name, o.reason, o.detail) for o in left_out)
    )
    return text.getvalue().encode("utf-8", "surrogateescape")


def inputs_sha256(entries: Sequence[Entry], facts: Sequence[Facts]) -> str:
    """Identity of all that was given: every picture, and what was known of it."""
    lines = sorted(
        "\0".join((e.label, e.source, e.name, e.identity, e.split, f.sha256 or f.error))
        for e, f in zip(entries, facts, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _worth(picture: Picture) -> tuple[int, str, str, str]:
    entry, facts = picture.entry, picture.facts
    return -facts.side, facts.sha256, entry.source, entry.name


def _call(picture: Picture) -> str:
    return f"{picture.entry.source}: {picture.entry.name}"


def _assign_source(pictures: list[Picture], shares: Sequence[int]) -> Iterator[tuple[str, Picture]]:
    """A split for each picture of one source."""
    together: dict[str, list[Picture]] = {}
    for picture in pictures:
        together.setdefault(picture.entry.identity or picture.facts.sha256, []).append(picture)
    free = []
    for key, group in together.items():
        given = next((p.entry.split for p in group if p.entry.split), "")
        if given:
            yield from ((given, picture) for picture in group)
        else:
            # A person's name is no hash yet, and the order of names is no chance.
            free.append((hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest(), group))
    total = sum(len(group) for _, group in free)
    done = 0
    for _, group in sorted(free, key=lambda pair: pair[0]):
        middle = 100 * (done + len(group) / 2) / total
        done += len(group)
        ends = (("val", shares[1]), ("test", shares[1] + shares[2]), ("train", 100))
        split = next(name for name, end in ends if middle < end)
        yield from ((split, picture) for picture in group)

"""Which pictures are packed, and into which split: pure decisions over what was read."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ffd_runtime.core.errors import DataError
from ffd_runtime.model.card import CLASSES

from ..audit.copies import find_copies
from ..audit.picture import SMALL
from ..folders import SPLITS
from .entries import Entry
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
    "other_split": "of persons who are in another split",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that was read.

    Attributes:
        entry: where it lies.
        facts: what its file is.
        copies: the others of its group, which are left out; what is known of them is known of it.
    """

    entry: Entry
    facts: Facts
    copies: tuple[Entry, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Its own, and those of its copies."""
        return self.entry, *self.copies

    @property
    def identity(self) -> str:
        """Whom it shows; empty where nobody says."""
        return next((e.identity for e in self.entries if e.identity), "")

    @property
    def split(self) -> str:
        """That its makers put it in, else those of a copy; empty where nobody says."""
        return next((e.split for e in self.entries if e.split), "")


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
    kept = dict(enumerate(pictures))
    left_out: list[LeftOut] = []
    for group in groups:
        best, *others = sorted(group.members, key=lambda i: _rank(pictures[i]))
        of_group = [pictures[i] for i in (best, *others)]
        left_out += _judge_copies(of_group)
        for i in group.members:
            del kept[i]
        if len({p.entry.label for p in of_group}) == 1:
            copies = tuple(p.entry for p in of_group[1:])
            kept[best] = replace(pictures[best], copies=copies)
    return [kept[i] for i in sorted(kept)], left_out


def _judge_copies(group: Sequence[Picture]) -> Iterator[LeftOut]:
    """Those of a group of copies that are not packed; the first is worth most."""
    best, *others = group
    other = next((p for p in others if p.entry.label != best.entry.label), None)
    if other:
        for picture in group:
            shown = other if picture.entry.label == best.entry.label else best
            yield LeftOut(picture.entry, "both_classes", display_name(shown.entry))
        return
    for picture in others:
        reason = "copy" if picture.facts.sha256 == best.facts.sha256 else "near_copy"
        yield LeftOut(picture.entry, reason, display_name(best.entry))


def describe_split_conflicts(pictures: Iterable[Picture]) -> str:
    """What a person is told of copies that their makers put into several splits."""
    torn = [p for p in pictures if len({e.split for e in p.entries if e.split}) > 1]
    if not torn:
        return ""
    one = torn[0]
    other = next(e for e in one.copies if e.split not in ("", one.split))
    return (
        f"{len(torn)} pictures have copies in another split, such as {display_name(one.entry)} in "
        f"{one.split} and {display_name(other)} in {other.split}: each stays in its own, the copies are "
        "left out"
    )


def require_classes(pictures: Iterable[Picture], left_out: Iterable[LeftOut]) -> None:
    """Both classes are still there.

    Raises:
        DataError: one is not.
    """
    there = {picture.entry.label for picture in pictures}
    for label in CLASSES:
        if label not in there:
            why = count_reasons(out for out in left_out if out.entry.label == label)
            raise DataError(f"no {label} picture is left" + (f": {why}" if why else ": give some"))


def count_reasons(left_out: Iterable[LeftOut]) -> str:
    """Such as `3 copies, 1 too small`; empty where nothing was left out."""
    reasons = Counter(out.reason for out in left_out)
    return ", ".join(f"{count} {REASONS[name]}" for name, count in sorted(reasons.items()))


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


def assign(
    pictures: Sequence[Picture], shares: Sequence[int]
) -> tuple[dict[str, list[Picture]], list[LeftOut]]:
    """The pictures of each split, in the order of their content's hash, and those of none.

    A picture goes where its makers put it, and everybody's pictures go together, those of persons
    who share a copy too. Where the makers of such copies disagree, the split that most of the
    pictures are in has the persons, and their pictures in others are left out. What is free is
    split by its identity's or content's hash, in the same shares of each source.

    Args:
        pictures: all different.
        shares: of train, val and test; they sum to 100.
    """
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    free: dict[tuple[str, str], list[list[Picture]]] = {}
    left_out: list[LeftOut] = []
    for group in _group_persons(pictures):
        given = Counter(p.split for p in group if p.split)
        if given:
            ours = max(SPLITS, key=lambda split: given[split])
            splits[ours] += [p for p in group if p.split in ("", ours)]
            left_out += _leave_out_others(group, ours)
        else:
            # A person of several sources counts where most of the pictures are.
            sources = Counter((p.entry.label, p.entry.source) for p in group)
            most = max(sorted(sources), key=lambda source: sources[source])
            free.setdefault(most, []).append(group)
    for source in sorted(free):
        for split, group in _share_out(free[source], shares):
            splits[split] += group
    for split in SPLITS:
        splits[split].sort(key=lambda p: p.facts.sha256)
    return splits, left_out


def _leave_out_others(group: Sequence[Picture], split: str) -> Iterator[LeftOut]:
    """Those of a group of persons whose makers put them into another split than it goes to."""
    example = next(p for p in group if p.split == split)
    for picture in group:
        if picture.split not in ("", split):
            detail = f"{picture.split}; {display_name(example.entry)} is in {split}"
            yield LeftOut(picture.entry, "other_split", detail)


def describe_shared(left_out: Sequence[LeftOut]) -> str:
    """What a person is told of pictures that `assign` left out."""
    one = left_out[0]
    return (
        f"left out {len(left_out)} {REASONS[one.reason]}, as copies show, such as "
        f"{display_name(one.entry)} in {one.detail}"
    )


def require_splits(splits: dict[str, list[Picture]], shares: Sequence[int]) -> None:
    """Both classes are in every split that is wanted or has pictures.

    Raises:
        DataError: a class has too few for one of the splits.
    """
    for split, share in zip(SPLITS, shares, strict=True):
        for label in CLASSES:
            wanted = share or splits[split]
            if wanted and not any(p.entry.label == label for p in splits[split]):
                raise DataError(
                    f"no {label} picture is left for {split}: give more, or another --split"
                )


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


def _rank(picture: Picture) -> tuple[int, str, str, str]:
    entry, facts = picture.entry, picture.facts
    return -facts.side, facts.sha256, entry.source, entry.name


def display_name(entry: Entry) -> str:
    """A picture's name for a person."""
    return f"{entry.source}: {entry.name}"


def _group_persons(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Pictures that belong together: of one person, or of persons who share a copy."""
    leader: dict[tuple[Path, str], tuple[Path, str]] = {}

    def lead(person: tuple[Path, str]) -> tuple[Path, str]:
        while leader.setdefault(person, person) != person:
            person = leader[person]
        return person

    groups: dict[tuple[Path, str] | str, list[Picture]] = {}
    persons = [[e.person for e in picture.entries if e.identity] for picture in pictures]
    for first, *others in filter(None, persons):
        for other in others:
            leader[lead(other)] = lead(first)
    for picture, shown in zip(pictures, persons, strict=True):
        key = lead(shown[0]) if shown else picture.facts.sha256
        groups.setdefault(key, []).append(picture)
    return list(groups.values())


def _share_out(
    groups: list[list[Picture]], shares: Sequence[int]
) -> Iterator[tuple[str, list[Picture]]]:
    """A split for each group of one source."""
    total = sum(len(group) for group in groups)
    done = 0
    for group in sorted(groups, key=_hash_order):
        middle = 100 * (done + len(group) / 2) / total
        done += len(group)
        ends = (("val", shares[1]), ("test", shares[1] + shares[2]), ("train", 100))
        yield next(name for name, end in ends if middle < end), group


def _hash_order(group: list[Picture]) -> bytes:
    # A person's name is no hash yet, and the order of names is no chance.
    key = min(p.identity or p.facts.sha256 for p in group)
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

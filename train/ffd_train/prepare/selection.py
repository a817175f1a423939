"""The selection of images to pack, and their splits."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from ffd_runtime.core.errors import DataError
from ffd_runtime.core.text import counted
from ffd_runtime.model.card import CLASSES

from ..audit.appearance import SMALL
from ..audit.copies import find_copies
from ..folders import SPLITS
from ..shards import csv_bytes
from .entries import Entry
from .reading import FileFacts

# Maximum share of unreadable images of a source; more indicate a problem with the folder.
MAX_UNREADABLE_SHARE = 0.05

# Reasons to leave out images, and their descriptions after a number.
REASONS = {
    "unreadable": "unreadable",
    "copy": "copies",
    "near_copy": "near copies",
    "both_classes": "in both classes",
    "too_small": "too small",
    "other_split": "of people in another split",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A readable image.

    Attributes:
        entry: path and metadata.
        facts: facts about its file.
        copies: its copies, which are left out; their metadata apply to it, too.
    """

    entry: Entry
    facts: FileFacts
    copies: tuple[Entry, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries of the image and its copies."""
        return self.entry, *self.copies

    @property
    def identity(self) -> str:
        """The person in the image; empty if unknown."""
        return next((e.identity for e in self.entries if e.identity), "")

    @property
    def split(self) -> str:
        """Split of the image, else of a copy; empty if unassigned."""
        return next((e.split for e in self.entries if e.split), "")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that is not packed.

    Attributes:
        entry: path and metadata.
        reason: key of `REASONS`.
        detail: the problem, or the image that is kept instead.
    """

    entry: Entry
    reason: str
    detail: str


def take_readable(
    entries: Sequence[Entry], facts: Sequence[FileFacts]
) -> tuple[list[Picture], list[LeftOut]]:
    """Separate readable and unreadable images.

    Raises:
        DataError: a source has more than a few unreadable images.
    """
    pairs = list(zip(entries, facts, strict=True))
    bad = [LeftOut(entry, "unreadable", found.error) for entry, found in pairs if found.error]
    total = Counter(entry.source for entry in entries)
    for source, count in Counter(out.entry.source for out in bad).items():
        if count > max(1, MAX_UNREADABLE_SHARE * total[source]):
            example = next(out for out in bad if out.entry.source == source)
            raise DataError(
                f"{count} of {source}'s {total[source]} images cannot be read, for example "
                f"{example.entry.path} ({example.detail}): copy them again or remove them"
            )
    return [Picture(entry, found) for entry, found in pairs if not found.error], bad


def drop_copies(pictures: Sequence[Picture]) -> tuple[list[Picture], list[LeftOut]]:
    """Keep the largest image of each group of copies; none if a group has both classes."""
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
        left_out += _leave_out_copies(of_group)
        for i in group.members:
            del kept[i]
        if len({p.entry.label for p in of_group}) == 1:
            copies = tuple(p.entry for p in of_group[1:])
            kept[best] = replace(pictures[best], copies=copies)
    return [kept[i] for i in sorted(kept)], left_out


def _leave_out_copies(group: Sequence[Picture]) -> Iterator[LeftOut]:
    """Yield the images of a group of copies to leave out; the first has the highest rank."""
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
    """Describe images whose copies are in other splits; possibly empty."""
    conflicts = [p for p in pictures if len({e.split for e in p.entries if e.split}) > 1]
    if not conflicts:
        return ""
    one = conflicts[0]
    other = next(e for e in one.copies if e.split not in ("", one.split))
    return (
        f"{len(conflicts)} images have copies in another split, for example "
        f"{display_name(one.entry)} in {one.split} and {display_name(other)} in {other.split}: the "
        "copies are left out"
    )


def require_classes(pictures: Iterable[Picture], left_out: Iterable[LeftOut]) -> None:
    """Check that both classes have an image.

    Raises:
        DataError: a class has none.
    """
    there = {picture.entry.label for picture in pictures}
    for label in CLASSES:
        if label not in there:
            why = count_reasons(out for out in left_out if out.entry.label == label)
            raise DataError(f"no {label} image is left" + (f": {why}" if why else ": add some"))


def count_reasons(left_out: Iterable[LeftOut]) -> str:
    """Summarise the reasons, such as `3 copies, 1 too small`; possibly empty."""
    reasons = Counter(out.reason for out in left_out)
    return ", ".join(f"{count} {REASONS[name]}" for name, count in sorted(reasons.items()))


def drop_small(pictures: Sequence[Picture], side: int) -> tuple[list[Picture], list[LeftOut]]:
    """Separate images whose shorter side has at least `side` pixels from the others.

    Raises:
        DataError: a source has no such image.
    """
    small = [
        LeftOut(p.entry, "too_small", f"{p.facts.side} pixels, less than {side}")
        for p in pictures
        if p.facts.side < side
    ]
    large = [picture for picture in pictures if picture.facts.side >= side]
    lost = {p.entry.source for p in pictures} - {p.entry.source for p in large}
    if lost:
        raise DataError(f"no image of {min(lost)} has {side} pixels: lower --side")
    return large, small


def find_classes_without_val(pictures: Iterable[Picture]) -> frozenset[str]:
    """Return the classes that need val images from train, as `ffd-train` takes them.

    No image has the split val, and all images of these classes have a split.
    """
    splits: dict[str, set[str]] = {}
    for picture in pictures:
        splits.setdefault(picture.entry.label, set()).add(picture.split)
    if any("val" in given for given in splits.values()):
        return frozenset()
    return frozenset(
        label for label, given in splits.items() if "train" in given and "" not in given
    )


def assign(
    pictures: Sequence[Picture], shares: Sequence[int]
) -> tuple[dict[str, list[Picture]], list[LeftOut]]:
    """Assign images to splits, sorted by the hash of their content.

    Given splits are kept, and the images of one person stay together, including people who share a
    copy. If their given splits differ, the split with most of their images is used, and those in
    other splits are left out. Other images are assigned by the hash of their identity or content,
    with the same shares for each source. A source that is too small for val and test images of its
    own passes its shares on to the next source of its class. In the classes of
    `find_classes_without_val`, some images of train become val.

    Args:
        pictures: images without copies.
        shares: percentages of train, val and test; they sum to 100.

    Returns:
        The images by split, and the images left out.
    """
    splits: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    free: dict[tuple[str, str], list[list[Picture]]] = {}
    left_out: list[LeftOut] = []
    lacking = find_classes_without_val(pictures) if shares[1] else frozenset()
    for group in _group_persons(pictures):
        given = Counter(p.split for p in group if p.split)
        may_move = set(given) == {"train"} and lacking.issuperset(p.entry.label for p in group)
        if given and not may_move:
            ours = max(SPLITS, key=lambda split: given[split])
            splits[ours] += [p for p in group if p.split in ("", ours)]
            left_out += _leave_out_others(group, ours)
        else:
            # A person in several sources belongs to the source with most of the images.
            sources = Counter((p.entry.label, p.entry.source) for p in group)
            most = max(sorted(sources), key=lambda source: sources[source])
            free.setdefault(most, []).append(group)
    for label in CLASSES:
        of_label = [free[key] for key in sorted(free) if key[0] == label]
        own = (100 - shares[1], shares[1], 0) if label in lacking else shares
        for split, group in _share_out(of_label, own):
            splits[split] += group
    for split in SPLITS:
        splits[split].sort(key=lambda p: p.facts.sha256)
    return splits, left_out


def _leave_out_others(group: Sequence[Picture], split: str) -> Iterator[LeftOut]:
    """Yield the images of a group whose given split differs from the group's."""
    example = next(p for p in group if p.split == split)
    for picture in group:
        if picture.split not in ("", split):
            detail = f"{picture.split}; {display_name(example.entry)} is in {split}"
            yield LeftOut(picture.entry, "other_split", detail)


def describe_other_splits(left_out: Sequence[LeftOut]) -> str:
    """Describe the images that `assign` left out."""
    one = left_out[0]
    return (
        f"left out {counted(len(left_out), 'image')} of people whom copies connect to another "
        f"split, for example {display_name(one.entry)} in {one.detail}"
    )


def require_splits(splits: dict[str, list[Picture]], shares: Sequence[int]) -> None:
    """Check that every requested or non-empty split has both classes.

    Raises:
        DataError: a class has no image in one of them.
    """
    for split, share in zip(SPLITS, shares, strict=True):
        for label in CLASSES:
            wanted = share or splits[split]
            if wanted and not any(p.entry.label == label for p in splits[split]):
                raise DataError(
                    f"no {label} image is left for {split}: add more, or choose another --split"
                )


def left_out_bytes(left_out: Iterable[LeftOut]) -> bytes:
    """Return left_out.csv."""
    rows = ((o.entry.label, o.entry.source, o.entry.name, o.reason, o.detail) for o in left_out)
    return csv_bytes(("label", "source", "original", "reason", "detail"), sorted(rows))


def inputs_sha256(entries: Sequence[Entry], facts: Sequence[FileFacts]) -> str:
    """Return a digest of all images and their metadata."""
    # Without a family, as in version 0.1.0: existing data sets stay valid.
    lines = sorted(
        "\0".join(
            (e.label, e.source, e.name, e.identity, e.split, f.sha256 or f.error, e.family)
        ).removesuffix("\0")
        for e, f in zip(entries, facts, strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _rank(picture: Picture) -> tuple[int, str, str, str]:
    entry, facts = picture.entry, picture.facts
    return -facts.side, facts.sha256, entry.source, entry.name


def display_name(entry: Entry) -> str:
    """Return the name of an image in messages."""
    return f"{entry.source}: {entry.name}"


def _group_persons(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Group the images of one person, or of people who share a copy."""
    groups: dict[tuple[Path, str] | str, list[Picture]] = {}
    persons = [[e.person for e in picture.entries if e.person] for picture in pictures]
    people = DisjointSet(itertools.chain.from_iterable(persons))
    for shown in persons:
        for other in shown[1:]:
            people.merge(shown[0], other)
    for picture, shown in zip(pictures, persons, strict=True):
        key = people[shown[0]] if shown else picture.facts.sha256
        groups.setdefault(key, []).append(picture)
    return list(groups.values())


def _share_out(
    sources: Iterable[list[list[Picture]]], shares: Sequence[int]
) -> Iterator[tuple[str, list[Picture]]]:
    """Yield a split for each group of each source of a class.

    What a source lacks of a split, because it is small, the next sources have in addition. It is at
    most half of a person, so that a source of one person with many images does not take the next
    sources out of train.
    """
    lacking = dict.fromkeys(("val", "test"), 0.0)
    for groups in sources:
        total = sum(len(group) for group in groups)
        most = max(map(len, groups)) / 2
        lacking["val"] = min(lacking["val"], most) + total * shares[1] / 100
        lacking["test"] = min(lacking["test"], most) + total * shares[2] / 100
        for group in sorted(groups, key=_hash_order):
            half = len(group) / 2
            split = next((name for name, count in lacking.items() if count > half), "train")
            if split != "train":
                lacking[split] -= len(group)
            yield split, group


def _hash_order(group: list[Picture]) -> bytes:
    # Hash the identity: sorting by name would not be random.
    key = min(p.identity or p.facts.sha256 for p in group)
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

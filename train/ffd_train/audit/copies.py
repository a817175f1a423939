"""Detection of copies: identical files, or images saved again in another size or quality.

Mirrored, rotated and cropped copies are not found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Ints = npt.NDArray[np.int64]

# Maximum number of different bits between hashes of copies. On the real faces of the tests, JPEG
# 30, a quarter of the size and a blur of 2 pixels change at most 4.
DISTANCE = 6
# Minimum correlation of the thumbnails' grey levels. Among 8,400 aligned faces, the 21 pairs above
# it are all copies, and the most similar two people have 0.977. JPEG 30, a quarter of the size,
# blur and gamma 1.4 stay above 0.99.
CORRELATION = 0.98
# Standard deviation, in grey levels, below which an image has no pattern to compare.
_FLAT = 1.0
_POPULATION = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)
_CHUNK = 1 << 15


@dataclass(frozen=True)
class Copies:
    """A group of copies.

    Attributes:
        members: indices of the images, ascending.
        exact: whether all files are identical.
    """

    members: tuple[int, ...]
    exact: bool


def find_copies(
    digests: npt.NDArray[np.uint8],
    hashes: npt.NDArray[np.uint64],
    smalls: npt.NDArray[np.uint8],
) -> list[Copies]:
    """Group the images that are copies of each other.

    Hashes within `DISTANCE` bits agree in at least one of `DISTANCE` + 1 bands of bits, so only
    images that share a band are compared.

    Args:
        digests: uint8 [N, 32], sha256 of the files.
        hashes: uint64 [N], perceptual hashes.
        smalls: uint8 [N, side, side, 3], thumbnails.

    Returns:
        Groups of at least two images, sorted by their first member.
    """
    if len(hashes) == 0:
        return []
    _, first, same_file = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    same_file = same_file.ravel()
    patterns = _patterns(smalls[first])
    pairs = [np.empty((2, 0), np.int64)]
    leaders = _same_hash(hashes[first], patterns, pairs)
    for candidates in _candidates(hashes[first][leaders]):
        pairs.append(_verified(leaders[candidates], patterns))
    one, other = np.concatenate(pairs, axis=1)
    size = len(first)
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), (size, size))
    _, group_of_file = connected_components(graph, directed=False)
    return _groups(group_of_file[same_file], same_file)


def _groups(group_of: Ints, file_of: Ints) -> list[Copies]:
    order = np.argsort(group_of, kind="stable")
    starts = np.flatnonzero(np.diff(group_of[order])) + 1
    groups = [members for members in np.split(order, starts) if len(members) > 1]
    found = [
        Copies(tuple(int(i) for i in members), len(np.unique(file_of[members])) == 1)
        for members in groups
    ]
    return sorted(found, key=lambda copies: copies.members)


def _patterns(smalls: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return grey levels with mean 0 and norm 1; all 0 for a flat image, which has no copies."""
    grey = smalls.reshape(len(smalls), -1, 3).mean(axis=2, dtype=np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    length = np.sqrt((grey * grey).sum(axis=1, keepdims=True))
    flat = length < _FLAT * np.sqrt(grey.shape[1])
    pattern: npt.NDArray[np.float32] = np.where(flat, 0, grey / np.maximum(length, 1e-6))
    return pattern


def _same_hash(
    hashes: npt.NDArray[np.uint64], patterns: npt.NDArray[np.float32], pairs: list[Ints]
) -> Ints:
    """Pair images of equal hash with one leader, so that the pairs grow only linearly.

    Returns:
        Indices of the leaders, which must be compared with each other.
    """
    rest = np.flatnonzero(patterns.any(axis=1))
    leaders = []
    while len(rest):
        _, first, group = np.unique(hashes[rest], return_index=True, return_inverse=True)
        leader = rest[first]
        leaders.append(leader)
        both = np.stack([leader[group], rest])[:, np.isin(rest, leader, invert=True)]
        joined = _verified(both, patterns)
        pairs.append(joined)
        rest = np.setdiff1d(both[1], joined[1])
    return np.sort(np.concatenate(leaders)) if leaders else rest


def _candidates(hashes: npt.NDArray[np.uint64]) -> Iterator[Ints]:
    """Yield pairs of indices with similar hashes, in chunks of [2, M]; pairs may repeat."""
    edges = np.linspace(0, 64, DISTANCE + 2).round().astype(int)
    for low, high in pairwise(edges.tolist()):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band = band[order]
        at = np.arange(len(band))
        step = 1
        while len(at := at[at + step < len(band)]):
            at = at[band[at] == band[at + step]]
            one, other = order[at], order[at + step]
            near = _distance(hashes[one], hashes[other]) <= DISTANCE
            if near.any():
                yield np.stack([one[near], other[near]])
            step += 1


def _distance(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> Ints:
    parts = (one ^ other).view(np.uint16).reshape(-1, 4)
    return np.asarray(_POPULATION[parts].sum(axis=1), np.int64)


def _verified(pairs: Ints, patterns: npt.NDArray[np.float32]) -> Ints:
    """Select the pairs, [2, M], with correlated thumbnails."""
    alike = [
        (patterns[part[0]] * patterns[part[1]]).sum(axis=1) >= CORRELATION
        for part in np.split(pairs, range(_CHUNK, pairs.shape[1], _CHUNK), axis=1)
    ]
    return pairs[:, np.concatenate(alike)]

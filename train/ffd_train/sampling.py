"""Which samples an epoch draws, in which order, and how batches, processes and parts share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from ffd_runtime.core.errors import DataError

from .data import Sample

BALANCES = ("source", "class", "none")
# Shards that are read at a time: an epoch's order is shuffled within as many.
WINDOW = 4

# Position in the epoch's order, and index of the sample.
Draw = tuple[int, int]


def draw_epoch(
    samples: Sequence[Sample], balance: str, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """The indices that an epoch trains on, in order: as many as there are samples.

    The same however often it is asked for. With `class`, both classes are drawn equally often; with
    `source`, within a class also each source in proportion to the square root of its size, so that
    a small one is heard and not worn out. Nothing is drawn twice before all of its source was drawn
    once. Samples in shards are drawn a few shards at a time, so that a slow disk reads in order.

    Args:
        samples: of the training split.
        balance: one of `BALANCES`.
        seed: of the run.
        epoch: over all stages.

    Returns:
        int64 [len(samples)].
    """
    rng = np.random.default_rng((seed, epoch))
    if balance == "none":
        return _by_shard(samples, rng.permutation(len(samples)), rng)
    groups: dict[tuple[int, str | None], list[int]] = {}
    for index, sample in enumerate(samples):
        source = sample.source if balance == "source" else None
        groups.setdefault((sample.label, source), []).append(index)
    keys = sorted(groups, key=lambda key: (key[0], key[1] or ""))
    counts = _share_out(len(samples), [(label, len(groups[label, s])) for label, s in keys])
    drawn = [
        _draw_all(np.array(groups[key]), count, rng)
        for key, count in zip(keys, counts, strict=True)
    ]
    return _by_shard(samples, rng.permutation(np.concatenate(drawn)), rng)


def _share_out(total: int, groups: Sequence[tuple[int, int]]) -> list[int]:
    """How many draws each (label, size) gets; they sum to the total."""
    labels = np.array([label for label, _ in groups])
    weight = np.sqrt([float(size) for _, size in groups])
    for label in np.unique(labels):
        weight[labels == label] /= weight[labels == label].sum()
    exact = weight / weight.sum() * total
    ends = np.rint(np.cumsum(exact)).astype(int)
    return [int(count) for count in np.diff(ends, prepend=0)]


def _draw_all(
    indices: npt.NDArray[np.int64], count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    rounds = -(-count // len(indices))
    return np.concatenate([rng.permutation(indices) for _ in range(max(1, rounds))])[:count]


def _by_shard(
    samples: Sequence[Sample], order: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """The shuffled order, sorted by windows of shards; as it is where there are no shards."""
    shards = [samples[index].shard for index in order]
    names = sorted({shard for shard in shards if shard is not None})
    if not names:
        return order
    window = {names[i]: rank // WINDOW for rank, i in enumerate(rng.permutation(len(names)))}
    ranks = np.array([-1 if shard is None else window[shard] for shard in shards])
    return order[np.argsort(ranks, kind="stable")]


def possible_parts(batch: int, processes: int = 1) -> list[int]:
    """In how many parts each process can take its share of a batch, from few to many.

    All parts are of one size, and of two images at least: BatchNorm cannot train on a single one.

    Args:
        batch: images a step, over all processes.
        processes: that train together.
    """
    return [n for n in range(1, batch // processes // 2 + 1) if batch % (n * processes) == 0]


class Batches(Sampler[list[Draw]]):
    """An epoch in batches: what one process loads, a part of a step at a time.

    A step's batch is the same whatever number of processes share it and in however many parts each
    takes its share, and so is the number of steps. The last batch is filled up from the beginning
    of the epoch's order, as further draws.

    Args:
        order: of the epoch, by `draw_epoch`.
        batch: images a step, over all processes.
        parts: that each process takes its share of a step in.
        rank: of this process.
        processes: that train together.

    Raises:
        DataError: the batch cannot be shared out evenly, two images or more to a part.
    """

    def __init__(
        self,
        order: npt.NDArray[np.int64],
        batch: int,
        parts: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        if parts not in possible_parts(batch, processes):
            raise DataError(
                f"{batch} images a step cannot be shared evenly by {processes} x {parts} "
                "(processes x parts), two or more to each: choose another --batch or --accumulate"
            )
        self.parts = parts
        self._order = order
        self._size = batch // (processes * parts)
        first = rank * parts * self._size
        self._shares = range(first, -(-len(order) // batch) * batch, batch)

    def __len__(self) -> int:
        return len(self._shares) * self.parts

    def __iter__(self) -> Iterator[list[Draw]]:
        count = len(self._order)
        for share in self._shares:
            for part in range(self.parts):
                first = share + part * self._size
                draws = range(first, first + self._size)
                yield [(at, int(self._order[at % count])) for at in draws]

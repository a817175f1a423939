"""The order in which an epoch draws samples, and the micro-batches of each process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from ffd_runtime.core.errors import DataError

from .face_data import Sample

# Number of shards that an epoch's order is shuffled within, and that are read at a time.
SHUFFLE_WINDOW_SHARDS = 4

# Position in the epoch's order, and index of the sample.
Draw = tuple[int, int]


def draw_epoch(
    samples: Sequence[Sample], balance: str, seed: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Draw the indices that an epoch trains on, as many as there are samples.

    The result is deterministic. `class` draws both classes equally often. `source` also draws the
    sources of a class in proportion to the square root of their size, which gives small sources
    weight without repeating them too often. No sample repeats before all of its group was drawn.
    Packed samples are drawn from a few shards at a time, so that slow disks read sequentially.

    Args:
        samples: samples of the training split.
        balance: `source`, `class` or `none`.
        seed: seed of the run.
        epoch: epoch, counted over all stages.

    Returns:
        int64 [len(samples)].
    """
    rng = np.random.default_rng((seed, epoch))
    if balance == "none":
        return _group_by_shard(samples, rng.permutation(len(samples)), rng)
    groups: dict[tuple[int, str | None], list[int]] = {}
    for index, sample in enumerate(samples):
        source = sample.source if balance == "source" else None
        groups.setdefault((sample.label, source), []).append(index)
    keys = sorted(groups, key=lambda key: (key[0], key[1] or ""))
    sizes = [(label, len(groups[label, source])) for label, source in keys]
    counts = _count_draws(len(samples), sizes, rng)
    drawn = []
    for key, count in zip(keys, counts, strict=True):
        rounds = max(1, -(-count // len(groups[key])))
        drawn.append(np.concatenate([rng.permutation(groups[key]) for _ in range(rounds)])[:count])
    return _group_by_shard(samples, rng.permutation(np.concatenate(drawn)), rng)


def _count_draws(
    total: int, groups: Sequence[tuple[int, int]], rng: np.random.Generator
) -> list[int]:
    """Return the number of draws of each (label, size) group; they sum to the total.

    Fractions are rounded at random, as in systematic sampling, so that a group with less than one
    draw per epoch is drawn in some epochs.
    """
    labels = np.array([label for label, _ in groups])
    weight = np.sqrt([float(size) for _, size in groups])
    for label in np.unique(labels):
        weight[labels == label] /= weight[labels == label].sum()
    exact = weight / weight.sum() * total
    # The groups of a label stay together, so that the number of its draws is rounded once.
    order = np.lexsort((rng.random(len(groups)), labels))
    ends = np.floor(np.cumsum(exact[order]) + rng.random()).astype(int)
    ends[-1] = total
    counts = np.empty(len(groups), int)
    counts[order] = np.diff(ends, prepend=0)
    return [int(count) for count in counts]


def _group_by_shard(
    samples: Sequence[Sample], order: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Sort the shuffled order by windows of shards; samples in folders keep their order."""
    shards = [samples[index].shard for index in order]
    names = sorted({shard for shard in shards if shard is not None})
    if not names:
        return order
    window = {
        names[i]: rank // SHUFFLE_WINDOW_SHARDS
        for rank, i in enumerate(rng.permutation(len(names)))
    }
    ranks = np.array([-1 if shard is None else window[shard] for shard in shards])
    return order[np.argsort(ranks, kind="stable")]


def possible_accumulation_steps(batch: int, world_size: int = 1) -> list[int]:
    """List the gradient accumulation steps that a batch over all processes allows, ascending.

    All micro-batches have the same size, and at least two images: BatchNorm cannot train on one.
    """
    return [n for n in range(1, batch // world_size // 2 + 1) if batch % (n * world_size) == 0]


class MicroBatchSampler(Sampler[list[Draw]]):
    """The micro-batches that one process loads in an epoch.

    The images of an optimizer step, and the number of steps, do not depend on the world size or
    the accumulation steps. The last batch is filled with further draws from the beginning of the
    order.

    Args:
        order: order of the epoch, from `draw_epoch`.
        batch: images per optimizer step, over all processes.
        accumulation_steps: micro-batches per process and optimizer step.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        DataError: the batch cannot be divided into equal micro-batches of two images or more.
    """

    def __init__(
        self,
        order: npt.NDArray[np.int64],
        batch: int,
        accumulation_steps: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if accumulation_steps not in possible_accumulation_steps(batch, world_size):
            raise DataError(
                f"a batch of {batch} images cannot be divided evenly into {world_size} x "
                f"{accumulation_steps} micro-batches (processes x accumulation steps) of two "
                "images or more: choose another --batch or --accumulate"
            )
        self.accumulation_steps = accumulation_steps
        self._order = order
        self._size = batch // (world_size * accumulation_steps)
        first = rank * accumulation_steps * self._size
        self._starts = range(first, -(-len(order) // batch) * batch, batch)

    def __len__(self) -> int:
        return len(self._starts) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[Draw]]:
        count = len(self._order)
        for start in self._starts:
            for step in range(self.accumulation_steps):
                first = start + step * self._size
                draws = range(first, first + self._size)
                yield [(at, int(self._order[at % count])) for at in draws]

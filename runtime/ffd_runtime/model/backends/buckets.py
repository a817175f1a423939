"""Batch sizes for a GPU: few, so that the preparation for each size is reused."""

from __future__ import annotations

from collections.abc import Sequence


def find_buckets(least: int, most: int) -> tuple[int, ...]:
    """Return the powers of two from the smallest to the largest batch, and these two.

    Example:
        >>> find_buckets(1, 24), find_buckets(3, 8)
        ((1, 2, 4, 8, 16, 24), (3, 4, 8))
    """
    powers = {1 << exponent for exponent in range(most.bit_length())}
    return tuple(sorted({least, most} | {size for size in powers if least <= size <= most}))


def choose_bucket(buckets: Sequence[int], count: int) -> int:
    """Return the smallest of ascending buckets that holds `count` images.

    Example:
        >>> choose_bucket((1, 2, 4, 8), 3)
        4
    """
    return next(size for size in buckets if size >= count)


class SteadyBucket:
    """Chooses buckets for a device that has a cost for each change of the batch size.

    A larger bucket is used immediately. A smaller one is used only after `patience` consecutive
    batches that fit it, so that one short batch between full ones changes nothing.

    Example:
        >>> steady = SteadyBucket((1, 2, 4, 8), patience=2)
        >>> [steady.choose(count) for count in (7, 3, 8, 1, 2, 1, 1)]
        [8, 8, 8, 8, 2, 2, 1]
    """

    def __init__(self, buckets: Sequence[int], patience: int) -> None:
        self._buckets = buckets
        self._patience = patience
        self._size = 0
        # Buckets of the latest batches, while all of them are smaller than the current one.
        self._smaller: list[int] = []

    def choose(self, count: int) -> int:
        """Return the bucket for the next batch; `count` is at most the last bucket."""
        needed = choose_bucket(self._buckets, count)
        if needed >= self._size:
            self.settle(count)
            return self._size
        self._smaller.append(needed)
        if len(self._smaller) >= self._patience:
            self.settle(max(self._smaller))
        return self._size

    def settle(self, count: int) -> None:
        """Use the smallest bucket that holds `count` images; 0 forgets the current bucket."""
        self._size = choose_bucket(self._buckets, count) if count else 0
        self._smaller = []

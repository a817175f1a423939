"""Batch sizes that a GPU runs: a few, so that what it prepares for a size is used again."""

from __future__ import annotations

from collections.abc import Sequence


def find_buckets(least: int, most: int) -> tuple[int, ...]:
    """Batch sizes that run: the powers of two from the least to the most, and both of these.

    Example:
        >>> find_buckets(1, 24), find_buckets(3, 8)
        ((1, 2, 4, 8, 16, 24), (3, 4, 8))
    """
    powers = {1 << exponent for exponent in range(most.bit_length())}
    return tuple(sorted({least, most} | {size for size in powers if least <= size <= most}))


def choose_bucket(buckets: Sequence[int], count: int) -> int:
    """The smallest bucket that holds `count` images.

    Args:
        buckets: in ascending order.
        count: at most the last bucket.

    Example:
        >>> choose_bucket((1, 2, 4, 8), 3)
        4
    """
    return next(size for size in buckets if size >= count)


class SteadyBucket:
    """Chooses buckets for a device that prepares anew at each change of the batch size.

    A larger size is taken at once. A smaller one is taken only after `patience` batches in a row
    that it would have held: one short batch between full ones changes nothing.

    Args:
        buckets: in ascending order.
        patience: batches in a row.

    Example:
        >>> steady = SteadyBucket((1, 2, 4, 8), patience=2)
        >>> [steady.choose(count) for count in (7, 3, 8, 1, 2, 1, 1)]
        [8, 8, 8, 8, 2, 2, 1]
    """

    def __init__(self, buckets: Sequence[int], patience: int) -> None:
        self._buckets = buckets
        self._patience = patience
        self._size = 0
        # Buckets of the latest batches, as long as all of them were smaller than the current one.
        self._smaller: list[int] = []

    def choose(self, count: int) -> int:
        """The bucket for the next batch.

        Args:
            count: images in it, at most the last bucket.
        """
        needed = choose_bucket(self._buckets, count)
        if needed >= self._size:
            self.settle(count)
            return self._size
        self._smaller.append(needed)
        if len(self._smaller) >= self._patience:
            self.settle(max(self._smaller))
        return self._size

    def settle(self, count: int) -> None:
        """Take the smallest bucket that holds `count` images, whatever came before.

        Args:
            count: as for `choose`; 0 to forget the current bucket.
        """
        self._size = choose_bucket(self._buckets, count) if count else 0
        self._smaller = []

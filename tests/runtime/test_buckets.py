from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.model.backends.buckets import SteadyBucket, choose_bucket, find_buckets

LIMITS = st.tuples(st.integers(1, 2000), st.integers(1, 2000)).map(lambda pair: sorted(pair))


@pytest.mark.parametrize(
    ("least", "most", "buckets"),
    [
        (1, 1, (1,)),
        (1, 4, (1, 2, 4)),
        (1, 24, (1, 2, 4, 8, 16, 24)),
        (3, 8, (3, 4, 8)),
        (6, 7, (6, 7)),
        (8, 8, (8,)),
    ],
)
def test_buckets(least: int, most: int, buckets: tuple[int, ...]) -> None:
    assert find_buckets(least, most) == buckets


@given(LIMITS, st.data())
def test_a_batch_gets_the_smallest_bucket_that_holds_it(
    limits: list[int], data: st.DataObject
) -> None:
    least, most = limits
    buckets = find_buckets(least, most)
    assert (buckets[0], buckets[-1]) == (least, most)
    assert len(buckets) <= most.bit_length() + 2
    count = data.draw(st.integers(1, most))
    bucket = choose_bucket(buckets, count)
    assert bucket >= count
    assert not [size for size in buckets if count <= size < bucket]
    # Less than half of a batch is padding, except in the smallest bucket.
    assert bucket == least or bucket < 2 * count


COUNTS = st.lists(st.integers(1, 64), max_size=60)


@given(COUNTS, st.integers(1, 8))
def test_a_smaller_bucket_is_used_only_after_several_small_batches(
    counts: list[int], patience: int
) -> None:
    buckets = find_buckets(1, 64)
    steady = SteadyBucket(buckets, patience)
    sizes = [steady.choose(count) for count in counts]
    for size, count in zip(sizes, counts, strict=True):
        assert size in buckets
        assert size >= count
    for now in range(1, len(sizes)):
        if sizes[now] > sizes[now - 1]:
            assert sizes[now] == choose_bucket(buckets, counts[now])
        if sizes[now] < sizes[now - 1]:
            window = counts[now + 1 - patience : now + 1]
            assert len(window) == patience
            assert sizes[now] == choose_bucket(buckets, max(window))
            assert set(sizes[now - patience : now]) == {sizes[now - 1]}


@given(COUNTS, st.integers(1, 64))
def test_settling_ignores_earlier_batches(counts: list[int], count: int) -> None:
    buckets = find_buckets(1, 64)
    steady = SteadyBucket(buckets, patience=4)
    for other in counts:
        steady.choose(other)
    steady.settle(count)
    assert steady.choose(1) == choose_bucket(buckets, count) or count == 1
    steady.settle(0)
    assert steady.choose(1) == 1

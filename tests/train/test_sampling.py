from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.core.errors import DataError
from ffd_train.face_data import Sample
from ffd_train.sampling import (
    SHUFFLE_WINDOW_SHARDS,
    MicroBatchSampler,
    draw_epoch,
    possible_accumulation_steps,
)


def samples(*groups: tuple[int, str, int], shards: int = 0) -> list[Sample]:
    made = [
        Sample(f"{source}/{i}.png", label, "train", "", source)
        for label, source, count in groups
        for i in range(count)
    ]
    if not shards:
        return made
    return [
        Sample(s.path, s.label, s.split, "", s.source, shard=i % shards) for i, s in enumerate(made)
    ]


def test_sources_are_drawn_by_the_root_of_their_size() -> None:
    given_samples = samples((0, "a", 400), (0, "b", 100), (1, "c", 90), (1, "d", 10))
    drawn = Counter(given_samples[i].source for i in draw_epoch(given_samples, "source", 0, 0))
    assert drawn == {"a": 200, "b": 100, "c": 225, "d": 75}


def test_sources_with_less_than_one_draw_take_turns() -> None:
    """Such as sources of a person, or of a video, each."""
    groups = [(1, f"person {number}", 1) for number in range(60)]
    given_samples = samples((0, "generator", 20), *groups)
    seen: set[str | None] = set()
    for epoch in range(60):
        order = draw_epoch(given_samples, "source", 0, epoch)
        drawn = [given_samples[i] for i in order]
        assert len(drawn) == len(given_samples)
        generated = sum(sample.label == 0 for sample in drawn)
        assert abs(generated - len(drawn) / 2) < 1
        seen |= {sample.source for sample in drawn}
    assert len(seen) == 61


def test_balance_by_class_or_none() -> None:
    given_samples = samples((0, "a", 30), (1, "b", 90))
    by_class = draw_epoch(given_samples, "class", 0, 0)
    assert Counter(given_samples[i].label for i in by_class) == {0: 60, 1: 60}
    as_they_are = draw_epoch(given_samples, "none", 0, 0)
    assert sorted(as_they_are) == list(range(120))


@given(st.integers(0, 9), st.sampled_from(["source", "class", "none"]), st.integers(1, 40))
def test_an_epoch_is_deterministic_and_spreads_repetitions(
    seed: int, balance: str, small: int
) -> None:
    given_samples = samples((0, "a", 40), (0, "b", small), (1, "c", 25))
    order = draw_epoch(given_samples, balance, seed, 1)
    assert len(order) == len(given_samples)
    assert (order == draw_epoch(given_samples, balance, seed, 1)).all()
    assert not np.array_equal(order, draw_epoch(given_samples, balance, seed, 2))
    times = np.bincount(order, minlength=len(given_samples))
    for source in "abc":
        own = [times[i] for i, s in enumerate(given_samples) if s.source == source]
        if balance == "source":
            assert max(own) - min(own) <= 1


def test_shards_are_read_a_few_at_a_time() -> None:
    given_samples = samples((0, "a", 200), (1, "b", 200), shards=20)
    order = draw_epoch(given_samples, "source", 0, 0)
    assert Counter(order) == Counter(range(400))
    seen = [given_samples[i].shard for i in order]
    for start in range(0, 400, 20 * SHUFFLE_WINDOW_SHARDS):
        assert len(set(seen[start : start + 20 * SHUFFLE_WINDOW_SHARDS])) == SHUFFLE_WINDOW_SHARDS
    first = seen[: 20 * SHUFFLE_WINDOW_SHARDS]
    assert first != sorted(first, key=str)
    assert {given_samples[i].label for i in order[:20]} == {0, 1}


@given(st.integers(2, 70), st.integers(2, 20), st.integers(1, 3), st.integers(1, 3))
def test_processes_and_micro_batches_share_a_step(
    count: int, batch: int, parts: int, processes: int
) -> None:
    order = np.random.default_rng(0).permutation(count)
    whole = list(MicroBatchSampler(order, batch))
    if batch % (parts * processes) or batch < 2 * parts * processes:
        assert parts not in possible_accumulation_steps(batch, processes)
        for rank in range(processes):
            with pytest.raises(DataError, match="cannot be divided evenly into .*: choose another"):
                MicroBatchSampler(order, batch, parts, rank, processes)
        return
    shared = [
        list(MicroBatchSampler(order, batch, parts, rank, processes)) for rank in range(processes)
    ]
    assert len({len(batches) for batches in shared}) == 1
    assert len(shared[0]) == len(MicroBatchSampler(order, batch, parts, 0, processes))
    assert len(shared[0]) == len(whole) * parts
    for step, expected in enumerate(whole):
        together = [
            draw
            for batches in shared
            for part in batches[step * parts : (step + 1) * parts]
            for draw in part
        ]
        assert together == expected


@given(st.integers(1, 70), st.integers(2, 20))
def test_an_epoch_has_every_image_in_full_batches(count: int, batch: int) -> None:
    order = np.random.default_rng(0).permutation(count)
    batches = list(MicroBatchSampler(order, batch))
    assert len(batches) == -(-count // batch)
    assert {len(draws) for draws in batches} == {batch}
    positions = [at for draws in batches for at, _ in draws]
    assert positions == list(range(len(positions)))
    drawn = [index for draws in batches for _, index in draws]
    assert drawn[:count] == list(order)
    # Repeated images at the end are further draws: the position determines their augmentation.
    assert drawn[count:] == [order[at % count] for at in range(count, len(drawn))]


@pytest.mark.parametrize("balance", ["source", "class"])
def test_a_single_class_is_drawn_completely(balance: str) -> None:
    given_samples = samples((1, "a", 12))
    assert sorted(draw_epoch(given_samples, balance, 0, 0)) == list(range(12))

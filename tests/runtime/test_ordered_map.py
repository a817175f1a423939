"""Results in order, few calls at once, and no further calls after the caller stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ffd_runtime.core.ordered_map import map_in_order


def test_yields_in_order_for_any_durations() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(map_in_order(pool, work, range(20), ahead=8)) == list(range(20))


def test_reads_at_most_the_given_number_ahead() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        results = map_in_order(pool, str, source(), ahead=5)
        assert next(results) == "0"
        assert len(taken) == 6
        results.close()  # type: ignore[attr-defined]
    assert len(taken) == 6


def test_raises_the_exception_of_a_call_in_order() -> None:
    with ThreadPoolExecutor(2) as pool:
        results = map_in_order(pool, lambda n: 1 // n, [1, 1, 0, 1], ahead=2)
        assert [next(results), next(results)] == [1, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)

"""Apply a function in a pool, and yield the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_in_order(
    pool: Executor, function: Callable[[In], Out], items: Iterable[In], *, ahead: int
) -> Iterator[Out]:
    """Yield `function(item)` for each item, in order, with a bounded number under way.

    `Executor.map` takes all items at once, so it suits neither an endless source nor one that does
    not fit memory. When the caller stops early, calls that have not begun are cancelled. An
    exception of `function` is raised here. At most `ahead` calls run or wait to be taken.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> with ThreadPoolExecutor(2) as pool:
        ...     list(map_in_order(pool, str.upper, ["a", "b", "c"], ahead=2))
        ['A', 'B', 'C']
    """
    pending: deque[Future[Out]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()

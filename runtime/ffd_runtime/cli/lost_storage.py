"""End a run whose disk or network share is gone, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ..core.errors import StorageError

if TYPE_CHECKING:
    from ..core.results import Result

# Files that cannot be read are rare, and adjacent ones rarer: a bad sector affects a few.
MAX_UNREADABLE_IN_A_ROW = 100


def end_if_lost(results: Iterable[Result]) -> Iterator[Result]:
    """Yield rows; hold back those of unreadable files until a readable one follows, or the end.

    Rows that were written are not classified again by `--resume`, so the rows of a lost disk must
    not be written.

    Raises:
        StorageError: `MAX_UNREADABLE_IN_A_ROW` files in a row are `read_failed`.
    """
    held: list[Result] = []
    for result in results:
        if result.error and result.error.code == "read_failed":
            held.append(result)
            if len(held) >= MAX_UNREADABLE_IN_A_ROW:
                raise StorageError(
                    f"{len(held)} files in a row cannot be read, the first is {held[0].source} "
                    f"({result.error.message}): is the disk or the network share still there?"
                )
        else:
            yield from held
            held.clear()
            yield result
    yield from held

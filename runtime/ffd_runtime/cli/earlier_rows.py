"""The rows of an interrupted run, which a resumed run skips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .command import say

if TYPE_CHECKING:
    from ..core.results import Result
    from ..inputs import Item
    from ..outputs.html_report import Report
    from ..outputs.partial_file import PartialFile


class EarlierRows:
    """The rows of an interrupted run: their total, and `counts` by label or `errors`."""

    def __init__(self, once: bool) -> None:
        """Begin without rows; `once` if each input has one row, rather than one for each face."""
        self.counts: Counter[str] = Counter()
        self.total = 0
        self._by_source: Counter[str] = Counter()
        self._once = once
        self._last = ""
        self._last_rows = 0

    def read(self, file: PartialFile, report: Report | None) -> None:
        """Read the rows that `file` has already."""
        for result in file.earlier():
            self._last = result.source
            self._by_source[self._last] += 1
            self.counts[result.label or "errors"] += 1
            if report:
                report.write(result)
        self.total = self._by_source.total()
        if self.total:
            say(f"resuming after {self.total} rows in {file.partial}")
        if not self._once:
            # A picture has a row for each face. The last one may be incomplete: classify it again.
            self._last_rows = self._by_source.pop(self._last, 0)

    def remaining(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the inputs that have no rows yet."""
        for item in items:
            if self._by_source[item.source] <= 0:
                yield item
            elif self._once:
                self._by_source[item.source] -= 1

    def without_known(self, results: Iterable[Result]) -> Iterator[Result]:
        """Drop the rows of the last picture that are in the file already."""
        for result in results:
            if self._last_rows and result.source == self._last:
                self._last_rows -= 1
            else:
                yield result

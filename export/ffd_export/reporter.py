"""Messages and progress of an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.progress import Progress

# Receives the number of units of a step that were completed since the last call.
Advance: TypeAlias = Callable[[int], None]


class Reporter:
    """Receives the messages and the progress of an export. This one ignores both."""

    def say(self, message: str) -> None:
        """Report a fact, or a warning, in one line."""

    def say_more(self, text: str) -> None:
        """Report details of several lines."""

    def open_bar(self) -> Progress:
        """Return a progress bar, to use as a context manager."""
        return Progress(disable=True)

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        """Track a step of a number of units."""
        with self.open_bar() as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)

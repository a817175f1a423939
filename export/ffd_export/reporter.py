"""Messages and progress of an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from .build_thread import BuildProgress

# Receives how many more units of a step are done.
Advance: TypeAlias = Callable[[int], None]


class Reporter:
    """Receives the messages and the progress of an export. This one ignores both."""

    def say(self, message: str) -> None:
        """Report a fact, or a warning, in one line."""

    def say_more(self, text: str) -> None:
        """Report details of several lines."""

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        """Track a step of a number of units."""
        yield lambda count: None

    @contextmanager
    def track_build(self) -> Iterator[BuildProgress | None]:
        """Track the phases of an engine's build."""
        yield None

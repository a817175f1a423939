"""Messages on stderr, and progress bars if it is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

from ffd_runtime.cli.command import say, say_more

from ..reporter import Advance, Reporter


class TerminalReporter(Reporter):
    """Reports to the person who runs the command."""

    def say(self, message: str) -> None:
        say(message)

    def say_more(self, text: str) -> None:
        say_more(text)

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        with _open_bar() as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)

    @contextmanager
    def track_build(self) -> Iterator[PhaseBars]:
        with _open_bar() as bar:
            yield PhaseBars(bar)


class PhaseBars:
    """A progress bar for each phase of a build that is running."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def begin(self, phase: str, steps: int) -> None:
        """Show a bar for a phase."""
        self._tasks[phase] = self._bar.add_task(phase, total=steps)

    def step(self, phase: str, done: int) -> None:
        """Set the number of finished steps of a phase."""
        if phase in self._tasks:
            self._bar.update(self._tasks[phase], completed=done)

    def end(self, phase: str) -> None:
        """Remove the bar of a phase."""
        if phase in self._tasks:
            self._bar.remove_task(self._tasks.pop(phase))


def _open_bar() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal, transient=True)

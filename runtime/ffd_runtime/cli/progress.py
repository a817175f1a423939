"""The progress bar of a run, and the summary at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..core.text import counted

if TYPE_CHECKING:
    from rich.console import Console

# Names of the counts, as a person reads them.
KINDS = {
    "generated": "generated",
    "groundtruth": "photograph",
    "unsure": "unsure",
    "errors": "error",
}


@contextmanager
def progress(
    console: Console | None, count: Callable[[], int] | None, done: int
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; the total is counted in the background.

    Args:
        console: where to draw; None to draw nothing.
        count: returns the total; None if it cannot be known.
        done: inputs that an interrupted run has classified.

    Yields:
        A function that advances the bar by a number of inputs.
    """
    if console is None or not console.is_terminal:
        yield lambda _: None
        return
    import threading

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(TextColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", "progress.data.speed")

    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), Rate(""), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    bar.start()
    try:
        task = bar.add_task("", total=None, completed=done)
        if count:

            def update() -> None:
                # The run itself meets the same error and reports it.
                with suppress(Exception):
                    bar.update(task, total=count())

            threading.Thread(target=update, daemon=True).start()
        yield lambda count: bar.advance(task, count)
    finally:
        # A terminal that was closed must not end the run.
        with suppress(OSError):
            bar.stop()


def summarise(counts: Counter[str], earlier: int, seconds: float, skipped: Sized = ()) -> str:
    """Describe a run in one line: rows by kind, the rate of new rows, skipped files.

    Args:
        counts: rows by label, or `errors`.
        earlier: rows of the interrupted run that this one resumed.
        seconds: duration of this run.
        skipped: files that are not pictures; its `str` describes them.
    """
    total = counts.total()
    parts = ", ".join(_count(counts[key], name) for key, name in KINDS.items())
    rate = (total - earlier) / max(seconds, 1e-3)
    line = f"{counted(total, 'input')}: {parts} ({rate:.1f} inputs/s)"
    if not total:
        line = "no pictures found" if skipped else "no files found"
    return f"{line}; {skipped}" if skipped else line


def _count(count: int, name: str) -> str:
    return counted(count, name) if name in ("photograph", "error") else f"{count} {name}"

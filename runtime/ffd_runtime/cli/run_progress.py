"""The progress bar of a run, and the summary at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING

from ..core.text import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@contextmanager
def progress(
    console: Console | None, count: Callable[[], int] | None, done: int
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, and yield a function that advances it.

    Args:
        console: where to draw; None to draw nothing.
        count: returns the total, in a thread; None if it cannot be known.
        done: inputs that an interrupted run has classified.
    """
    if console is None or not console.is_terminal:
        yield lambda _: None
        return
    bar = _make_bar(console)
    task = bar.add_task("", total=None, completed=done)

    def show_total() -> None:
        # The run itself meets the same error and reports it.
        with suppress(Exception):
            bar.update(task, total=count() if count else None)

    bar.start()
    try:
        Thread(target=show_total, daemon=True).start()
        yield lambda count: bar.advance(task, count)
    finally:
        # A terminal that was closed must not end the run.
        with suppress(OSError):
            bar.stop()


def _make_bar(console: Console) -> Progress:
    from rich import progress as bars
    from rich.text import Text

    class Rate(bars.TextColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "", "progress.data.speed")

    columns = (bars.SpinnerColumn(), bars.BarColumn(), bars.MofNCompleteColumn(), Rate(""))
    left = bars.TimeRemainingColumn()
    return bars.Progress(*columns, left, console=console, transient=True)


def summarise(
    counts: Counter[str], earlier: int, seconds: float, skipped: Sized = (), faces: bool = False
) -> str:
    """Describe a run in one line: rows by kind, the rate of new rows, skipped files.

    Args:
        counts: rows by label, or `errors`.
        earlier: rows of the interrupted run that this one resumed.
        seconds: duration of this run.
        skipped: files that are not images; its `str` describes them.
        faces: whether each face has a row, rather than each input.
    """
    total = counts.total()
    parts = ", ".join(
        (
            f"{counts['generated']} generated",
            counted(counts["groundtruth"], "photograph"),
            f"{counts['unsure']} unsure",
            counted(counts["errors"], "error"),
        )
    )
    rate = (total - earlier) / max(seconds, 1e-3)
    noun = "row" if faces else "input"
    line = f"{counted(total, noun)}: {parts} ({rate:.1f} {noun}s/s)"
    if not total:
        line = "no images found" if skipped else "no files found"
    return f"{line}; {skipped}" if skipped else line

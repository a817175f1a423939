"""Show one status line per stream at the bottom of a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..core.text import printable
from .frame_result import FrameResult, StreamHealth


class StatusLine:
    """A frame sink that shows one line per stream below the rows.

    Args:
        console: a terminal; rows may be printed on it too.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def show(self, frame_result: FrameResult) -> None:
        """Do nothing: lines change with each tick."""

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Redraw the lines."""
        # The run continues if the terminal has been closed.
        with suppress(OSError):
            self._live.update(Text("\n").join(map(_line, sources)), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._live.stop()


def _line(health: StreamHealth) -> Text:
    style = {"playing": "green", "connecting": "yellow", "ended": ""}.get(health.state, "bold red")
    parts = [f"{health.analysed} frames", f"{health.fps:.1f} fps"]
    if health.live and health.age is not None:
        parts += [f"age {health.age * 1000:.0f} ms", f"{health.dropped} dropped"]
    if health.error:
        parts.append(printable(health.error))
    return Text.assemble(
        (f"{health.state:<11}", style), printable(health.source), f"  {', '.join(parts)}"
    )

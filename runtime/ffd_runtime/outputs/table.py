"""A table for a terminal, printed row by row."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.text import Text

from ..core.results import LABEL_NAMES, Label, Result
from ..core.text import printable

STYLES: dict[Label, str] = {"generated": "bold red", "groundtruth": "green", "unsure": "yellow"}


class Table:
    """Prints rows to a terminal, which may show a progress bar below them."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def write(self, result: Result) -> None:
        if result.error:
            line = Text.assemble(
                (f"{'error':<13}{'':<8}", "magenta"),
                printable(result.source),
                (f"  {result.error.code}: {printable(result.error.message)}", "magenta"),
            )
        else:
            label = result.track.label if result.track else result.label
            score = result.track.score if result.track else result.score
            name = (f"{LABEL_NAMES[label]:<13}", STYLES[label]) if label else f"{'none':<13}"
            line = Text.assemble(
                name,
                f"{'':<8}" if score is None else f"{score:<8.3f}",
                printable(result.source),
                _where(result),
            )
        self.console.print(line, soft_wrap=True)

    def __enter__(self) -> Self:
        self.console.print(Text(f"{'verdict':<13}{'score':<8}source", "bold"))
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _where(result: Result) -> str:
    """Return face, frame and reason of a result as text."""
    parts = []
    if result.track and result.face:
        parts.append(f"face {result.track.number}")
    elif result.face:
        x, y, width, height = result.face
        parts.append(f"face {width}x{height} at {x},{y}")
    if result.frame is not None:
        parts.append(f"frame {result.frame}")
    if result.reason:
        parts.append(result.reason)
    return "  " + ", ".join(parts) if parts else ""

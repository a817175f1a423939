"""The table that a person reads on a terminal, printed row by row."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.text import Text

from ..results import Result
from ..text import printable

STYLES = {"generated": "bold red", "groundtruth": "green", "unsure": "yellow"}


class Table:
    """Rows to a terminal.

    Args:
        console: where; a progress bar may live below the rows on the same one.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def write(self, result: Result) -> None:
        """Print one row."""
        if result.error:
            line = Text.assemble(
                (f"{'error':<13}{'':<8}", "magenta"),
                printable(result.source),
                (f"  {result.error.code}: {printable(result.error.message)}", "magenta"),
            )
        else:
            line = Text.assemble(
                (f"{result.label:<13}", STYLES.get(result.label or "", "")),
                f"{result.score:<8.3f}",
                printable(result.source),
            )
        self.console.print(line, soft_wrap=True)

    def __enter__(self) -> Self:
        self.console.print(Text(f"{'verdict':<13}{'score':<8}source", "bold"))
        return self

    def __exit__(self, *_: object) -> None:
        return None

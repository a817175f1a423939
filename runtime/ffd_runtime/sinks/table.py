"""The table that a person reads on a terminal, printed row by row."""

from __future__ import annotations

import unicodedata
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from ..results import Result

STYLES = {"generated": "bold red", "groundtruth": "green", "unsure": "yellow"}


def printable(text: str) -> str:
    """Text without what could steer a terminal or break a line.

    Control, format (such as right-to-left overrides) and surrogate characters appear escaped.

    Example:
        >>> printable("a\\x1b[31m\\n\\udcff")
        'a\\\\x1b[31m\\\\n\\\\xff'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_safe(c) else _escape(c) for c in text)


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


def _is_safe(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] not in "CZ"


def _escape(character: str) -> str:
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:
        return f"\\x{point - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()

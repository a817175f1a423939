"""Tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from ffd_runtime.core.text import printable


def make_table(
    title: str, texts: Iterable[str], numbers: Iterable[str], caption: str | None = None
) -> Table:
    """Make an empty table with columns of text, then columns of numbers."""
    table = Table(title=Text(printable(title)), caption=caption)
    for name in texts:
        table.add_column(name, overflow="fold", min_width=12)
    for name in numbers:
        table.add_column(name, justify="right")
    return table

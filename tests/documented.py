"""The fields that a page of the documentation lists."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def documented_fields(page: str, title: str) -> list[set[str]]:
    """Return the fields of each table below a heading, from the tables' first column."""
    _, _, rest = (DOCS / page).read_text().partition(f"\n## {title}\n")
    section, _, _ = rest.partition("\n## ")
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert tables, f"{page} has no table below {title}"
    rows = [table.splitlines()[2:] for table in tables]
    return [{name for row in table for name in _codes(row.split("|")[1])} for table in rows]


def _codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)

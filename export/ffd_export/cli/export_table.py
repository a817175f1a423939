"""Print what an export wrote, as JSON Lines or as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..export_files import FileReport

LABELS = ("MB", "layers", "images", "largest |Δp|", "mean |Δp|", "flips", "Δaccuracy", "ΔAUC")


def print_reports(reports: Sequence[FileReport], table: bool) -> None:
    """Print a report for each file to stdout."""
    if not table:
        for report in reports:
            click.echo(json.dumps(report.to_dict()))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ffd_runtime.core.text import printable

    grid = Table(title="compared with the source")
    grid.add_column("")
    for report in reports:
        grid.add_column(Text(printable(report.path.name)), justify="right", overflow="fold")
    for line in zip(LABELS, *map(_cells, reports), strict=True):
        grid.add_row(*line)
    Console(highlight=False).print(grid)


def _cells(report: FileReport) -> list[str]:
    layers = ", ".join(f"{count} {kind}" for kind, count in report.layers.counts().items())
    cells = [f"{len(report.content) / 1e6:.1f}", layers]
    parity = report.parity
    if parity is None:
        return [*cells, "not verified", *"-----"]
    cells += [str(parity.images), f"{parity.largest:.1e}", f"{parity.mean:.1e}", str(parity.flips)]
    for pair, digits in ((parity.accuracy, 4), (parity.auc, 5)):
        cells.append(f"{pair[1] - pair[0]:+.{digits}f}" if pair else "-")
    return cells

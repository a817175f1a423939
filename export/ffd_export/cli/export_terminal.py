"""Messages, progress and results of an export on a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ffd_runtime.cli.command import say, say_more
from ffd_runtime.core.text import printable
from ffd_train.cli.progress_bar import progress_bar

from ..export_files import ExportedFile, describe_file
from ..reporter import Reporter

LABELS = ("MB", "layers", "images", "largest |Δp|", "mean |Δp|", "flips", "Δaccuracy", "ΔAUC")


class TerminalReporter(Reporter):
    """Reports to the person who runs the command."""

    def say(self, message: str) -> None:
        say(message)

    def say_more(self, text: str) -> None:
        say_more(text)

    def open_bar(self) -> Progress:
        return progress_bar()


def print_files(files: Sequence[ExportedFile], table: bool) -> None:
    """Print the facts of each file to stdout."""
    if not files:
        return
    if not table:
        for file in files:
            click.echo(json.dumps(describe_file(file)))
        return
    grid = Table(title="compared with the source")
    grid.add_column("")
    for file in files:
        grid.add_column(Text(printable(file.path.name)), justify="right", overflow="fold")
    for line in zip(LABELS, *map(_cells, files), strict=True):
        grid.add_row(*line)
    Console(highlight=False).print(grid)


def _cells(file: ExportedFile) -> list[str]:
    layers = ", ".join(f"{count} {kind}" for kind, count in file.layers.counts().items())
    cells = [f"{len(file.content) / 1e6:.1f}", layers]
    parity = file.parity
    if parity is None:
        return [*cells, "not verified", *"-----"]
    cells += [str(parity.images), f"{parity.largest:.1e}", f"{parity.mean:.1e}", str(parity.flips)]
    for pair, digits in ((parity.accuracy, 4), (parity.auc, 5)):
        cells.append(f"{pair[1] - pair[0]:+.{digits}f}" if pair else "-")
    return cells

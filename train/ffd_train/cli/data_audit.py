"""ffd-data audit: what a data set gives away besides faces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ffd_runtime.cli.command import Command, say, say_more
from ffd_runtime.cli.options import format_option, version_option, wants_table

if TYPE_CHECKING:
    from ..audit.audit import Audit
    from ..face_data import FaceData

EPILOG = """\b
Examples:
  ffd-data audit faces/
  ffd-data audit faces/ --html audit.html
  ffd-data audit celeba-and-gan/ --sample 5000 --json > audit.json
\b
Every image is read and decoded once. 200,000 of them take 2 GB of memory, and
5 minutes of one core at 300x300 pixels. Exit code: 0 whatever is found, 3 if
some images cannot be read.
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Look at no more than N images of each class and source, the same ones every time. Copies "
    "are then only found among them.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Write one page: verdicts, numbers, histograms, contact sheets, copies side by side.",
)
@format_option("")
@version_option()
def audit(data: Path, sample: int | None, html: Path | None, as_json: bool | None) -> None:
    """Find what tells the classes of DATA apart besides the faces.

    DATA is a folder with generated/ and groundtruth/, or with train/, val/ and test/ that hold
    these two; its manifest.csv, where there is one, names each image's source.
    """
    from datetime import datetime

    import cv2

    from ..audit.audit_page import check_page, write_page
    from ..audit.facts import list_images

    cv2.setNumThreads(1)
    started = datetime.now().astimezone()
    if html:
        check_page(html)
    done = _audit(list_images(data, sample))
    if html:
        write_page(html, done, started)
        say(f"wrote {html}")
    if wants_table(as_json):
        from ..audit.audit_tables import show

        show(done)
    else:
        click.echo(json.dumps({**done.to_dict(), "sample": sample}))
    if done.table.unreadable:
        for one in done.table.unreadable:
            say_more(f"left out {one.sample.path!a}: {one.message}")
        click.get_current_context().exit(3)


def _audit(data: FaceData) -> Audit:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from ..audit.audit import audit as look

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = not console.is_terminal
    with Progress(*columns, console=console, disable=disable, transient=True) as bar:
        task = bar.add_task("", total=len(data.samples))
        return look(data, lambda: bar.advance(task), say)

"""ffd-data audit: find cues other than the faces that separate the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ffd_runtime.cli.command import Command, say, say_more
from ffd_runtime.cli.options import PathType, format_option, version_option, wants_table

from .progress_bar import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

EPILOG = """\b
Examples:
  ffd-data audit faces/
  ffd-data audit faces/ --html audit.html
  ffd-data audit celeba-and-gan/ --sample 5000 --json > audit.json
\b
Every image is read and decoded once. 200,000 images of 300x300 pixels take 2 GB
of memory and 5 minutes of one core.
\b
Exit codes:
  0 done, with or without findings   1 could not run   2 wrong usage
  3 done, but some images could not be read
"""


@click.command(cls=Command, epilog=EPILOG)
@click.argument("data", type=PathType())
@click.option(
    "--sample",
    type=click.IntRange(1),
    metavar="N",
    help="Read a deterministic sample of at most N images of each class and source. Copies are "
    "only found within the sample.",
)
@click.option(
    "--html",
    type=PathType(),
    metavar="FILE.html",
    help="Write a page with findings, numbers, histograms, contact sheets and copies.",
)
@format_option("")
@version_option()
def audit(data: Path, sample: int | None, html: Path | None, as_json: bool | None) -> None:
    """Find cues other than the faces that separate the classes of DATA.

    DATA is a folder with generated/ and groundtruth/, or with these two in train/, val/ and test/.
    Its manifest.csv may name each image's source.
    """
    from datetime import datetime

    import cv2

    from ffd_runtime.outputs.html_page import require_page_path

    from ..audit.audit import audit as run_audit
    from ..audit.audit_page import write_page
    from ..audit.facts import list_images

    cv2.setNumThreads(1)
    started = datetime.now().astimezone()
    if html:
        require_page_path(html, "--html")
    images = list_images(data, sample)
    with progress_bar() as bar:
        task = bar.add_task("images", total=len(images.samples))
        done = run_audit(images, lambda: bar.advance(task), say)
    if html:
        write_page(html, done, started)
        say(f"wrote {html}")
    if wants_table(as_json):
        from ..audit.audit_tables import show

        show(done)
    else:
        import json

        click.echo(json.dumps({**done.to_dict(), "sample": sample}))
    if done.table.unreadable:
        for one in done.table.unreadable:
            say_more(f"skipped {one.sample.path!a}: {one.message}")
        click.get_current_context().exit(3)

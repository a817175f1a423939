"""The command. Each part runs in its own process, so that a crash ends only this part."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from ffd_runtime.model.devices import count_gpus

from . import __doc__ as description
from .claims import CLAIMS, PARTS, Setting, check_claims

NO_GPU = 77
SPEED = "speed"
# Time limit of a part. Most of it is compiling and building for all batch sizes.
MAX_PART_SECONDS = 3600


@click.command(help=(description or "").split("\n\n")[0])
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default="gpu-report.md",
    show_default=True,
    help="File of the report.",
)
@click.option(
    "--gpu",
    "index",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Index of the GPU.",
)
@click.option(
    "--part",
    "parts",
    type=click.Choice([*PARTS, SPEED]),
    multiple=True,
    help="Run only this part. Repeat for several. Default: all.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    show_default=True,
    help="Duration of each measurement of speed.",
)
@click.option("--lines", type=click.Path(path_type=Path), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
def main(
    report: Path,
    index: int,
    parts: tuple[str, ...],
    seconds: float,
    lines: Path | None,
    folder: Path | None,
) -> None:
    """Run the parts and write the report."""
    if lines and folder:
        run_part(parts[0], Setting(folder, f"cuda:{index}", index, seconds), lines)
        return
    gpus = count_gpus()
    if index >= gpus:
        found = f"no GPU {index}, only {gpus}" if gpus else "no GPU"
        click.echo(f"NVIDIA's driver offers {found}: nothing was checked", err=True)
        sys.exit(NO_GPU)
    sys.exit(0 if run_parts(report, index, parts or (*PARTS, SPEED), seconds) else 1)


def run_part(part: str, setting: Setting, lines: Path) -> None:
    """Check or measure one part, and write each result as a line at once."""
    from .report import to_line
    from .speed import measure_all

    claims = tuple(claim for claim in CLAIMS if claim.part == part)
    with lines.open("w", encoding="utf-8", buffering=1) as file:
        for result in measure_all(setting) if part == SPEED else check_claims(claims, setting):
            file.write(to_line(result) + "\n")


def run_parts(path: Path, index: int, parts: tuple[str, ...], seconds: float) -> bool:
    """Run parts one after the other, and write the report after each.

    Returns:
        Whether all checked claims hold.
    """
    from .report import Report

    report = Report(describe())
    with tempfile.TemporaryDirectory(prefix="ffd-gpu-") as folder:
        for part in parts:
            click.echo(f"{part} ...", err=True)
            lines = Path(folder) / f"{part}.jsonl"
            given = ["--gpu", index, "--part", part, "--seconds", seconds]
            given += ["--lines", lines, "--folder", folder]
            ended = run_process([sys.executable, "-m", __package__, *map(str, given)])
            report.add_lines(lines.read_text(encoding="utf-8") if lines.exists() else "")
            if ended:
                report.end_part(part, ended)
            report.write(path)
    click.echo(
        f"{path}: {'all checked claims hold' if report.holds else 'a claim or a part failed'}",
        err=True,
    )
    return report.holds


def run_process(command: list[str], limit: float = MAX_PART_SECONDS) -> str | None:
    """Run a part. Return how it failed, or None if it succeeded."""
    try:
        code = subprocess.run(command, check=False, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"ran for more than {limit:.0f} seconds"
    return f"ended with code {code}" if code else None


def describe() -> dict[str, Any]:
    """Describe the machine for the head of the report."""
    from ffd_runtime.cli.bench import describe_machine
    from ffd_runtime.cli.probes import probe_gpus

    return {**describe_machine(), "driver": probe_gpus()["driver"] or "of unknown version"}


if __name__ == "__main__":
    main(prog_name=f"python -m {__package__}")

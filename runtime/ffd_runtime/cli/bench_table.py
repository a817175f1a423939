"""Print the report of ffd-bench as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..core.text import printable

if TYPE_CHECKING:
    from rich.console import Console


def print_report(console: Console, report: dict[str, Any]) -> None:
    """Print a report, the object that `ffd-bench --json` prints."""

    def line(text: str) -> None:
        console.print(printable(text), soft_wrap=True, markup=False)

    for text in _head(report):
        line(text)
    for table in (_stage_table(report["stages"]), _floor_table(report["end_to_end"])):
        line("")
        # A pipe has no width, and truncated numbers would be wrong.
        console.print(table, width=200, soft_wrap=True)
    line("(+N %): end-to-end time above this floor, per image, within one round")
    memory = report["peak_memory_bytes"]
    if memory is not None:
        line(f"peak memory of this process, for all of the above: {memory / 1e6:.0f} MB")
    for cold in report["cold_start"] or ():
        line(_cold(cold))


def _head(report: dict[str, Any]) -> Iterator[str]:
    machine, model, images = report["machine"], report["model"], report["images"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    yield f"ffd {report['ffd']} on {machine['cpu']}, {machine['cores']} cores, {gpus}"
    packages = (f"{name} {version}" for name, version in machine["packages"].items())
    yield f"Python {machine['python']}, {', '.join(packages)}"
    yield f"model {model['name']} ({model['architecture']}, {model['precision']})"
    kind = "synthetic JPEGs made for this run" if images["made"] else "images from the sources"
    yield (
        f"{images['count']} {kind}, on average {images['mean_megapixels']:.2f} megapixels and "
        f"{images['mean_bytes'] / 1000:.0f} kB; {images['unreadable']} unreadable left out"
    )
    yield f"rounds: {report['rounds']}, workers: {report['workers']}"


def _stage_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("stage", "backend", "batch", "n", "p50 ms", "p95 ms", "p99 ms", "images/s")
    for row in rows:
        if row["stage"] != "end_to_end":
            table.add_row(
                row["stage"],
                row["backend"] or "",
                _number(row["batch"], "d"),
                str(row["n"]),
                *(_number(row[f"p{rank}_ms"], ".2f") for rank in (50, 95, 99)),
                _number(row["images_per_second"], ".1f"),
            )
    return table


def _floor_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("end to end", "batch", "images/s", "ms", "slowest stage ms", "sum of stages ms")
    for row in rows:
        slowest, total = row["floors"]["slowest_stage"], row["floors"]["sum_of_stages"]
        table.add_row(
            row["backend"],
            str(row["batch"]),
            f"{row['images_per_second']:.1f}",
            f"{row['ms_per_image']:.2f}",
            f"{slowest['stage']} {_floor(slowest)}",
            _floor(total),
        )
    return table


def _floor(floor: dict[str, Any]) -> str:
    return f"{floor['ms_per_image']:.2f} ({floor['above_percent']:+.0f} %)"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        left = name in ("stage", "backend", "end to end")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _cold(cold: dict[str, Any]) -> str:
    text = (
        f"cold start of {cold['backend']}: {cold['first_verdict_ms']:.0f} ms from process to first "
        f"result (median of {cold['pairs']})"
    )
    if cold["bare_ms"] is not None:
        text += (
            f"; {cold['ratio']:.2f} times the {cold['bare_ms']:.0f} ms of plain Python with "
            "the same model"
        )
    if cold["peak_memory_bytes"] is not None:
        text += f"; peak memory {cold['peak_memory_bytes'] / 1e6:.0f} MB"
    return text

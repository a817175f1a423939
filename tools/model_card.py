"""Write the tables of the model card anew from measurements.

Usage: python -m tools.model_card EXPERIMENT TEST.json VAL.json

The two files are the output of `ffd-eval MODEL DATA --json` on the test images and on the
validation images. The rows of EXPERIMENT in benchmarks/unseen.csv are the sources that the model
was not trained on. `ffd-eval --robustness --card` writes the remaining table.
"""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ffd_runtime.cli.command import Command
from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.core.errors import DataError

ROOT = Path(__file__).parents[1]
CARD = ROOT / "docs/MODEL_CARD.md"
MEASURES = {
    "accuracy": "accuracy at the threshold",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "tpr_at_1_fpr": "generated faces found at 1 % false alarms",
    "ece": "expected calibration error",
    "decided": "images decided (not unsure)",
    "decided_accuracy": "accuracy where decided",
}
SHARES = {
    "called_generated": "called generated",
    "unsure": "unsure",
    "called_photograph": "called a photograph",
}


@click.command(cls=Command)
@click.argument("experiment")
@click.argument("test", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("val", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(experiment: str, test: Path, val: Path) -> None:
    """Write the tables of docs/MODEL_CARD.md anew."""
    sources = tomllib.loads((ROOT / "benchmarks/sources.toml").read_text())
    with (ROOT / "benchmarks/unseen.csv").open(newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    unseen = {row["source"]: row for row in rows if row["experiment"] == experiment}
    if not unseen:
        raise DataError(f"benchmarks/unseen.csv has no row of {experiment}")
    text = CARD.read_text()
    for name, table in {
        "test": format_test(json.loads(test.read_text()), sources),
        "trained": format_trained(
            {
                source: measured
                for source, measured in json.loads(val.read_text())["per_source"].items()
                if source not in unseen
            },
            sources,
        ),
        "unseen": format_unseen(unseen, sources),
    }.items():
        text = replace_table(text, name, table)
    write_output(CARD, text.encode())


def format_test(report: dict[str, Any], sources: dict[str, dict[str, str]]) -> str:
    """Format the metrics of the test images, and the accuracy of each source."""
    per_source = report["per_source"]
    rows = [
        (label, str(per_source[source]["images"]), f"{per_source[source]['accuracy']:.3f}")
        for labels in sources.values()
        for source, label in labels.items()
        if source in per_source
    ]
    metrics = [(label, f"{report[name]:.3f}") for name, label in MEASURES.items()]
    return table(("", ""), metrics) + "\n" + table(("source", "images", "accuracy"), rows)


def format_trained(per_source: dict[str, Any], sources: dict[str, dict[str, str]]) -> str:
    """Format the accuracy of each source that the model was trained on, by class."""
    return "\n".join(
        table(
            (title, "images", "right"),
            [
                (label, str(per_source[one]["images"]), percent(per_source[one]["accuracy"]))
                for one, label in labels.items()
                if one in per_source
            ],
        )
        for title, labels in sources.items()
    )


def format_unseen(unseen: dict[str, dict[str, str]], sources: dict[str, dict[str, str]]) -> str:
    """Format the shares of each source that the model was not trained on, by class."""
    tables = []
    for title, labels in sources.items():
        found = [(label, unseen[source]) for source, label in labels.items() if source in unseen]
        generated = all(row["auc"] for _, row in found)
        names = [title, "images", *(["ROC-AUC"] if generated else []), *SHARES.values()]
        rows = [
            (
                label,
                row["images"],
                *([row["auc"]] if generated else []),
                *(percent(float(row[name]), digits=1) for name in SHARES),
            )
            for label, row in found
        ]
        tables.append(table(names, rows))
    return "\n".join(tables)


def percent(share: float, digits: int = 0) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.{digits}f} %"


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown, with a final line break."""
    lines = [names, ["---"] * len(names), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def replace_table(text: str, name: str, content: str) -> str:
    """Replace the text between the marks of a table.

    Raises:
        DataError: the text does not have the marks exactly once.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise DataError(f"{CARD}: add {begin} and {end}, once each, around the table's place")
    return pattern.sub(lambda found: f"{found[1]}{content}{found[2]}", text)


if __name__ == "__main__":
    main()

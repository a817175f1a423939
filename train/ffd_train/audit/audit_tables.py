"""The results of an audit as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ffd_runtime.core.text import printable
from ffd_runtime.model.card import CLASSES

from ..terminal_table import make_table
from .audit import Audit
from .facts import FACTS
from .groups import format_summary
from .probe import VIEWS, Score

_STYLES = {"high": "bold red", "medium": "yellow", "low": "dim"}
# Facts that fit into 80 columns; the page and --json have all of them.
_FACTS = ("format", "quality", "width", "sharpness")


def show(audit: Audit) -> None:
    """Print the tables, then the findings, which stay visible."""
    console = Console(highlight=False)
    console.print(_groups(audit))
    if audit.probes:
        grid = make_table("How well the classes can be separated", ["by"], ["AUC"])
        for probe in audit.probes:
            grid.add_row(VIEWS[probe.view], _auc(probe.score))
        console.print(grid)
    if audit.sources:
        console.print(_sources(audit))
    if not audit.findings:
        console.print("Nothing stands out.")
    for one in audit.findings:
        head = Text.assemble((f"{one.severity:<8}", _STYLES[one.severity]), printable(one.text))
        console.print(head, soft_wrap=True)
        console.print(Text(f"{'':<8}{printable(one.advice)}", "dim"), soft_wrap=True)


def _groups(audit: Audit) -> Grid:
    facts = [next(fact for fact in FACTS if fact.name == name) for name in _FACTS]
    names = ["images", *_FACTS, "plain"]
    title = (
        f"{audit.table.data.root}: {len(audit.table.samples)} images, medians and plain backgrounds"
    )
    grid = make_table(title, ["group"], names)
    for group in audit.groups:
        values = [
            format_summary(group.facts[fact.name], fact) if group.facts else "" for fact in facts
        ]
        plain = "" if group.plain is None else f"{100 * group.plain:.0f} %"
        indent = "" if group.name == group.label else "  "
        grid.add_row(
            Text(indent + printable(group.name)), str(group.images), *map(Text, values), plain
        )
    return grid


def _sources(audit: Audit) -> Grid:
    title = "How well a source can be separated from the others of its class"
    grid = make_table(title, ["source", "class"], ["AUC by file facts", "AUC by framing"])
    for probe in audit.sources:
        scores = (_auc(probe.file), _auc(probe.framing))
        grid.add_row(Text(printable(probe.source)), CLASSES[probe.label], *scores)
    return grid


def _auc(score: Score) -> Text:
    style = "bold red" if score.stands_out and score.auc >= 0.9 else ""
    return Text(f"{score.auc:.3f} ± {score.deviation:.3f}", style)

"""The report: what holds, what does not, and how fast it is, on one Markdown page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .claims import CLAIMS, FAIL, PASS, SKIP, Outcome
from .speed import Rate

# How a line of a part's file begins its JSON.
OUTCOME, RATE = "outcome", "rate"


def to_line(result: Outcome | Rate) -> str:
    """A result as a line of JSON, which `Report.add_lines` reads."""
    kind = OUTCOME if isinstance(result, Outcome) else RATE
    return json.dumps({kind: dataclasses.asdict(result)})


@dataclass
class Report:
    """Results of all parts.

    Attributes:
        machine: `ffd_runtime.cli.stage_times.describe_machine`, and the driver's version.
        outcomes: by claim.
        rates: lines of the performance table.
        troubles: what ended a part before its time.
    """

    machine: dict[str, Any]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    rates: list[Rate] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def add_lines(self, text: str) -> None:
        """Take what a part has written; a last line that is cut off is left out."""
        for line in text.splitlines():
            try:
                document = json.loads(line)
            except ValueError:
                continue
            if OUTCOME in document:
                outcome = Outcome(**document[OUTCOME])
                self.outcomes[outcome.claim] = outcome
            else:
                self.rates.append(Rate(**document[RATE]))

    def end_part(self, part: str, ended: str) -> None:
        """Note that a part's process failed: claims that it left open do not hold.

        Args:
            part: its name.
            ended: how it ended.
        """
        self.troubles.append(f"{part}: {ended}")
        for claim in CLAIMS:
            if claim.part == part and claim.name not in self.outcomes:
                self.outcomes[claim.name] = Outcome(claim.name, FAIL, f"the process {ended}")

    @property
    def holds(self) -> bool:
        """Whether no claim failed, no part broke off, and something was checked or measured."""
        failed = [one for one in self.outcomes.values() if one.outcome == FAIL]
        done = [one for one in self.outcomes.values() if one.outcome == PASS]
        return not failed and not self.troubles and bool(done or self.rates)

    def to_markdown(self) -> str:
        """The page."""
        counts = {
            outcome: sum(one.outcome == outcome for one in self.outcomes.values())
            for outcome in (PASS, FAIL, SKIP)
        }
        gpus = ", ".join(self.machine["gpus"])
        packages = ", ".join(f"{name} {text}" for name, text in self.machine["packages"].items())
        lines = [
            f"# ffd on {gpus}",
            "",
            f"{counts[PASS]} claims of docs/engines.md hold, {counts[FAIL]} do not, "
            f"{counts[SKIP]} were not checked.",
            "",
            f"{self.machine['cpu']}, {self.machine['cores']} cores; driver "
            f"{self.machine['driver']}; Python {self.machine['python']}; {packages}",
            "",
            *(f"- A part broke off: {_cell(trouble)}" for trouble in self.troubles),
            "",
            "## Claims",
            "",
            *table(("claim", "what", "outcome", "seen", "s"), self._claims()),
            "",
            "## Images a second",
            "",
            "Over arrays the network alone, copies to and from the GPU included; over JPEGs end to "
            "end, as `ffd-run` does it, with the share of the network's own rate at that batch.",
            "",
            *table(("model", "way", "pictures", "batch", "images/s", "share"), self._rates()),
        ]
        return "\n".join(lines) + "\n"

    def _claims(self) -> Iterable[Sequence[str]]:
        for claim in CLAIMS:
            one = self.outcomes.get(claim.name)
            if one:
                yield claim.name, claim.text, one.outcome, one.detail, f"{one.seconds:.0f}"

    def _rates(self) -> Iterable[Sequence[str]]:
        for rate in self.rates:
            found = rate.note if rate.images_per_second is None else f"{rate.images_per_second:.0f}"
            share = "" if rate.share is None else f"{rate.share:.0%}"
            yield rate.model, rate.way, rate.pictures, str(rate.batch), found, share

    def write(self, path: Path) -> None:
        """Write the page to a file."""
        path.write_text(self.to_markdown(), encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of Markdown, line by line; cells that hold bars and line ends are made to fit."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

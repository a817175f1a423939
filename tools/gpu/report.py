"""The report of claims and speeds, as a Markdown page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .claims import CLAIMS, FAIL, PASS, SKIP, Outcome
from .speed import Rate

# Keys of the JSON in the file of a part.
OUTCOME, RATE = "outcome", "rate"


def to_line(result: Outcome | Rate) -> str:
    """Write a result as a line of JSON for `Report.add_lines`."""
    kind = OUTCOME if isinstance(result, Outcome) else RATE
    return json.dumps({kind: dataclasses.asdict(result)})


@dataclass
class Report:
    """Results of all parts.

    Attributes:
        machine: `ffd_runtime.cli.bench.describe_machine`, and the driver's version.
        outcomes: by claim.
        rates: rows of the performance table.
        failures: parts that failed, and how.
    """

    machine: dict[str, Any]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    rates: list[Rate] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add_lines(self, text: str) -> None:
        """Add the results that a part wrote. Skip a truncated last line."""
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
        """Mark a part as failed, and with it the claims that it did not check.

        Args:
            part: its name.
            ended: how it failed.
        """
        self.failures.append(f"{part}: {ended}")
        for claim in CLAIMS:
            if claim.part == part and claim.name not in self.outcomes:
                self.outcomes[claim.name] = Outcome(claim.name, FAIL, f"the process {ended}")

    @property
    def holds(self) -> bool:
        """Whether no claim and no part failed, and at least one result exists."""
        failed = [one for one in self.outcomes.values() if one.outcome == FAIL]
        done = [one for one in self.outcomes.values() if one.outcome == PASS]
        return not failed and not self.failures and bool(done or self.rates)

    def to_markdown(self) -> str:
        """Return the page."""
        counts = {
            outcome: sum(one.outcome == outcome for one in self.outcomes.values())
            for outcome in (PASS, FAIL, SKIP)
        }
        gpus = ", ".join(self.machine["gpus"])
        packages = ", ".join(f"{name} {text}" for name, text in self.machine["packages"].items())
        lines = [
            f"# ffd on {gpus}",
            "",
            f"{counts[PASS]} claims of docs/engines.md hold, {counts[FAIL]} fail, "
            f"{counts[SKIP]} were skipped.",
            "",
            f"{self.machine['cpu']}, {self.machine['cores']} cores; driver "
            f"{self.machine['driver']}; Python {self.machine['python']}; {packages}",
            "",
            *(f"- A part failed: {_cell(failure)}" for failure in self.failures),
            "",
            "## Claims",
            "",
            *table(("claim", "text", "outcome", "observed", "s"), self._claims()),
            "",
            "## Images a second",
            "",
            "`arrays`: only the network, with copies to and from the GPU. `px`: end to end over "
            "JPEGs, as in `ffd-run`; the share is relative to the network's rate at that batch.",
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
    """Return the lines of a Markdown table. Bars and line ends in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

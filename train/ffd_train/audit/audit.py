"""The steps of an audit, and its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ffd_runtime.model.card import CLASSES

from ..face_data import FaceData
from .copies import Copies, find_copies
from .facts import Table, measure
from .findings import Finding, find
from .groups import Group, summarise
from .probe import VIEWS, FactScore, Probe, Score, SourceProbe, probe_classes, probe_sources


@dataclass(frozen=True)
class Audit:
    """The results of an audit.

    Attributes:
        table: facts of every image.
        groups: summaries by class, source and split.
        copies: groups of copies.
        probes: how well simple classifiers separate the classes; empty if a class is too small.
        sources: how well they separate each source from the others of its class.
        findings: findings, the most severe first.
    """

    table: Table
    groups: Sequence[Group]
    copies: Sequence[Copies]
    probes: Sequence[Probe]
    sources: Sequence[SourceProbe]
    findings: Sequence[Finding]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON types, without images."""
        samples = self.table.samples
        return {
            "data": str(self.table.data.root),
            "images": len(samples),
            "ignored": self.table.data.ignored,
            "findings": [asdict(finding) for finding in self.findings],
            "probes": [
                {"sees": probe.view, **_score(probe.score), "telling": _facts(probe.telling)}
                for probe in self.probes
            ],
            "sources": [
                {
                    "source": probe.source,
                    "class": CLASSES[probe.label],
                    "file": _score(probe.file),
                    "framing": _score(probe.framing),
                    "telling": _facts(probe.telling),
                }
                for probe in self.sources
            ],
            "groups": [_group(group) for group in self.groups],
            "copies": [
                {"exact": group.exact, "paths": [samples[i].path for i in group.members]}
                for group in self.copies
            ],
            "unreadable": [
                {"path": one.sample.path, "code": one.code, "message": one.message}
                for one in self.table.unreadable
            ],
        }


def audit(
    data: FaceData,
    advance: Callable[[], object] = lambda: None,
    say: Callable[[str], object] = lambda _: None,
) -> Audit:
    """Audit a data set from `list_images`, and read every image once.

    `advance` is called after each image, and `say` with a line before each slow step.
    """
    table = measure(data, advance)
    say(f"looking for copies among {len(table.samples)} images")
    copies = find_copies(table.digests, table.hashes, table.smalls)
    copy_of = np.arange(len(table.samples))
    for group in copies:
        copy_of[list(group.members)] = group.members[0]
    say("separating the classes by " + ", ".join(VIEWS.values()))
    groups = summarise(table)
    probes = probe_classes(table, copy_of)
    sources = probe_sources(table, copy_of)
    findings = find(table, groups, copies, probes, sources)
    return Audit(table, groups, copies, probes, sources, findings)


def _score(score: Score) -> dict[str, Any]:
    return {
        "auc": round(score.auc, 4),
        "deviation": round(score.deviation, 4),
        "stands_out": score.stands_out,
    }


def _facts(scores: Sequence[FactScore]) -> list[dict[str, Any]]:
    return [{"fact": one.fact.name, **_score(one.score), "values": one.values} for one in scores]


def _group(group: Group) -> dict[str, Any]:
    document = asdict(group)
    return {"class": document.pop("label"), **document}

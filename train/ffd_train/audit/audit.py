"""An audit from beginning to end."""

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
    """What is known of a data set.

    Attributes:
        table: the facts of every image.
        groups: the facts summed up.
        copies: images that are one picture.
        probes: how well the classes are told apart; empty if one has too few images.
        sources: how well each source is told from the others of its class.
        findings: what stands out, the worst first.
    """

    table: Table
    groups: Sequence[Group]
    copies: Sequence[Copies]
    probes: Sequence[Probe]
    sources: Sequence[SourceProbe]
    findings: Sequence[Finding]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON takes it."""
        samples = self.table.samples
        return {
            "data": str(self.table.data.root),
            "images": len(samples),
            "ignored": self.table.data.ignored,
            "findings": [asdict(finding) for finding in self.findings],
            "probes": [
                {"sees": probe.view, **_score(probe.score), "telling": _told(probe.telling)}
                for probe in self.probes
            ],
            "sources": [
                {
                    "source": probe.source,
                    "class": CLASSES[probe.label],
                    "file": _score(probe.file),
                    "framing": _score(probe.framing),
                    "telling": _told(probe.telling),
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
    """Measure a data set, and look for what gives its classes away.

    Args:
        data: as `list_images` finds it; every image is read once.
        advance: called after each image.
        say: gets a line when something that takes long begins.
    """
    table = measure(data, advance)
    say(f"looking for copies among {len(table.samples)} images")
    copies = find_copies(table.digests, table.hashes, table.smalls)
    copy_of = np.arange(len(table.samples))
    for group in copies:
        copy_of[list(group.members)] = group.members[0]
    say("telling the classes apart by " + ", ".join(VIEWS.values()))
    groups = summarise(table)
    probes = probe_classes(table, copy_of, CLASSES)
    sources = probe_sources(table, copy_of)
    findings = find(table, groups, copies, probes, sources)
    return Audit(table, groups, copies, probes, sources, findings)


def _score(score: Score) -> dict[str, Any]:
    return {
        "auc": round(score.auc, 4),
        "deviation": round(score.deviation, 4),
        "stands_out": score.stands_out,
    }


def _told(telling: Sequence[FactScore]) -> list[dict[str, Any]]:
    return [{"fact": one.fact.name, **_score(one.score), "values": one.values} for one in telling]


def _group(group: Group) -> dict[str, Any]:
    document = asdict(group)
    return {"class": document.pop("label"), **document}

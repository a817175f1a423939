"""The findings of an audit, the most severe first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ffd_runtime.core.text import counted
from ffd_runtime.model.card import CLASSES

from .copies import Copies
from .facts import Table, Unreadable
from .groups import Group
from .probe import VIEWS, FactScore, Probe, SourceProbe

SEVERITIES = ("high", "medium", "low")
# Minimum AUC of each severity; below the last it is low.
_MIN_AUC = {"high": 0.9, "medium": 0.75}
# Maximum number of facts in a finding.
_MAX_NAMED = 3
# Minimum differences between shares of images.
_MIN_FRAMED_DIFFERENCE = 0.05
_MIN_PLAIN_DIFFERENCE = 0.25
# Grey levels below and above which a bar is black or white.
_BLACK, _WHITE = 24, 240
# With fewer framed images, the frames may be part of the scenes.
_MIN_FRAMED = 5
# Facts that depend on the content as well as on the encoding.
_BYTES = {"bytes_per_pixel", "kilobytes"}

_ADVICE = {
    "file": "ffd-data prepare --match gives both classes the same size and encoding",
    "bytes": "with the same encoding (ffd-data prepare --match), the size depends on the content: "
    "compare sharpness and backgrounds",
    "border": "remove frames, and use similar backgrounds for both classes; ffd-train's crops help "
    "a little",
    "thumbnail": "use sources with similar framing, light and colour for both classes",
    "detail": "ffd-data prepare --match gives both classes the same size and encoding; "
    "do not train without augmentation",
}


@dataclass(frozen=True)
class Finding:
    """A problem of a data set, and its remedy.

    The severity is one of `SEVERITIES`. The kind is an identifier, such as `shortcut-file`.
    """

    severity: str
    kind: str
    text: str
    advice: str


def find(
    table: Table,
    groups: Sequence[Group],
    copies: Sequence[Copies],
    probes: Sequence[Probe],
    sources: Sequence[SourceProbe],
) -> list[Finding]:
    """Return all findings, the most severe first."""
    findings = [
        *_classes(table),
        *_unreadable(table.unreadable),
        *_copies(table, copies),
        *_frames(table),
        *(_shortcut(probe) for probe in probes if probe.score.stands_out or probe.telling),
        *_encoding_by_source(sources),
        *_framing_by_source(sources),
        *_plain_sources(groups),
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _classes(table: Table) -> Iterator[Finding]:
    counts = np.bincount(table.labels, minlength=len(CLASSES))
    for name, count in zip(CLASSES, counts.tolist(), strict=True):
        if not count:
            yield Finding(
                "high",
                "class-empty",
                f"no {name} image could be read: shortcuts between the classes were not searched",
                f"add {name} images to {name}/",
            )


def _unreadable(unreadable: Sequence[Unreadable]) -> Iterator[Finding]:
    if unreadable:
        named = ", ".join(f"{one.sample.path} ({one.code})" for one in unreadable[:_MAX_NAMED])
        yield Finding(
            "medium",
            "unreadable",
            f"{counted(len(unreadable), 'image')} cannot be read: {named}{_more(len(unreadable))}",
            "remove or replace them: ffd-train refuses them",
        )


def _copies(table: Table, copies: Sequence[Copies]) -> Iterator[Finding]:
    def across(place: str) -> list[Copies]:
        return [
            group
            for group in copies
            if len({getattr(table.samples[i], place) for i in group.members}) > 1
        ]

    if leaks := across("split"):
        yield Finding(
            "high",
            "copies-across-splits",
            f"{_pictures(leaks)} in more than one split, so a model is tested on training images: "
            f"{_examples(table, leaks)}",
            "keep one of each: ffd-data prepare removes copies before it splits",
        )
    if conflicts := across("label"):
        yield Finding(
            "high",
            "copies-across-classes",
            f"{_pictures(conflicts)} in both classes: {_examples(table, conflicts)}",
            "remove them from the wrong class",
        )
    reported = {*leaks, *conflicts}
    if rest := [group for group in copies if group not in reported]:
        yield Finding(
            "low",
            "copies",
            f"{_pictures(rest)} present more than once: {_examples(table, rest)}",
            "ffd-data prepare keeps one of each",
        )


def _pictures(groups: Sequence[Copies]) -> str:
    exact = sum(group.exact for group in groups)
    kinds = f"{exact} identical files, {len(groups) - exact} near copies"
    return f"{len(groups)} images ({kinds}) are" if len(groups) > 1 else "1 image is"


def _examples(table: Table, groups: Sequence[Copies]) -> str:
    shown = (
        " = ".join(table.samples[i].path for i in group.members[:_MAX_NAMED])
        for group in groups[:_MAX_NAMED]
    )
    return "; ".join(shown) + _more(len(groups))


def _frames(table: Table) -> Iterator[Finding]:
    """Find frames of one colour that are more frequent in one class."""
    if len(set(table.labels.tolist())) < len(CLASSES):
        return
    framed, grey = table.columns["frame"] > 0, table.columns["frame_grey"]
    for colour, fits in (("black", grey < _BLACK), ("white", grey > _WHITE)):
        has = framed & fits
        shares = [float(has[table.labels == label].mean()) for label in range(len(CLASSES))]
        more, less = max(shares), min(shares)
        count = int(has[table.labels == shares.index(more)].sum())
        if more - less < _MIN_FRAMED_DIFFERENCE or count < _MIN_FRAMED:
            continue
        listed = ", ".join(
            f"{100 * share:.0f} % of {name}" for name, share in zip(CLASSES, shares, strict=True)
        )
        yield Finding(
            _severity(0.5 + (more - less) / 2),
            "frame",
            f"a model can use a {colour} border: {listed}",
            _ADVICE["border"],
        )


def _shortcut(probe: Probe) -> Finding:
    best = max([probe.score, *(one.score for one in probe.telling)], key=lambda s: s.auc)
    named = "; ".join(_describe(one) for one in probe.telling[:_MAX_NAMED])
    if probe.view == "detail":
        text = f"a model can use {named or 'sharpness'}"
    else:
        score = f"{probe.score.auc:.2f} ± {probe.score.deviation:.2f}"
        text = f"a model can use {VIEWS[probe.view]} (AUC {score})"
        text += f": {named}" if named else ": only all facts together, no single one"
    only_bytes = probe.view == "file" and {one.fact.name for one in probe.telling} <= _BYTES
    advice = _ADVICE["bytes" if only_bytes else probe.view]
    return Finding(_severity(best.auc), f"shortcut-{probe.view}", text, advice)


def _describe(one: FactScore) -> str:
    values = ", ".join(f"{name} {value}" for name, value in one.values.items())
    return f"{one.fact.title}: {values} (AUC {one.score.auc:.2f})"


def _encoding_by_source(sources: Sequence[SourceProbe]) -> Iterator[Finding]:
    by_title: dict[str, list[SourceProbe]] = {}
    for one in sources:
        if one.file.stands_out and one.telling:
            title = f"{one.telling[0].fact.title} of {CLASSES[one.label]}"
            by_title.setdefault(title, []).append(one)
    if by_title:
        named = "; ".join(
            f"{title}: "
            + ", ".join(f"{one.source} {one.telling[0].values[one.source]}" for one in group)
            for title, group in by_title.items()
        )
        aucs = [one.file.auc for group in by_title.values() for one in group]
        yield Finding(
            _by_source(aucs),
            "source-file",
            f"size or encoding differs by source (AUC up to {max(aucs):.2f}); {named}",
            _ADVICE["file"],
        )


def _framing_by_source(sources: Sequence[SourceProbe]) -> Iterator[Finding]:
    notable = sorted(
        (one for one in sources if one.framing.stands_out), key=lambda one: -one.framing.auc
    )
    if notable:
        named = ", ".join(
            f"{one.source} in {CLASSES[one.label]} (AUC {one.framing.auc:.2f})" for one in notable
        )
        yield Finding(
            _by_source([one.framing.auc for one in notable]),
            "source-framing",
            "framing differs by source; an 8x8 grey thumbnail with normalised brightness and "
            f"contrast identifies {named}",
            "crop all sources alike, and check the accuracy of each source with ffd-eval",
        )


def _by_source(aucs: Sequence[float]) -> str:
    """Limit the severity to medium: a source reveals the class only indirectly."""
    return "medium" if max(aucs) >= _MIN_AUC["high"] else "low"


def _plain_sources(groups: Sequence[Group]) -> Iterator[Finding]:
    """Find sources with more plain backgrounds than the others."""
    sources = [group for group in groups if group.source and group.plain is not None]
    for group in sources:
        others = [other for other in sources if other.source != group.source]
        images = sum(other.images for other in others)
        if group.images < _MIN_FRAMED or not images:
            continue
        rest = sum((other.plain or 0) * other.images for other in others) / images
        share = group.plain or 0
        if share - rest >= _MIN_PLAIN_DIFFERENCE:
            yield Finding(
                "medium",
                "source-background",
                f"plain backgrounds: {100 * share:.0f} % of {group.source} ({group.label}), "
                f"{100 * rest:.0f} % of the other sources",
                "add portraits with plain backgrounds to the other class, or remove some",
            )


def _severity(auc: float) -> str:
    return next((name for name, least in _MIN_AUC.items() if auc >= least), "low")


def _more(count: int) -> str:
    return f" and {count - _MAX_NAMED} more" if count > _MAX_NAMED else ""

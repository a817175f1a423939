"""One HTML file that shows an audit: verdicts, numbers, histograms, contact sheets and copies."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.core.text import printable
from ffd_runtime.image.decode import decode
from ffd_runtime.image.preprocess import crop_centre, resize
from ffd_runtime.model.card import CLASSES

from ..face_data import Sample
from .audit import Audit
from .copies import CORRELATION, DISTANCE, Copies
from .facts import FACTS, PLAIN, Fact, Table, Unreadable
from .groups import Group, shown
from .probe import (
    FOLDS,
    MAX_PICTURES,
    MIN_AUC,
    MIN_PICTURES,
    MIN_STANDARD_ERRORS,
    VIEWS,
    FactScore,
    Score,
)

# Pictures on a contact sheet, groups of copies, members of each, and unreadable files listed.
PICTURES = 24
COPIES = 24
MEMBERS = 4
ERRORS = 500
# Sources with a contact sheet and histograms; the largest of them.
MAX_SOURCES = 12
# Sides of thumbnails in pixels, and their JPEG quality.
SHEET_SIDE = 96
COPY_SIDE = 160
QUALITY = 75
BINS = 40

# Longer texts lose their middle.
_MAX_TEXT = 600
_SYMBOLS = {"generated": "▲", "groundtruth": "●", "high": "✕", "medium": "◆", "low": "○"}


def check_page(path: Path) -> None:
    """Refuse early what could only fail after all images were read.

    Raises:
        OutputError: no page can be written there.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"--html {path}: the name must end with .html")
    if path.is_dir():
        raise OutputError(f"--html {path} is a folder: name a file")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no such folder, or no permission to write there")


def write_page(path: Path, audit: Audit, started: datetime) -> None:
    """Write the page; it appears whole, and nothing in it refers outside of it.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(render(audit, started), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def render(audit: Audit, started: datetime) -> str:
    """The whole page; every text in it is escaped."""
    template = files(__package__).joinpath("audit.html").read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    table = audit.table
    heading = f"{len(table.samples):,} faces"
    return Template(template).substitute(
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=f"ffd-data audit: {heading}",
        heading=heading,
        when=f'<time datetime="{started.isoformat(timespec="seconds")}">'
        f"{started:%Y-%m-%d %H:%M} ({started:%z})</time>",
        data=_text(str(table.data.root)),
        findings=_findings(audit),
        probes=_probes(audit),
        groups=_groups(audit.groups),
        histograms=_histograms(audit),
        sheets=_sheets(audit),
        copies=_copies(audit),
        unreadable=_unreadable(table.unreadable),
        method=_method(audit),
    )


def _text(text: str) -> str:
    """Any text, safe inside an element and inside a quoted attribute."""
    safe = printable(text)
    if len(safe) > _MAX_TEXT:
        safe = f"{safe[: _MAX_TEXT // 2]} … {safe[-_MAX_TEXT // 2 :]}"
    return escape(safe)


def _kind(kind: str, text: str) -> str:
    symbol = f'<span aria-hidden="true">{_SYMBOLS[kind]}</span>'
    return f'<span class="kind {kind}">{symbol} <bdi>{_text(text)}</bdi></span>'


def _findings(audit: Audit) -> str:
    if not audit.findings:
        return '<p class="note">Nothing stands out.</p>'
    items = "\n".join(
        f'<li class="{one.severity}"><span class="severity">'
        f'<span aria-hidden="true">{_SYMBOLS[one.severity]}</span> {one.severity}</span>\n'
        f'<p>{_text(one.text)}</p>\n<p class="advice">{_text(one.advice)}</p></li>'
        for one in audit.findings
    )
    return f'<ul class="findings">\n{items}\n</ul>'


def _probes(audit: Audit) -> str:
    if not audit.probes:
        return f'<p class="note">Each class needs {MIN_PICTURES} different pictures for that.</p>'
    rows = "".join(
        f'<tr><th scope="row">{VIEWS[probe.view]}</th>{_score(probe.score)}'
        f"<td>{_telling(probe.telling)}</td></tr>\n"
        for probe in audit.probes
    )
    note = (
        "AUC is the chance that a simple classifier ranks a generated picture above a photograph: "
        "0.5 is guessing, 1 is certain. The mean of cross-validation, ± the deviation of its folds."
    )
    head = _head("what it sees", "AUC", "single facts that tell")
    return f"""<p class="note">{note}</p>
<div class="wide"><table>{head}<tbody>
{rows}</tbody></table></div>
{_source_probes(audit)}"""


def _source_probes(audit: Audit) -> str:
    if not audit.sources:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{_kind(CLASSES[probe.label], probe.source)}</th>'
        f"{_score(probe.file)}{_score(probe.framing)}<td>{_telling(probe.telling)}</td></tr>\n"
        for probe in audit.sources
    )
    head = _head("source", "AUC by file facts", "AUC by framing", "single facts that tell")
    return f"""<h3>Sources, each against the others of its class</h3>
<div class="wide"><table>{head}<tbody>
{rows}</tbody></table></div>"""


def _head(*names: str, numbers: Sequence[str] = ()) -> str:
    cells = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    cells += "".join(f'<th scope="col" class="number">{_text(name)}</th>' for name in numbers)
    return f"<thead><tr>{cells}</tr></thead>"


def _score(score: Score) -> str:
    """An AUC as a number, and as a bar from guessing to certain."""
    width = max(0.0, 200 * (score.auc - 0.5))
    kind = "low"
    if score.stands_out:
        kind = "high" if score.auc >= 0.9 else "medium"
    return f"""<td class="score">{score.auc:.3f} ± {score.deviation:.3f}
<svg class="auc" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
<rect class="track" width="100" height="10"/>
<rect class="{kind}" width="{width:.1f}" height="10"/></svg></td>"""


def _telling(telling: Sequence[FactScore]) -> str:
    lines = (
        f"{_text(one.fact.title)} ({one.score.auc:.2f}): "
        + ", ".join(
            f"<bdi>{_text(name)}</bdi> {_text(value)}" for name, value in one.values.items()
        )
        for one in telling
    )
    return "<br>".join(lines) or "none"


def _groups(groups: Sequence[Group]) -> str:
    columns = ["images", "plain backgrounds", "variety of backgrounds"]
    head = _head("group", numbers=columns + [fact.title for fact in FACTS])
    rows = "".join(_group(group) for group in groups)
    return f"""<p class="note">Medians; of what is no number, the most frequent value.</p>
<div class="wide"><table>{head}<tbody>
{rows}</tbody></table></div>"""


def _group(group: Group) -> str:
    cells = [
        f"{group.images:,}",
        "" if group.plain is None else f"{100 * group.plain:.0f} %",
        "" if group.variety is None else f"{group.variety:.0f}",
        *(shown(group.facts[fact.name], fact) if group.facts else "" for fact in FACTS),
    ]
    values = "".join(f'<td class="number">{_text(cell)}</td>' for cell in cells)
    total = "" if group.source or group.split else ' class="total"'
    return f'<tr{total}><th scope="row">{_kind(group.label, group.name)}</th>{values}</tr>\n'


# A part of the data set that is drawn: name, class, and which images.
_Part = tuple[str, str, npt.NDArray[np.bool_]]


def _parts(audit: Audit) -> list[_Part]:
    """The sources of each class, the largest ones; a class where sources are not known."""
    table = audit.table
    parts = []
    for label, name in enumerate(CLASSES):
        own = table.labels == label
        names, counts = np.unique(table.sources[own], return_counts=True)
        largest = sorted(zip(-counts, names.tolist(), strict=True))[:MAX_SOURCES]
        parts += [(source or name, name, own & (table.sources == source)) for _, source in largest]
    return parts


def _histograms(audit: Audit) -> str:
    parts = _parts(audit)
    figures = "\n".join(
        _histogram(audit.table, fact, parts) for fact in FACTS if fact.digits is not None
    )
    if not parts:
        return '<p class="note">There is no picture to measure.</p>'
    legend = " ".join(_kind(name, name) for name in CLASSES)
    return f"""<p class="note">{legend} Each row is as high as its own highest bar; values beyond
the ends are in the last bars.</p>
<div class="histograms">
{figures}
</div>"""


def _histogram(table: Table, fact: Fact, parts: Sequence[_Part]) -> str:
    column = table.columns[fact.name]
    known = column[~np.isnan(column)]
    title = f"<figcaption>{_text(fact.title)}</figcaption>"
    if not len(known):
        return f'<figure>{title}<p class="note">not known of any picture</p></figure>'
    low, high = np.percentile(known, [0.5, 99.5])
    if f"{low:.{fact.digits}f}" == f"{high:.{fact.digits}f}":
        value = f"{low:.{fact.digits}f}"
        return f'<figure>{title}<p class="note">{value} for nearly all pictures</p></figure>'
    rows = "\n".join(
        f'<bdi class="{kind}" title="{_text(name)}">{_text(name)}</bdi>'
        + _ridge(column[chosen], low, high, kind)
        for name, kind, chosen in parts
    )
    ends = "".join(
        f"<span>{value:.{fact.digits}f}</span>" for value in (low, (low + high) / 2, high)
    )
    return f"""<figure>{title}<div class="ridges">
{rows}
<div class="axis" aria-hidden="true">{ends}</div></div></figure>"""


def _ridge(values: npt.NDArray[Any], low: float, high: float, kind: str) -> str:
    known = values[~np.isnan(values)]
    counts, _ = np.histogram(np.clip(known, low, high), BINS, (low, high))
    top = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect class="{kind}" x="{at * 10}" y="{100 - height:.0f}" width="9.4" '
        f'height="{height:.0f}"/>'
        for at, count in enumerate(counts.tolist())
        if count and (height := max(96 * count / top, 2))
    )
    median = f"median {np.median(known):.3g}" if len(known) else "not known"
    return (
        f'<svg viewBox="0 0 {BINS * 10} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{median}">{bars}</svg>'
    )


def _sheets(audit: Audit) -> str:
    blocks = []
    table = audit.table
    # By digest, which is as good as by lot.
    order = np.lexsort(table.digests.T[:8])
    for name, kind, chosen in _parts(audit):
        samples = [table.samples[i] for i in order[chosen[order]][:PICTURES]]
        pictures = "\n".join(filter(None, (_image(table, one, SHEET_SIDE) for one in samples)))
        count = f'<span class="muted">{int(chosen.sum()):,} images</span>'
        blocks.append(
            f'<h3>{_kind(kind, name)} {count}</h3>\n<div class="sheet">\n{pictures}\n</div>'
        )
    return "\n".join(blocks) or '<p class="note">There is no picture to show.</p>'


def _image(table: Table, sample: Sample, side: int) -> str:
    """A picture's centre square as a small JPEG; empty if its file has gone."""
    try:
        square = crop_centre(decode(table.data.read(sample)))
    except InputError:
        return ""
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    done, data = cv2.imencode(".jpg", resize(square, side), options)
    assert done
    content = base64.b64encode(np.asarray(data, np.uint8).tobytes()).decode()
    name = _text(sample.path)
    source = f'src="data:image/jpeg;base64,{content}"'
    return f'<img {source} alt="{name}" title="{name}" width="{side}" height="{side}">'


def _copies(audit: Audit) -> str:
    groups = sorted(audit.copies, key=lambda group: -_badness(audit.table, group))
    if not groups:
        return '<p class="note">No picture was found twice.</p>'
    items = "\n".join(_copy(audit.table, group) for group in groups[:COPIES])
    more = f'<p class="note">and {len(groups) - COPIES:,} more</p>' if len(groups) > COPIES else ""
    return f'<ul class="copies">\n{items}\n</ul>{more}'


def _badness(table: Table, group: Copies) -> int:
    members = [table.samples[i] for i in group.members]
    return 2 * (len({s.label for s in members}) > 1) + (len({s.split for s in members}) > 1)


def _copy(table: Table, group: Copies) -> str:
    members = [table.samples[i] for i in group.members]
    places = [
        *(["in both classes"] if len({s.label for s in members}) > 1 else []),
        *(["in several splits"] if len({s.split for s in members}) > 1 else []),
    ]
    exact = "the same file" if group.exact else "nearly alike"
    title = ", ".join([*places, exact])
    kind = "high" if places else "low"
    figures = "\n".join(
        f"<figure>{_image(table, one, COPY_SIDE) or '<div class=missing></div>'}"
        f'<figcaption class="{CLASSES[one.label]}"><bdi>{_text(one.path)}</bdi></figcaption>'
        "</figure>"
        for one in members[:MEMBERS]
    )
    more = (
        f'<p class="note">and {len(members) - MEMBERS} more</p>' if len(members) > MEMBERS else ""
    )
    return f'<li>{_kind(kind, title)}<div class="pair">\n{figures}\n</div>{more}</li>'


def _unreadable(unreadable: Sequence[Unreadable]) -> str:
    if not unreadable:
        return '<p class="note">Every image could be read.</p>'
    rows = "".join(
        f"<tr><td><bdi>{_text(one.sample.path)}</bdi></td><td>{_text(one.code)}</td>"
        f"<td>{_text(one.message)}</td></tr>\n"
        for one in unreadable[:ERRORS]
    )
    head = _head("file", "code", "what is wrong")
    more = len(unreadable) - ERRORS
    rest = f'<p class="note">and {more:,} more</p>' if more > 0 else ""
    return f'<div class="wide"><table>{head}<tbody>\n{rows}</tbody></table></div>{rest}'


def _method(audit: Audit) -> str:
    ignored = audit.table.data.ignored
    facts = {
        "pictures": "all but width, height and bytes is measured on the largest centre square, the "
        "part that the network sees",
        "JPEG quality": "on libjpeg's scale, by the nearest luminance table",
        "sharpness": "variance of the Laplacian at 256 pixels a side",
        "brightness, contrast": "mean and deviation of L* of CIE Lab, 0 to 100",
        "chroma, redness, yellowness": "distance from grey, mean a* and b* of CIE Lab",
        "background": "a sixteenth of the side, along the top and down to the middle of both "
        f"sides; texture is the median deviation within a patch, and below {PLAIN:g} it is plain",
        "variety of backgrounds": "deviation of their mean colour from image to image",
        "copies": f"perceptual hashes within {DISTANCE} of 64 bits, and a correlation of grey "
        f"levels of at least {CORRELATION:g}; mirrored and cropped copies are not found",
        "probes": f"extremely randomised trees, {FOLDS} folds, copies in one fold, at most "
        f"{MAX_PICTURES:,} pictures of a class; single facts by a tree of depth 3; an AUC stands out from "
        f"{MIN_AUC:g} on, if it is {MIN_STANDARD_ERRORS:g} standard errors above guessing",
        "numbers": "a median, and in brackets where the middle 90 % lie; or the most frequent "
        "values with their shares",
        "left out": f"{ignored:,} files without an image's name" if ignored else "nothing",
    }
    return f'<dl class="facts">{_definitions(facts.items())}</dl>'


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in pairs)

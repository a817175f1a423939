"""One HTML file that says what a model is worth: no script, and nothing outside of it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import cv2
import numpy as np

from ffd_runtime import __version__
from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.core.results import Result
from ffd_runtime.core.text import printable
from ffd_runtime.image.decode import Image, decode
from ffd_runtime.image.draw import EVIDENCE_LIMIT, evidence_layer
from ffd_runtime.image.preprocess import crop_centre, resize
from ffd_runtime.model.card import CLASSES

from ..face_data import Sample
from ..intervals import CONFIDENCE, Interval, count_resamples
from ..robustness import CLEAN, Cell
from . import evaluation_plots as plots
from .study import WORST, Study, Subject, manifest_of, note_strictness, percent, span, summarise

# Sides of a thumbnail and of an evidence overlay, in pixels, and a thumbnail's JPEG quality.
THUMBNAIL = 224
OVERLAY = 56
QUALITY = 80
# Unreadable images that are listed one by one.
ERRORS = 500
# Longer texts lose their middle.
_MAX_TEXT = 400

METRICS = {
    "accuracy": "accuracy at the threshold",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "eer": "equal error rate",
    "tpr_at_1_fpr": "generated faces found at 1 % false alarms",
    "decided": "decided (not unsure)",
    "decided_accuracy": "accuracy where decided",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood (nats)",
    "brier": "Brier score",
}
CELL_METRICS = {
    "roc_auc": "ROC-AUC",
    "accuracy": "Accuracy at the threshold",
    "tpr_at_1_fpr": "Found at 1 % false alarms",
}
# Accuracies below which a cell of the table by source is shaded, from lightly to deeply.
_SHADES = (0.95, 0.9, 0.8, 0.65)


def require_writable(path: Path) -> None:
    """Say before the work, not after it, that a page cannot be written.

    Raises:
        OutputError: it cannot.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"--report {path}: the name must end with .html")
    if path.is_dir():
        raise OutputError(f"--report {path} is a folder: name a file")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: {path.parent} is no folder that can be written to")


def write_page(path: Path, study: Study) -> None:
    """Write the page; it appears whole.

    Raises:
        OutputError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(render(study), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def render(study: Study) -> str:
    """The whole page; every text in it is escaped."""
    template = files(__package__).joinpath("evaluation.html").read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    subjects = study.subjects
    heading = " and ".join(subject.name for subject in subjects)
    sections = [
        _section("summary", "In short", _list(summarise(study))),
        _section("metrics", "Figures", _metrics(study)),
        _section("curves", "Curves", _curves(subjects)),
        _sources(subjects),
        *((_robustness(study),) if study.subject.cells else ()),
        *(_errors(subject, subjects) for subject in subjects),
        _section("unreadable", "Unreadable", _unreadable(study.subject)),
        _section("facts", "What was measured, and how", _facts(study, subjects)),
    ]
    return Template(template).substitute(
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=_text(f"ffd evaluation: {heading}"),
        heading=_text(heading),
        when=f'<time datetime="{study.started.isoformat(timespec="seconds")}">'
        f"{study.started:%Y-%m-%d %H:%M} ({study.started:%z})</time>",
        subject=f"{len(study.data.samples):,} images of <bdi>{_text(str(study.data.root))}</bdi>",
        sections="\n".join(sections),
        confidence=f"{100 * CONFIDENCE:.0f} %",
        resamples=f"{count_resamples(study.subject.evaluation.report.images):,}",
    )


def _text(text: str) -> str:
    """Any text, safe inside an element and inside a quoted attribute."""
    shown = printable(text)
    if len(shown) > _MAX_TEXT:
        shown = f"{shown[: _MAX_TEXT // 2]} … {shown[-_MAX_TEXT // 2 :]}"
    return escape(shown)


def _section(name: str, title: str, inside: str) -> str:
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{_text(title)}</h2>\n'
        f"{inside}\n</section>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _list(lines: Iterable[str]) -> str:
    return f'<ul class="summary">{"".join(f"<li>{_text(line)}</li>" for line in lines)}</ul>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first of each row names it."""
    first, *others = head
    columns = "".join(f'<th scope="col" class="number">{name}</th>' for name in others)
    body = "\n".join(
        f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>' for name, *cells in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr><th scope="col">{first}</th>{columns}'
        f"</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def _number(text: str, kind: str = "") -> str:
    return f'<td class="{f"number {kind}".strip()}">{text}</td>'


def _with_interval(value: float | None, interval: Interval | None) -> str:
    if value is None:
        return _number("none")
    reach = "" if interval is None else f" <small>{interval[0]:.4f} to {interval[1]:.4f}</small>"
    return _number(f"{value:.4f}{reach}")


def _metrics(study: Study) -> str:
    subjects = study.subjects
    found = study.comparisons.get(CLEAN)
    rows = []
    for key, label in METRICS.items():
        row = [_text(label)]
        for subject in subjects:
            each = subject.evaluation
            value = getattr(each.report, key, None)
            if key in ("nll", "brier"):
                value = getattr(each.reliability, key)
            row.append(_with_interval(value, each.intervals.get(key)))
        if found and key in found.differences:
            gap = found.differences[key]
            row.append(_number(_signed(gap.difference, gap.interval)))
        elif found:
            row.append(_number(""))
        rows.append(row)
    for kind in CLASSES:
        row = [_text(f"accuracy on {kind}")]
        for subject in subjects:
            each = subject.evaluation
            row.append(
                _with_interval(each.report.per_class[kind], each.intervals["per_class"][kind])
            )
        rows.append([*row, *([_number("")] if found else [])])
    head = ["", *(_text(subject.name) for subject in subjects), *(["difference"] if found else [])]
    note = "" if found is None else _paired_note(study)
    return _table(head, rows) + _strictness(subjects) + note


def _strictness(subjects: Sequence[Subject]) -> str:
    note = note_strictness(subjects[0])
    return _note(note) if note else ""


def _paired_note(study: Study) -> str:
    images = study.comparisons[CLEAN].images
    return _note(
        f"Differences are the second model's figure less the first's, on the {images:,} images "
        "that both have judged. The interval of accuracy is Newcombe's, that of ROC-AUC by "
        "DeLong's variance, the others are of a paired bootstrap."
    )


def _legend(subjects: Sequence[Subject]) -> str:
    if len(subjects) < 2:
        return ""
    items = "".join(
        f'<li><svg viewBox="0 0 24 12" aria-hidden="true"><path class="{kind}" d="M0 6H24"/></svg>'
        f"{_text(subject.name)}</li>"
        for subject, kind in zip(subjects, plots.SERIES, strict=True)
    )
    return f'<ul class="legend">{items}</ul>'


def _curves(subjects: Sequence[Subject]) -> str:
    evaluations = [subject.evaluation for subject in subjects]
    figures = (
        (plots.plot_roc, "ROC. The mark is the model's own threshold."),
        (plots.plot_precision_recall, "Precision and recall."),
        (
            plots.plot_reliability,
            "Reliability. On the dashed line, a score is the probability that it says it is; lines "
            "are intervals.",
        ),
    )
    shown = "".join(
        f"<figure>{plot(evaluations)}<figcaption>{_text(caption)}</figcaption></figure>"
        for plot, caption in figures
    )
    tables = "".join(_bins_table(subject) for subject in subjects)
    return (
        f'{_legend(subjects)}<div class="figures">{shown}</div>'
        f"<details><summary>Reliability as a table</summary>{tables}</details>"
    )


def _bins_table(subject: Subject) -> str:
    rows = [
        [
            f"{found.low:.1f} to {found.high:.1f}",
            _number(f"{found.images:,}"),
            _number(f"{found.score:.4f}"),
            _number(f"{found.generated:.4f}"),
        ]
        for found in subject.evaluation.reliability.bins
    ]
    return f"<h3>{_text(subject.name)}</h3>" + _table(
        ["score", "images", "mean score", "share generated"], rows
    )


def _sources(subjects: Sequence[Subject]) -> str:
    known = [subject.evaluation.report.per_source for subject in subjects]
    if not known[0]:
        inside = _note("The data set's manifest.csv names no sources.")
        return _section("sources", "By source", inside)
    kinds: dict[str, set[str]] = {}
    for sample, _ in subjects[0].evaluation.read:
        kinds.setdefault(sample.source or "", set()).add(CLASSES[sample.label])
    rows = []
    for name in known[0]:
        row = [_text(name), _number(" and ".join(sorted(kinds[name])))]
        row.append(_number(f"{known[0][name]['images']:,}"))
        for subject, sources in zip(subjects, known, strict=True):
            interval = subject.evaluation.intervals["per_source"].get(name)
            value = sources[name]["accuracy"] if name in sources else None
            row.append(_with_interval(value, interval))
        for subject, sources in zip(subjects, known, strict=True):
            interval = subject.evaluation.intervals["per_source_roc_auc"].get(name)
            value = sources[name]["roc_auc"] if name in sources else None
            row.append(_with_interval(value, interval))
        rows.append(row)
    figures = (f"{kind}, {_text(s.name)}" for kind in ("accuracy", "ROC-AUC") for s in subjects)
    head = ["source", "class", "images", *figures]
    note = _note(
        "The ROC-AUC of a generated source is against all photographs, that of a photographic one "
        "against all generated faces, and that of a source with both classes within it."
    )
    return _section("sources", "By source", _table(head, rows) + note)


def _robustness(study: Study) -> str:
    subjects = study.subjects
    lowest = {
        key: min(cell.intervals[key][0] for subject in subjects for cell in subject.cells)
        for key in CELL_METRICS
    }
    charts = "".join(
        _dot_plot(subjects, key, plots.axis_of(lowest[key], label))
        for key, label in CELL_METRICS.items()
    )
    parts = [
        _strictness(subjects),
        _note(
            "Every picture was decoded whole, changed, and judged as the runtime would judge it. "
            "Dots are measured values, lines their intervals. Resize: to this fraction and back; "
            "blur: sigma in pixels; noise: deviation in levels of 255; brightness: a factor."
        ),
        _legend(subjects),
        f'<div class="figures">{charts}</div>',
    ]
    for subject in subjects:
        if len(subjects) > 1:
            parts.append(f"<h3>{_text(subject.name)}</h3>")
        parts.append(_cells_table(subject.cells))
        parts.append(_cells_by_source(subject.cells))
    if study.comparisons:
        parts.append(_compared_cells(study))
    return _section("robustness", "Robustness", "\n".join(parts))


def _dot_plot(subjects: Sequence[Subject], key: str, axis: plots.Axis) -> str:
    rows = []
    for cells in zip(*(subject.cells for subject in subjects), strict=True):
        label = cells[0].label
        values = [(getattr(cell, key), cell.intervals[key]) for cell in cells]
        title = f"{label}: " + "; ".join(
            f"{value:.4f} ({low:.4f} to {high:.4f})" for value, (low, high) in values
        )
        entries = (
            (value, interval, kind)
            for (value, interval), kind in zip(values, plots.SERIES, strict=False)
        )
        rows.append(
            f'<span class="name">{_text(label)}</span>{plots.draw_interval(axis, entries, title)}'
            f'<span class="value">{values[0][0]:.3f}</span>'
        )
    ticks = "".join(f"<span>{tick:g}</span>" for tick in axis.ticks[::2])
    return (
        f'<figure><figcaption class="above">{_text(axis.label)}</figcaption>'
        f'<div class="dots">{"".join(rows)}<span class="ticks" aria-hidden="true">{ticks}</span>'
        "</div></figure>"
    )


def _cells_table(cells: Sequence[Cell]) -> str:
    keys = ("roc_auc", "accuracy", "tpr_at_1_fpr", "false_alarms", "misses")
    rows = [
        [_text(cell.label), *(_with_interval(getattr(cell, k), cell.intervals[k]) for k in keys)]
        for cell in cells
    ]
    head = [
        "picture",
        "ROC-AUC",
        "accuracy",
        "found at 1 % false alarms",
        "photographs called generated",
        "generated called photographs",
    ]
    return _table(head, rows)


def _cells_by_source(cells: Sequence[Cell]) -> str:
    sources = cells[0].per_source
    if not sources:
        return ""
    rows = []
    for cell in cells:
        row = [_text(cell.label)]
        for name in sources:
            found = cell.per_source[name]
            shade = sum(found["accuracy"] < limit for limit in _SHADES)
            reach = f" <small>{span(found['interval'])}</small>"
            row.append(_number(f"{percent(found['accuracy'])}{reach}", f"shade{shade}"))
        rows.append(row)
    head = ["accuracy by source", *(f"{_text(n)} ({r['images']:,})" for n, r in sources.items())]
    return _table(head, rows)


def _compared_cells(study: Study) -> str:
    labels = {cell.name: cell.label for cell in study.subject.cells}
    rows = []
    for name, found in study.comparisons.items():
        gap, also = found.differences["roc_auc"], found.differences["accuracy"]
        rows.append(
            [
                _text(labels[name]),
                _number(_signed(gap.difference, gap.interval)),
                _number("" if found.auc.p is None else f"{found.auc.p:.2g}"),
                _number(_signed(also.difference, also.interval)),
                _number(f"{found.accuracy.p:.2g}"),
            ]
        )
    head = [
        "second less first",
        "difference of ROC-AUC",
        "p (DeLong)",
        "difference of accuracy",
        "p (McNemar)",
    ]
    note = _note(
        f"{len(rows)} rows were tested twice each: about one in twenty p is below 0.05 by chance."
    )
    return "<h3>Difference in every cell</h3>" + _table(head, rows) + note


def _signed(value: float, interval: Interval | None) -> str:
    if interval is None:
        return f"{value:+.4f}"
    return f"{value:+.4f} <small>{interval[0]:+.4f} to {interval[1]:+.4f}</small>"


def _errors(subject: Subject, subjects: Sequence[Subject]) -> str:
    number = subjects.index(subject)
    of = f" by {subject.name}" if len(subjects) > 1 else ""
    found = subject.evaluation
    galleries = []
    for label, title in (
        (0, "Generated faces that were missed"),
        (1, "Photographs called generated"),
    ):
        worst = found.worst(label, WORST)
        cards = "\n".join(_card(subject, sample, row) for sample, row in worst)
        inside = f'<ul class="gallery">\n{cards}\n</ul>' if cards else _note("None.")
        galleries.append(f"<h3>{title}</h3>\n{inside}")
    switch = ""
    if any('class="evidence"' in gallery for gallery in galleries):
        switch = _switch(number)
    note = _note(
        f"Verdicts that are wrong at the threshold, the most confident first, {WORST} at most."
    )
    name = f"errors-{number}"
    return _section(name, f"Worst errors{of}", note + switch + "\n".join(galleries))


def _switch(number: int) -> str:
    return f"""<label class="switch"><input type="checkbox" class="all" id="evidence-{number}">
Show the evidence on every picture</label>
<p class="scale"><span>speaks for groundtruth</span><span class="ramp" aria-hidden="true"></span>
<span>speaks for generated</span>
<span>(log-odds of each place, from -{EVIDENCE_LIMIT:g} to {EVIDENCE_LIMIT:g})</span></p>
"""


def _card(subject: Subject, sample: Sample, row: Result) -> str:
    folder, slash, name = sample.path.rpartition("/")
    path = f'<span class="folder">{_text(folder + slash)}</span>{_text(name)}'
    source = f'<span class="source">{_text(sample.source)}</span>' if sample.source else ""
    return f"""<li class="card"><figure>
{_picture(subject, sample, row)}
<figcaption><span class="score">P(generated) {row.score:.4f}</span>{source}
<bdi class="path">{path}</bdi></figcaption>
</figure></li>"""


def _picture(subject: Subject, sample: Sample, row: Result) -> str:
    evaluation = subject.evaluation
    try:
        image = decode(
            evaluation.data.read(sample), at_least=evaluation.card.preprocess.decode_side
        )
    except InputError:
        return '<div class="picture missing">The picture is not at hand any more</div>'
    name = _text(sample.path.rpartition("/")[2])
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    thumbnail = _data_uri("jpeg", resize(crop_centre(image), THUMBNAIL), options)
    photo = f'<img src="{thumbnail}" alt="{name}" width="{THUMBNAIL}" height="{THUMBNAIL}">'
    if row.heatmap is None:
        return f'<div class="picture">{photo}</div>'
    layer = _data_uri("png", evidence_layer(row.heatmap, OVERLAY))
    return f"""<label class="picture">
<input type="checkbox" aria-label="Show the evidence on {name}">
{photo}
<img class="evidence" src="{layer}" alt="">
<span class="pill" aria-hidden="true">Evidence</span></label>"""


def _data_uri(kind: str, image: Image, options: Sequence[int] = ()) -> str:
    _, data = cv2.imencode(f".{kind}", image, options)
    encoded = base64.b64encode(np.asarray(data, np.uint8).tobytes()).decode()
    return f"data:image/{kind};base64,{encoded}"


def _unreadable(subject: Subject) -> str:
    rows = subject.evaluation.unreadable
    if not rows:
        return _note("Every image could be read.")
    listed = "".join(
        f"<li><bdi>{_text(row.source)}</bdi>: {_text(row.error.message if row.error else '')}</li>"
        for row in rows[:ERRORS]
    )
    more = _note(f"and {len(rows) - ERRORS:,} more") if len(rows) > ERRORS else ""
    return _note("Left out of every figure:") + f'<ul class="paths">{listed}</ul>{more}'


def _facts(study: Study, subjects: Sequence[Subject]) -> str:
    blocks = [
        f"<div><h3>{_text(subject.name)}</h3>{_definitions(_model_facts(subject))}</div>"
        for subject in subjects
    ]
    blocks.append(f"<div><h3>Data</h3>{_definitions(_data_facts(study))}</div>")
    return f'<div class="blocks">{"".join(blocks)}</div>'


def _model_facts(subject: Subject) -> dict[str, str]:
    card = subject.evaluation.card
    low, high = card.unsure
    return {
        "name": card.name,
        "architecture": card.architecture,
        "precision": card.precision,
        "threshold": f"{card.threshold:.6g}",
        "unsure": f"{low:.6g} to {high:.6g}" if low < high else "never",
        "temperature": f"{card.temperature:.6g}",
        "file": subject.file,
        "sha256": subject.sha256,
        "checkpoint": card.provenance.checkpoint_sha256 or "unknown",
        "training manifest": card.provenance.manifest_sha256 or "unknown",
        "ran on": subject.runs_on,
    }


def _data_facts(study: Study) -> dict[str, str]:
    samples = study.data.samples
    kinds = Counter(CLASSES[sample.label] for sample in samples)
    count = f"{len(samples):,}"
    if study.available > len(samples):
        count += f", drawn by class and source from {study.available:,}"
    return {
        "folder": str(study.data.root),
        "split": ", ".join(sorted({sample.split for sample in samples if sample.split})) or "all",
        "images": count,
        **{name: f"{kinds[name]:,}" for name in CLASSES},
        "manifest": manifest_of(study.data) or "none",
        "measured by": f"ffd {__version__}",
    }


def _definitions(values: dict[str, str]) -> str:
    pairs = (f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in values.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'

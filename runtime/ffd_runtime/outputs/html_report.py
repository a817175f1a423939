"""One HTML file for a person: what was found, and the pictures that deserve a look."""

from __future__ import annotations

import base64
import hashlib
import heapq
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from ..core.errors import InputError, OutputError
from ..core.results import Result
from ..core.text import printable
from ..image.decode import Image, decode, read_file
from ..image.draw import EVIDENCE_LIMIT, evidence_layer
from ..image.preprocess import crop_centre, crop_face, resize
from ..model.card import ModelCard
from .target import follow_links, is_pipe

# Pictures shown in each of the two galleries.
PICTURES = 24
# Side of a thumbnail, in pixels, and its JPEG quality.
THUMBNAIL = 256
QUALITY = 80
# Side of an evidence overlay, in pixels; the browser scales it up smoothly.
OVERLAY = 64
# Unreadable inputs that are listed one by one.
ERRORS = 500
# How far from the threshold a score may be, in log-odds, to be called near it outside the band.
NEAR = 1.0
BINS = 20

# Larger files are made thumbnails when they become candidates, smaller ones at the end: most
# candidates are soon replaced, and these are all that is held of 200,000 pictures.
_KEEP_BYTES = 1 << 20
# Longer texts lose their middle.
_MAX_TEXT = 400

VERDICTS = ("generated", "unsure", "groundtruth")
_SYMBOLS = {"generated": "▲", "unsure": "◆", "groundtruth": "●", "errors": "✕"}


@dataclass(frozen=True)
class _Candidate:
    """A row that may be shown.

    Attributes:
        result: without its pictures.
        heatmap: float32 [h, w], or None for a row of an earlier run.
        encoded: the file, or the thumbnail's JPEG of a large one; None for a row of an earlier run.
        small: whether `encoded` is a thumbnail.
    """

    result: Result
    heatmap: npt.NDArray[np.float32] | None
    encoded: bytes | None
    small: bool = False


class Report:
    """A sink that writes a report: one HTML file with nothing outside of it, and no script.

    The file appears whole when the run ends; a run that fails or is interrupted leaves none, and
    an older one as it was. Memory does not grow with the number of rows.

    Args:
        path: ends with `.html` or `.htm`; a link stays, and what it leads to is written.
        model: model, backend and device that really ran, on one line: `Classifier.description`.
        card: the model's.

    Raises:
        OutputError: such a file cannot be written.
    """

    def __init__(self, path: Path, *, model: str, card: ModelCard) -> None:
        if path.suffix.lower() not in (".html", ".htm"):
            raise OutputError(f"--report {path}: the name must end with .html")
        if path.is_dir():
            raise OutputError(f"--report {path} is a folder: name a file")
        self.path = path = follow_links(path)
        # What is written to a pipe cannot be renamed.
        self.partial = path if is_pipe(path) else path.with_name(path.name + ".partial")
        self.model = model
        self.card = card
        self.started = datetime.now().astimezone()
        self.counts: Counter[str] = Counter()
        self.histogram: Counter[tuple[int, str]] = Counter()
        self.codes: Counter[str] = Counter()
        self.errors: list[Result] = []
        self.highest = _Best(PICTURES)
        self.nearest = _Best(PICTURES)
        try:
            # Said now, not after a night's work.
            self.partial.touch()
        except OSError as error:
            raise OutputError(f"cannot write {self.partial}: {error.strerror}") from None

    def write(self, result: Result) -> None:
        """Count a row, and keep its picture if it is among those that will be shown."""
        self.add_row(result)

    def add_row(self, result: Result) -> None:
        """The same for a row of an earlier run, which comes without its picture.

        If it is shown, its file is read again at the end, where it still exists.
        """
        if result.error or result.score is None or result.label not in VERDICTS:
            self._add_error(result)
            return
        self.counts[result.label] += 1
        self.histogram[min(int(result.score * BINS), BINS - 1), result.label] += 1
        self.highest.offer(result.score, result, self.card)
        distance = abs(log_odds(result.score) - log_odds(self.card.threshold))
        if result.label == "unsure" or distance <= NEAR:
            self.nearest.offer(-distance, result, self.card)

    def _add_error(self, result: Result) -> None:
        self.counts["errors"] += 1
        self.codes[result.error.code if result.error else "no_verdict"] += 1
        if len(self.errors) < ERRORS:
            self.errors.append(replace(result, encoded=None, heatmap=None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.partial.write_text(render(self), encoding="utf-8")
                if self.partial != self.path:
                    os.replace(self.partial, self.path)
        except OSError as failure:
            reason = failure.strerror or failure
            raise OutputError(f"cannot write {self.path}: {reason}") from None
        finally:
            if self.partial != self.path:
                self.partial.unlink(missing_ok=True)


class _Best:
    """The candidates of highest rank, the earlier one first where ranks are equal.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._heap: list[tuple[float, int, _Candidate]] = []

    def offer(self, rank: float, result: Result, card: ModelCard) -> None:
        """Keep a result if it is among the best so far."""
        self._seen += 1
        full = len(self._heap) == self._size
        if full and rank <= self._heap[0][0]:
            return
        entry = (rank, -self._seen, _candidate(result, card))
        (heapq.heapreplace if full else heapq.heappush)(self._heap, entry)

    def best_first(self) -> list[_Candidate]:
        """The candidates, of the highest rank first."""
        return [candidate for _, _, candidate in sorted(self._heap, reverse=True)]


def log_odds(score: float) -> float:
    """Log-odds of a score; rows have six digits, so beyond those it goes no further."""
    inside = min(max(score, 5e-7), 1 - 5e-7)
    return math.log(inside / (1 - inside))


def _candidate(result: Result, card: ModelCard) -> _Candidate:
    # A copy: the heatmap may be a view of its whole batch.
    heatmap = None if result.heatmap is None else result.heatmap.copy()
    row = replace(result, encoded=None, heatmap=None)
    if result.encoded is None or len(result.encoded) <= _KEEP_BYTES:
        return _Candidate(row, heatmap, result.encoded)
    return _Candidate(row, heatmap, _thumbnail(result.encoded, row, card), small=True)


def _thumbnail(encoded: bytes, result: Result, card: ModelCard) -> bytes | None:
    """The square that was classified, as a small JPEG; None if it cannot be decoded."""
    try:
        # It was decoded before, so whatever limit there is has been kept.
        image = decode(encoded, sys.maxsize)
    except InputError:
        return None
    face = result.face
    square = crop_face(image, face, card.preprocess.face_scale) if face else crop_centre(image)
    return _encode(".jpg", resize(square, THUMBNAIL), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


def _encode(suffix: str, image: Image, options: Sequence[int] = ()) -> bytes:
    done, data = cv2.imencode(suffix, image, options)
    assert done, suffix
    return np.asarray(data, np.uint8).tobytes()


def render(report: Report) -> str:
    """The whole page; every text in it is escaped, and nothing refers outside of it."""
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    style = template.partition("<style>")[2].partition("</style>")[0]
    total = report.counts.total()
    heading = f"{total:,} {'input' if total == 1 else 'inputs'}"
    kinds = [(kind, report.counts[kind]) for kind in (*VERDICTS, "errors")]
    return Template(template).substitute(
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        title=f"ffd report: {heading}",
        heading=heading,
        when=_when(report.started, datetime.now().astimezone()),
        model=_text(report.model),
        tally="\n".join(_tile(kind, count, total) for kind, count in kinds),
        bar=_bar(kinds, total),
        scores=_scores(report),
        galleries=_galleries(report),
        unreadable=_unreadable(report),
        facts=_facts(report.card),
    )


def _text(text: str) -> str:
    """Any text, safe inside an element and inside a quoted attribute."""
    shown = printable(text)
    if len(shown) > _MAX_TEXT:
        shown = f"{shown[: _MAX_TEXT // 2]} … {shown[-_MAX_TEXT // 2 :]}"
    return escape(shown)


def _path(result: Result) -> str:
    """A source with its folder set back, and the place in it."""
    folder, slash, name = result.source.rpartition("/")
    shown = f'<span class="folder">{_text(folder + slash)}</span>' if slash else ""
    place = "" if result.frame is None else f", frame {result.frame}"
    if result.face:
        place += ", face at {}, {} ({}x{})".format(*result.face)
    return f'<bdi class="path">{shown}{_text(name)}</bdi>{place and f"<span>{place[2:]}</span>"}'


def _kind(kind: str) -> str:
    name = "unreadable" if kind == "errors" else kind
    symbol = f'<span aria-hidden="true">{_SYMBOLS[kind]}</span>'
    return f'<span class="kind {kind}">{symbol} {name}</span>'


def _when(started: datetime, ended: datetime) -> str:
    seconds = round((ended - started).total_seconds())
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    took = " ".join(f"{n} {unit}" for n, unit in ((hours, "h"), (minutes, "min")) if n)
    began = f'<time datetime="{started.isoformat(timespec="seconds")}">{started:%Y-%m-%d %H:%M}'
    return f"{began} ({started:%z})</time>, took {f'{took} {seconds} s'.strip()}"


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "0 %"


def _tile(kind: str, count: int, total: int) -> str:
    share = f'<span class="share">{_share(count, total)}</span>'
    return f'<li>{_kind(kind)} <span class="count">{count:,}</span> {share}</li>'


def _bar(kinds: Iterable[tuple[str, int]], total: int) -> str:
    """The counts as one stacked bar; the tiles above it say the same in words."""
    parts, left = [], 0.0
    for kind, count in kinds:
        width = 1000 * count / max(total, 1)
        parts.append(f'<rect class="{kind}" x="{left:.2f}" width="{width:.2f}" height="10"/>')
        left += width
    shape = 'viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true"'
    return f'<svg class="bar" {shape}>{"".join(parts)}</svg>'


def _scores(report: Report) -> str:
    low, high = report.card.unsure
    threshold = report.card.threshold
    if not report.histogram:
        return '<p class="note">No picture could be classified.</p>'
    rows = [[report.histogram[bin_, kind] for kind in VERDICTS] for bin_ in range(BINS)]
    top = max(map(sum, rows))
    band = f"unsure from {low:.3g} to {high:.3g}" if low < high else "no unsure band"
    legend = "".join(f"<li>{_kind(kind)}</li>" for kind in VERDICTS)
    return f"""<p class="note">How many pictures got which score: P(generated).</p>
<figure>
<div class="histogram">
<div class="axis up" aria-hidden="true"><span>{top:,}</span><span>0</span></div>
<svg viewBox="0 0 1000 300" preserveAspectRatio="none" role="img"
 aria-label="Histogram of the scores; the numbers are in the table below.">
<rect class="band" x="{1000 * low:.2f}" width="{1000 * (high - low):.2f}" height="300"/>
{"".join(_column(number, row, top) for number, row in enumerate(rows))}
<path class="threshold" d="M{1000 * threshold:.2f} 0V300"/>
</svg>
<div class="axis along" aria-hidden="true"><span>0</span><span>0.25</span><span>0.5</span>
<span>0.75</span><span>1</span></div>
</div>
<figcaption class="note"><ul class="legend">{legend}
<li><svg viewBox="0 0 24 12" aria-hidden="true"><rect class="band" width="24" height="12"/></svg>
{band}</li>
<li><svg viewBox="0 0 24 12" aria-hidden="true"><path class="threshold" d="M12 0V12"/></svg>
threshold {threshold:.3g}</li></ul></figcaption>
</figure>
<details><summary>The same as a table</summary><div class="wide">{_histogram_table(rows)}</div>
</details>"""


def _column(number: int, row: Sequence[int], top: int) -> str:
    """One bin, its verdicts stacked; a single picture must still be seen."""
    parts, base = [], 300.0
    for kind, count in reversed(list(zip(VERDICTS, row, strict=True))):
        if count:
            height = min(max(285 * count / top, 3), base)
            base -= height
            box = f'x="{1000 * number / BINS + 3:g}" y="{base:.2f}" width="{1000 / BINS - 6:g}"'
            title = f"<title>{_span(number)}: {count:,} {kind}</title>"
            parts.append(f'<rect class="{kind}" {box} height="{height:.2f}">{title}</rect>')
    return "".join(parts)


def _span(number: int) -> str:
    return f"{number / BINS:.2f}-{(number + 1) / BINS:.2f}"


def _histogram_table(rows: Sequence[Sequence[int]]) -> str:
    head = "".join(f'<th scope="col" class="number">{kind}</th>' for kind in VERDICTS)
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f'<td class="number">{count:,}</td>' for count in row)
        body += f'<tr><th scope="row">{_span(number)}</th>{cells}</tr>\n'
    columns = f'<thead><tr><th scope="col">score</th>{head}</tr></thead>'
    return f"<table>{columns}<tbody>\n{body}</tbody></table>"


def _galleries(report: Report) -> str:
    highest, nearest = report.highest.best_first(), report.nearest.best_first()
    shown = any(candidate.heatmap is not None for candidate in highest + nearest)
    return _gallery(
        "suspicious",
        "Most suspicious",
        "The highest scores, the highest first.",
        "No picture could be classified.",
        highest,
        report.card,
        _EVIDENCE if shown else "",
    ) + _gallery(
        "uncertain",
        "Most uncertain",
        "The scores nearest the threshold, measured in log-odds, the nearest first.",
        "No score came near the threshold.",
        nearest,
        report.card,
    )


_EVIDENCE = f"""<label class="switch"><input type="checkbox" id="evidence">
Show the evidence on every picture</label>
<p class="scale"><span>speaks for groundtruth</span><span class="ramp" aria-hidden="true"></span>
<span>speaks for generated</span>
<span>(log-odds of each place, from -{EVIDENCE_LIMIT:g} to {EVIDENCE_LIMIT:g} in every picture;
clear is 0)</span></p>
"""


def _gallery(
    name: str,
    title: str,
    note: str,
    nothing: str,
    candidates: Sequence[_Candidate],
    card: ModelCard,
    extra: str = "",
) -> str:
    cards = "\n".join(_card(candidate, card) for candidate in candidates)
    inside = f'<ul class="gallery">\n{cards}\n</ul>' if cards else ""
    return f"""<section aria-labelledby="{name}">
<h2 id="{name}">{title}</h2>
<p class="note">{note if cards else nothing}</p>
{extra}{inside}
</section>
"""


def _card(candidate: _Candidate, card: ModelCard) -> str:
    result = candidate.result
    assert result.label
    assert result.score is not None
    return f"""<li class="card"><figure>
{_picture(candidate, card)}
<figcaption><span class="verdict">{_kind(result.label)}
<span class="score">{result.score:.4f}</span></span>
{_meter(result.score, result.label, card)}
{_path(result)}</figcaption>
</figure></li>"""


def _picture(candidate: _Candidate, card: ModelCard) -> str:
    source = candidate.result.source
    thumbnail = candidate.encoded if candidate.small else _read_thumbnail(candidate, card)
    if thumbnail is None:
        return '<div class="picture missing">The picture is not at hand any more</div>'
    name = _text(source.rpartition("/")[2])
    photo = f'<img src="{_data_uri("jpeg", thumbnail)}" alt="{name}" width="256" height="256">'
    if candidate.heatmap is None:
        return f'<div class="picture">{photo}</div>'
    layer = _encode(".png", evidence_layer(candidate.heatmap, OVERLAY))
    return f"""<label class="picture">
<input type="checkbox" aria-label="Show the evidence on {name}">
{photo}
<img class="evidence" src="{_data_uri("png", layer)}" alt="">
<span class="pill" aria-hidden="true">Evidence</span></label>"""


def _read_thumbnail(candidate: _Candidate, card: ModelCard) -> bytes | None:
    """The thumbnail of a file that was kept, or of one that is still where it was."""
    encoded, result = candidate.encoded, candidate.result
    if encoded is None and result.frame is None:
        try:
            encoded = read_file(result.source)
        except InputError:
            return None
    return encoded and _thumbnail(encoded, result, card)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _meter(score: float, label: str, card: ModelCard) -> str:
    """Where a score lies between 0 and 1, with the unsure band and the threshold."""
    low, high = card.unsure
    shape = 'viewBox="0 0 1000 40" preserveAspectRatio="none" aria-hidden="true"'
    return f"""<svg class="meter" {shape}>
<rect class="track" width="1000" height="40"/>
<rect class="{label}" width="{max(1000 * score, 8):.1f}" height="40"/>
<rect class="band" x="{1000 * low:.1f}" width="{1000 * (high - low):.1f}" height="40"/>
<path class="threshold" d="M{1000 * card.threshold:.1f} 0V40"/></svg>"""


def _unreadable(report: Report) -> str:
    count = report.counts["errors"]
    if not count:
        return '<p class="note">Every input could be read.</p>'
    codes = "".join(
        f'<tr><td>{_text(code)}</td><td class="number">{number:,}</td></tr>\n'
        for code, number in report.codes.most_common()
    )
    rows = "".join(
        f"<tr><td>{_path(result)}</td><td>{_text(_reason(result))}</td></tr>\n"
        for result in report.errors
    )
    more = count - len(report.errors)
    rest = f'<p class="note">and {more:,} more</p>' if more else ""
    return f"""<p class="note">{count:,} of the inputs have no verdict.</p>
<table class="compact"><thead><tr><th scope="col">reason</th>
<th scope="col" class="number">inputs</th></tr></thead><tbody>
{codes}</tbody></table>
<details><summary>Show which</summary>
<table><thead><tr><th scope="col">input</th><th scope="col">what is wrong</th></tr></thead><tbody>
{rows}</tbody></table>{rest}</details>"""


def _reason(result: Result) -> str:
    return f"{result.error.code}: {result.error.message}" if result.error else "no verdict"


def _facts(card: ModelCard) -> str:
    low, high = card.unsure
    facts = {
        "name": card.name,
        "architecture": card.architecture,
        "precision": card.precision,
        "threshold": f"{card.threshold:.6g}",
        "unsure": f"{low:.6g} to {high:.6g}" if low < high else "never",
        "temperature": f"{card.temperature:.6g}",
        "written by": f"ffd {card.provenance.version}",
        "checkpoint": card.provenance.checkpoint_sha256 or "unknown",
        "trained from": card.provenance.weights or "unknown",
    }
    groups = {"Preprocessing": asdict(card.preprocess)}
    groups |= {f"Measured: {name}": dict(group) for name, group in card.metrics.items()}
    blocks = "\n".join(
        f"<div><h3>{_text(name)}</h3>"
        + _definitions({key.replace("_", " "): _value(value) for key, value in group.items()})
        + "</div>"
        for name, group in groups.items()
    )
    return f'{_definitions(facts)}\n<div class="blocks">\n{blocks}\n</div>'


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _definitions(values: dict[str, str]) -> str:
    pairs = (f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in values.items())
    return f'<dl class="facts">{"".join(pairs)}</dl>'

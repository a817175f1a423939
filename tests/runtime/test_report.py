from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.core.log_odds import log_odds
from ffd_runtime.core.results import Result
from ffd_runtime.model.card import ModelCard
from ffd_runtime.outputs.html_report import (
    MARK,
    MARK_WITHIN_BYTES,
    MAX_GALLERY_IMAGES,
    MAX_LISTED_ERRORS,
    THUMBNAIL_PX,
    Report,
)

from ..conftest import picture
from ..models import CARD
from ..nightly import examples

HEATMAP = np.linspace(-30, 30, 100, dtype=np.float32).reshape(10, 10)
HOSTILE = (
    "<script>alert(1)</script>.jpg",
    '"><img src=http://host/x onerror=alert(1)>.jpg',
    "'/onload='alert(1).jpg",
    "</style></title><base href=//host>.jpg",
    "photo\u202egpj.exe",
    "line\n\r\t\0\x1b[31m.jpg",
    os.fsdecode(b"bytes-\xff\xfe.jpg"),
    "lone-\ud800.jpg",
    "https://host/path?a=1&b=%3Cscript%3E",
    "&lt;script&gt;$title${facts}.jpg",
    "/very/long/" + "x" * 5000 + ".jpg",
    "zalgo" + "\u0301\u0330" * 200 + ".jpg",
)


def encoded(
    colour: str = "red", height: int = 120, width: int = 100, suffix: str = ".jpg"
) -> bytes:
    done, data = cv2.imencode(suffix, picture(colour, height, width))
    assert done
    return data.tobytes()


JPEG = encoded()
names = st.one_of(
    st.binary(min_size=1).map(os.fsdecode),
    st.text(min_size=1),
    st.text("<>&'\"/=; ab-!\n", min_size=1),
    st.sampled_from(HOSTILE),
)


def seen(source: str, score: float, card: ModelCard = CARD, data: bytes | None = JPEG) -> Result:
    label = card.verdict(score)
    heatmap = None if data is None else HEATMAP
    return Result(source, label=label, score=score, heatmap=heatmap, encoded=data)


class Page(HTMLParser):
    """Parse a page into elements, which must be nested correctly, and text."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "rect", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]

    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]


def write(path: Path, *results: Result, card: ModelCard = CARD) -> Page:
    with Report(path, model="colour (colour, fp32), onnxruntime, CPU", card=card) as report:
        for result in results:
            report.write(result)
    return Page(path.read_text(encoding="utf-8"))


def images_of(page: Page) -> list[bytes]:
    return [
        base64.b64decode((image["src"] or "").partition(",")[2])
        for image in page.all("img")
        if image.get("class") != "evidence"
    ]


def sources_of(html: str) -> list[list[str]]:
    """Return the names in the two galleries."""
    return [
        re.findall(r'<bdi class="path">(.*?)</bdi>', part)
        for part in html.partition('id="unreadable"')[0].split("<section")[2:4]
    ]


def broken(source: str, code: str = "empty", message: str = "the file is empty") -> Result:
    return Result.failed(source, InputError(code, message))


def test_report_has_no_external_references(tmp_path: Path) -> None:
    rows = [seen(f"in/{number}.jpg", number / 40) for number in range(41)]
    page = write(tmp_path / "report.html", *rows, broken("in/x.jpg"))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    allowed = {"href": ("#", "data:"), "src": ("data:image/",)}
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "a:href")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("style", "srcset", "action", "formaction")
            if name in allowed:
                assert (value or "").startswith(allowed[name])
    html = (tmp_path / "report.html").read_text()
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html.replace("http-equiv", "")
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.tuples(names, names, names), min_size=1, max_size=4))
def test_names_are_escaped(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.html"

    def page(rows: list[tuple[str, str, str]]) -> Page:
        rows = [(f"in/{one}", f"in/{two}", text) for one, two, text in rows]
        results = [seen(one, 0.5) for one, _, _ in rows]
        return write(path, *results, *(broken(two, "corrupt", text) for _, two, text in rows))

    harmless = page([("x.jpg", "y.jpg", "text")] * len(found))
    hostile = page(found)
    spans = ("span", ("class",))  # one more for a name with a folder; all are in in/
    assert [e for e in hostile.structure() if e != spans] == [
        e for e in harmless.structure() if e != spans
    ]
    assert all(c.isprintable() or c in "\n\r" for text in hostile.text for c in text)


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    page = write(tmp_path / "r.html", *(seen(name, 0.9, data=None) for name in HOSTILE))
    text = "".join(page.text)
    assert "<script>alert(1)</script>.jpg" in text
    assert "photo\\u202egpj.exe" in text
    assert "bytes-\\xff\\xfe.jpg" in text
    assert "&lt;script&gt;$title${facts}.jpg" in text
    assert not page.all("script")
    assert len(max(page.text, key=len)) < 60_000
    assert "x" * 500 not in text


def test_galleries_show_the_highest_and_the_nearest_scores(tmp_path: Path) -> None:
    card = CARD.replace(threshold=0.2, unsure=(0.1, 0.4))
    scores = np.random.default_rng(0).permutation(np.linspace(0, 1, 500)).round(6).tolist()
    path = tmp_path / "r.html"
    write(path, *(seen(f"{score:.6f}", score, card) for score in scores), card=card)
    suspicious, uncertain = sources_of(path.read_text())
    assert suspicious == [
        f"{score:.6f}" for score in sorted(scores)[: -MAX_GALLERY_IMAGES - 1 : -1]
    ]
    by_distance = sorted(scores, key=lambda score: abs(log_odds(score) - log_odds(0.2)))
    assert uncertain == [f"{score:.6f}" for score in by_distance[:MAX_GALLERY_IMAGES]]
    assert images_of(Page(path.read_text()))[0].startswith(b"\xff\xd8\xff")


def test_gallery_of_uncertain_images_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    page = write(path, *(seen(f"{score}", score) for score in (0.0, 0.0001, 0.999, 1.0)))
    suspicious, uncertain = sources_of(path.read_text())
    assert suspicious == ["1.0", "0.999", "0.0001", "0.0"]
    assert uncertain == []
    assert "No score is near the threshold." in "".join(page.text)


def test_thresholds_of_0_and_1_can_be_drawn(tmp_path: Path) -> None:
    for low, threshold, high in ((0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.3, 0.3, 0.3)):
        card = CARD.replace(threshold=threshold, unsure=(low, high))
        write(tmp_path / "r.html", seen("a.jpg", 0.0, card), seen("b.jpg", 1.0, card), card=card)


def test_counts_histogram_and_errors(tmp_path: Path) -> None:
    rows = [seen("a.jpg", 0.01)] * 3 + [seen("b.jpg", 1.0)] * 2 + [seen("c.jpg", 0.5)]
    errors = [
        broken(f"{n}.jpg", "truncated" if n % 3 else "empty")
        for n in range(MAX_LISTED_ERRORS + 100)
    ]
    page = write(tmp_path / "r.html", *rows, *errors)
    text = " ".join("".join(page.text).split())
    assert "606 inputs" in text
    assert "▲ generated 2 0.3 %" in text
    assert "● photograph 3 0.5 %" in text
    assert "◆ unsure 1 0.2 %" in text
    assert "✕ unreadable 600 99.0 %" in text
    assert "0.00-0.05003" in text.replace(" ", "")
    assert "0.95-1.00200" in text.replace(" ", "")
    assert "truncated400 empty200" in text
    assert "and 100 more" in text
    assert f"{MAX_LISTED_ERRORS - 1}.jpg" in text
    assert f"{MAX_LISTED_ERRORS}.jpg" not in text
    bars = [box for box in page.all("rect") if "width" in box and box["width"] == "44"]
    assert len(bars) == 3


def test_report_without_inputs(tmp_path: Path) -> None:
    page = write(tmp_path / "r.html")
    text = "".join(page.text)
    assert "0 inputs" in text
    assert "Every input could be read." in text
    assert "No image could be classified." in text


def test_images_of_an_earlier_run_are_read_again(tmp_path: Path) -> None:
    there = tmp_path / "there.jpg"
    there.write_bytes(encoded("blue", 300, 200))
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").write_bytes(JPEG[:200])
    path = tmp_path / "r.html"
    with Report(path, model="m", card=CARD) as report:
        for name in ("there.jpg", "gone.jpg", "pipe.jpg", "broken.jpg", "a.zip!/x.jpg", "nul\0"):
            report.write(Result(str(tmp_path / name), label="generated", score=0.9))
        report.write(Result(str(there), frame=3, label="generated", score=0.9))
    page = Page(path.read_text())
    assert len(images_of(page)) == 1
    thumbnail = cv2.imdecode(np.frombuffer(images_of(page)[0], np.uint8), 1)
    assert thumbnail is not None
    assert thumbnail.shape == (THUMBNAIL_PX, THUMBNAIL_PX, 3)
    assert thumbnail[..., 0].mean() > thumbnail[..., 2].mean() + 40
    assert "".join(page.text).count("is no longer available") == 6


def test_thumbnail_is_the_classified_square(tmp_path: Path) -> None:
    image = np.full((100, 300, 3), 255, np.uint8)
    image[:, 100:200] = (0, 0, 200)
    image[40:60, 140:160] = (200, 0, 0)
    for side, suffix in ((1, ".png"), (12, ".bmp")):  # small, and large enough to be reduced early
        wide = cv2.resize(image, None, fx=side, fy=side, interpolation=cv2.INTER_NEAREST)
        done, data = cv2.imencode(suffix, wide)
        assert done
        whole = seen("a", 0.6, data=data.tobytes())
        page = write(tmp_path / "r.html", whole, replace(whole, source="b", face=(140, 40, 15, 15)))
        centre = cv2.imdecode(np.frombuffer(images_of(page)[0], np.uint8), 1)
        assert centre is not None
        assert centre[20, 20, 2] > 180
        assert centre[20, 20, 0] < 40
        assert centre[128, 128, 0] > 180
        if side == 1:
            face = cv2.imdecode(np.frombuffer(images_of(page)[1], np.uint8), 1)
            assert face is not None
            assert face.reshape(-1, 3).mean(axis=0)[0] > 120


def test_memory_holds_only_candidates(tmp_path: Path) -> None:
    large = encoded(height=1200, width=1200, suffix=".bmp")
    assert len(large) > 1 << 20
    with Report(tmp_path / "r.html", model="m", card=CARD) as report:
        for number in range(20_000):
            # The scores increase, so that each image becomes a candidate.
            data = large if number % 1000 == 0 or number > 19_990 else JPEG
            report.write(seen(f"{number}", 0.3 + number / 40_000, data=data))
            report.write(broken(f"{number}.txt"))
        kept = report.highest.best_first() + report.nearest.best_first()
        assert len(kept) == 2 * MAX_GALLERY_IMAGES
        assert max(len(result.encoded or b"") for result, _ in kept) < 100_000
        assert len(report.errors) == MAX_LISTED_ERRORS
    assert (tmp_path / "r.html").stat().st_size < 5_000_000


def test_a_file_that_is_not_a_report_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("<title>mine</title>")
    with pytest.raises(OutputError, match="exists and is not a page of ffd"):
        Report(path, model="m", card=CARD)
    assert path.read_text() == "<title>mine</title>"
    path.write_bytes(b"")
    for score in (0.1, 0.9):
        write(path, seen("a.jpg", score))
        assert MARK in path.read_bytes()[:MARK_WITHIN_BYTES]


def test_failed_run_keeps_the_older_report(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_bytes(MARK)
    for failure in (KeyboardInterrupt, ValueError):
        with pytest.raises(failure), Report(path, model="m", card=CARD) as report:
            report.write(seen("a.jpg", 0.9))
            raise failure
        assert path.read_bytes() == MARK
        assert [found.name for found in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_an_error_and_keeps_the_older_report(tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_bytes(MARK)
    (tmp_path / "r.html.partial").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match="cannot write .*No space left"),
        Report(path, model="m", card=CARD) as report,
    ):
        report.write(seen("a.jpg", 0.9))
    assert path.read_bytes() == MARK
    assert [found.name for found in tmp_path.iterdir()] == ["r.html"]


def test_path_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for name, message in (
        ("report.pdf", "the name must end with .html"),
        ("folder.html", "is a folder: name a file"),
        ("absent/r.html", "No such file or directory"),
    ):
        with pytest.raises(OutputError, match=message):
            Report(tmp_path / name, model="m", card=CARD)


def test_report_describes_the_model(tmp_path: Path) -> None:
    card = CARD.replace(metrics={"val": {"accuracy": 0.971, "images": 840, "kept": None}})
    text = "".join(write(tmp_path / "r.html", seen("a.jpg", 0.9), card=card).text)
    for part in ("onnxruntime, CPU", "clahe tiles8", "0.2 to 0.8", "accuracy0.971", "keptnone"):
        assert part in text, part


def test_headings_labels_and_ids_are_valid(tmp_path: Path) -> None:
    page = write(tmp_path / "r.html", seen("a.jpg", 0.9), broken("b.jpg"))
    assert page.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    assert all("alt" in image for image in page.all("img"))
    skip = page.all("a")[0]
    assert (skip["href"] or "")[1:] in ids


def test_text_has_enough_contrast(tmp_path: Path) -> None:
    def luminance(colour: str) -> float:
        # Relative luminance of WCAG 2.2.
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    write(tmp_path / "r.html")
    html = (tmp_path / "r.html").read_text()
    schemes = [
        dict(re.findall(r"--([\w-]+): (#\w{6});", block))
        for block in re.findall(r":root \{(.*?)\}", html, re.DOTALL)[:2]
    ]
    assert len(schemes) == 2
    for scheme in schemes:
        for ground in ("page", "surface", "sunken"):
            for text in ("text", "muted", "generated", "unsure", "groundtruth", "errors"):
                pair = sorted((luminance(scheme[text]), luminance(scheme[ground])))
                contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
                assert contrast >= 4.5, (text, ground, contrast)

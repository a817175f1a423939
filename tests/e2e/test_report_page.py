"""Open the page of `ffd-run --report` in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.outputs.html_report import Report

from ..conftest import picture
from ..runtime.test_report import HEATMAP, HOSTILE, broken, sources_of
from .browser import OVERFLOWING, Browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, colour_model: Path) -> Path:
    """A report of images that were classified, with hostile names."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    with (
        Classifier.open(colour_model) as classifier,
        Report(path, model=classifier.description, card=classifier.card) as sink,
    ):
        for number in range(30):
            image = picture("red", 200, 300, number)
            result = classifier.classify(image)
            done, data = cv2.imencode(".jpg", image)
            assert done
            name = HOSTILE[number] if number < len(HOSTILE) else f"/srv/portraits/{number}.jpg"
            sink.write(replace(result, source=name, heatmap=HEATMAP, encoded=data.tobytes()))
            sink.write(replace(result, source=name, label="unsure", score=0.5))
            sink.write(broken(name))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1200])
def test_page_fits_every_screen(browser: Browser, report: Path, width: int, scheme: str) -> None:
    browser.open(report, width, scheme)
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.evaluate(
        "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    ground = browser.evaluate("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
    assert browser.console() == []


def test_page_can_be_used_with_the_keyboard(browser: Browser, report: Path) -> None:
    focused = "return document.activeElement.outerHTML.slice(0, 200)"
    opacity = (
        "return [...document.querySelectorAll('.evidence')].map(e => getComputedStyle(e).opacity)"
    )
    browser.open(report, 1200, "light")
    browser.press("Tab", 9)
    assert 'class="skip"' in browser.evaluate(focused)
    assert browser.evaluate("return document.activeElement.getBoundingClientRect().top >= 0")
    browser.press("Enter", 13, "\r")
    browser.press("Tab", 9)
    assert "summary" in browser.evaluate(focused)
    browser.press("Tab", 9)
    assert 'id="evidence"' in browser.evaluate(focused)
    assert set(browser.evaluate(opacity)) == {"0"}
    browser.press(" ", 32, " ")
    assert set(browser.evaluate(opacity)) == {"1"}
    browser.press(" ", 32, " ")
    browser.press("Tab", 9)
    assert "Show the evidence on" in browser.evaluate(focused)
    browser.press(" ", 32, " ")
    shown = browser.evaluate(opacity)
    assert shown[0] == "1"
    assert set(shown[1:]) == {"0"}
    outline = "getComputedStyle(document.activeElement.closest('.card')).outlineStyle"
    assert browser.evaluate(f"return {outline}") == "solid"


def test_gallery_of_real_faces(browser: Browser, faces: Path, tmp_path: Path) -> None:
    found = [*sorted((faces / "test" / "generated").iterdir())[:8]]
    found += sorted((faces / "test" / "groundtruth").iterdir())[:8]
    path = tmp_path / "r.html"
    with (
        Classifier.open() as classifier,
        Report(path, model=classifier.description, card=classifier.card) as sink,
    ):
        for face in found:
            sink.write(replace(classifier.classify(face), encoded=face.read_bytes()))
    suspicious, _ = sources_of(path.read_text())
    assert all("/generated/" in name for name in suspicious[:6])
    browser.open(path, 360, "light")
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.console() == []

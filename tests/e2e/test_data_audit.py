"""Open the page of `ffd-data audit` in a real browser."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ffd_train.audit.audit_page import write_page

from ..train.test_audit import look, make
from .browser import Browser

NAME = "</script><img src=x onerror=alert(1)>" + "-long-name" * 15
OVERFLOWING = """
return [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, .skip')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 100))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make(tmp_path_factory.mktemp("data") / "set", count=10, splits=("train", "test"))
    shutil.copy(root / "train/generated/0.jpg", root / "test/generated/copy.jpg")
    (root / "test/groundtruth/empty.jpg").touch()
    rows = [f'{split}/generated/{i}.jpg,"{NAME}"' for split in ("train", "test") for i in range(10)]
    (root / "manifest.csv").write_text("\n".join(["path,source", *rows]))
    path = root.parent / "page.html"
    write_page(path, look(root), datetime(2026, 1, 1, tzinfo=UTC))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_audit_page_fits_every_screen(browser: Browser, page: Path, scheme: str) -> None:
    for width in (320, 768, 1400):
        browser.open(page, width, scheme)
        assert browser.evaluate(OVERFLOWING) == []
    images = "return [...document.images].map(i => i.complete && i.naturalWidth)"
    widths = browser.evaluate(images)
    assert len(widths) > 40
    assert set(widths) == {96, 160}
    pair = "return [...document.querySelectorAll('.pair bdi')].map(e => e.textContent)"
    assert browser.evaluate(pair) == ["train/generated/0.jpg", "test/generated/copy.jpg"]
    assert NAME in browser.evaluate("return document.querySelector('#sheets ~ h3').textContent")
    assert browser.evaluate("return document.querySelectorAll('img[src=x], script').length") == 0
    first = browser.evaluate("return document.querySelector('.findings li').innerText")
    assert "train/generated/0.jpg = test/generated/copy.jpg" in first
    assert browser.evaluate("return document.querySelectorAll('.histograms rect').length") > 100
    assert browser.console() == []

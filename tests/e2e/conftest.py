from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .browser import Browser


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    # Discard the errors of the previous page, whose server may have ended.
    chromium.command("Page.navigate", url="about:blank")
    chromium.console()
    return chromium

"""Open the page of `--serve` in a real browser during a run."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
import pytest

from ffd_runtime.core.results import Label, Result, Track
from ffd_runtime.image.decode import Image
from ffd_runtime.video.frame_result import Frame, FrameResult, StreamHealth
from ffd_runtime.web.dashboard_server import DashboardServer
from ffd_runtime.web.listen_address import ListenAddress

from ..models import CARD
from .browser import Browser

HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;\n" + "long-name-" * 12
WIDTH, HEIGHT = 640, 360
PATIENCE = 20.0


def draw_room(seed: int) -> Image:
    """Draw a static background."""
    wall = np.random.default_rng(seed).integers(60, 140, (9, 16, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(wall, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)


def draw_face() -> Image:
    face = np.full((140, 120, 3), (110, 140, 190), np.uint8)
    for x in (40, 80):
        cv2.circle(face, (x, 55), 9, (40, 40, 40), cv2.FILLED, cv2.LINE_AA)
    cv2.ellipse(face, (60, 100), (24, 10), 0, 0, 180, (60, 60, 150), 5, cv2.LINE_AA)
    return face


class Run:
    """Simulate `ffd-run --serve`: send frames and the health of the sources.

    Args:
        serve: receives them.
        names: of the sources.
        pictures: of faces, uint8 BGR, one for each face in a frame.
        slow: sources that send only one frame.
    """

    def __init__(
        self,
        serve: DashboardServer,
        names: Sequence[str],
        pictures: Sequence[Image] = (),
        slow: Sequence[str] = (),
    ) -> None:
        self.serve = serve
        self.healths = {name: self._playing(name, 0) for name in names}
        self.labels: list[Label] = ["generated", "groundtruth"]
        self.blocked = threading.Event()
        self._slow = slow
        self._pictures = pictures or [draw_face(), draw_face()]
        self._rooms = {name: draw_room(seed) for seed, name in enumerate(names)}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go)

    @staticmethod
    def _playing(name: str, frames: int) -> StreamHealth:
        return StreamHealth(
            name,
            live=True,
            state="playing",
            size=(WIDTH, HEIGHT),
            fps=19.7,
            frames=frames,
            analysed=frames - frames // 9,
            dropped=frames // 9,
            age=0.043,
            last_frame=time.time(),
        )

    def lose(self, name: str, **facts: Any) -> None:
        """Let a source fail."""
        gone = {"state": "waiting", "error": "it does not answer", "next_try": 4.0, **facts}
        self.healths[name] = replace(self.healths[name], **gone)

    def find(self, name: str) -> None:
        """Let a source recover."""
        self.healths[name] = self._playing(name, self.healths[name].frames)

    def _go(self) -> None:
        number = 0
        while not self._end.wait(0.05):
            if self.blocked.is_set():
                continue
            number += 1
            for name, health in list(self.healths.items()):
                if name in self._slow and number > 1:
                    self.healths[name] = replace(health, fps=0.0)
                elif health.state == "playing":
                    self.healths[name] = self._playing(name, number)
                    self.serve.show(self._frame_result(name, number))
            self.serve.tick(list(self.healths.values()))

    def _frame_result(self, name: str, number: int) -> FrameResult:
        image, results = self._rooms[name].copy(), []
        for at, (label, face) in enumerate(zip(self.labels, self._pictures, strict=False)):
            height, width = face.shape[:2]
            x, y = 60 + 300 * at + (number * 4) % 120, 90 + 20 * at
            image[y : y + height, x : x + width] = face
            score = {"generated": 0.97, "groundtruth": 0.04}.get(label, 0.5)
            results.append(
                Result(
                    name,
                    frame=number,
                    face=(x, y, width, height),
                    label=label,
                    score=score,
                    reason="small" if label == "unsure" else None,
                    track=Track(at + 1, label, score),
                    heatmap=np.linspace(-30, 30, 100, dtype=np.float32).reshape(10, 10),
                )
            )
        frame = Frame(name, number, image, time.monotonic(), time.time())
        return FrameResult(frame, results, self.healths[name], inference=0.02)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()


class Viewer:
    """A browser that shows the page."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.errors: list[str] = []

    def visit(self, url: str, width: int = 1200, scheme: str = "light", height: int = 900) -> None:
        shape = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.browser.command("Emulation.setDeviceMetricsOverride", **shape)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.browser.command("Emulation.setEmulatedMedia", features=features)
        self.browser.command("Page.navigate", url=url)

    def see(self, script: str) -> Any:
        return self.browser.evaluate(f"return {script.strip()}")

    def wait(self, script: str, wanted: Callable[[Any], Any] = bool) -> Any:
        """Evaluate a script until its value satisfies a condition."""
        deadline = time.monotonic() + PATIENCE
        while not wanted(found := self.see(script)):
            assert time.monotonic() < deadline, (script, found)
            time.sleep(0.1)
        return found

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.browser.console()]

    def save(self, path: Path) -> None:
        shot = self.browser.command("Page.captureScreenshot", captureBeyondViewport=False)
        path.write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture
def viewer(browser: Browser) -> Viewer:
    return Viewer(browser)


def serve(port: int = 0, host: str = "127.0.0.1", token: str | None = None) -> DashboardServer:
    return DashboardServer(
        ListenAddress(host, port), card=CARD, model="colour (fp32), CPU", token=token
    )


# The first image as the browser shows it, scaled to 16 x 9 pixels, RGBA.
PIXELS = """
(() => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [16, 9];
  const context = canvas.getContext("2d");
  context.drawImage(document.querySelector(".view img"), 0, 0, 16, 9);
  return [...context.getImageData(0, 0, 16, 9).data];
})()
"""
OVERFLOWING = """
[...document.querySelectorAll("body *")].filter(e => !e.classList.contains("skip")
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(e => e.outerHTML.slice(0, 100))
"""
SHOWN = """
document.querySelector(".view img")
  && [...document.querySelectorAll(".view img")].every(i => i.naturalWidth > 0)
"""


def test_page_shows_images_faces_and_verdicts(viewer: Viewer, tmp_path: Path) -> None:
    with serve() as served, Run(served, ["front door", HOSTILE]) as run:
        viewer.visit(served.url)
        viewer.wait("document.querySelectorAll('.source').length", lambda n: n == 2)
        viewer.wait(SHOWN)
        first = viewer.see(PIXELS)
        viewer.wait(PIXELS, lambda now: np.abs(np.subtract(now, first)).max() > 20)
        texts = viewer.wait(
            "[...document.querySelectorAll('.faces li')].map(e => e.innerText)",
            lambda found: len(found) == 4,
        )
        assert re.search(r"▲ generated\s+0\.970\s+face 1, since", texts[0])
        assert re.search(r"● photograph\s+0\.040\s+face 2, since", texts[1])
        verdicts = "[...document.querySelectorAll('.verdicts li')].map(e => e.innerText)"
        assert len(viewer.wait(verdicts, lambda found: len(found) == 4)) == 4
        assert viewer.see("[...document.querySelectorAll('h2 bdi')][1].textContent") == (
            HOSTILE.replace("\n", "\\n")
        )
        assert viewer.see("document.querySelectorAll('main img[src=x]').length") == 0
        assert viewer.see("document.title") == "▲ 2 generated · ffd"

        run.labels = ["groundtruth", "unsure"]
        newest = viewer.wait(verdicts, lambda found: len(found) == 8)[0]
        assert "face 2" in newest
        assert "was photograph" in newest
        viewer.wait("document.querySelector('.faces').innerText", lambda t: "(small)" in t)
        viewer.wait(
            "[...document.querySelectorAll('.verdicts img')].every(i => i.naturalWidth > 0)"
        )
        viewer.save(tmp_path / "page.png")
        assert viewer.console() == []


RECORD_REQUESTS = """
(() => {
  const request = window.fetch;
  window.requested = [];
  window.fetch = (address, options) => {
    window.requested.push(address);
    return request(address, options);
  };
  return true;
})()
"""


def test_slow_sources_do_not_delay_others(viewer: Viewer) -> None:
    """A request for a source's next image waits, and the page may have only few of them."""
    slow = [f"slow {number}" for number in range(8)]
    with serve() as served, Run(served, ["fast", *slow], slow=slow):
        # Only visible sources request images.
        viewer.visit(served.url, height=6000)
        shown = "[...cards.values()].map(card => card.visible ? card.number : 0)"
        viewer.wait(shown, lambda numbers: len(numbers) == 9 and min(numbers) > 0)
        viewer.wait("[...cards.values()].slice(1).every(card => !card.wantsImage())")
        first = viewer.see(f"({RECORD_REQUESTS}, cards.get(0).number)")
        viewer.wait("cards.get(0).number", lambda number: number > first + 10)
        images = "requested.filter(address => address.startsWith('image/'))"
        assert {image.split("?")[0] for image in viewer.see(images)} == {"image/0.jpg"}


def test_failed_source_turns_red_and_recovers(viewer: Viewer) -> None:
    ground = "getComputedStyle(document.querySelector('.title')).backgroundColor"
    with serve() as served, Run(served, ["door", "gate"]) as run:
        viewer.visit(served.url)
        viewer.wait(SHOWN)
        before = viewer.see(ground)
        run.lose("door")
        viewer.wait("document.querySelectorAll('.down').length", lambda n: n == 1)
        red, green, blue = map(int, re.findall(r"\d+", viewer.see(ground))[:3])
        assert red > 150
        assert max(green, blue) < 80
        text = viewer.see("document.querySelector('.down').innerText")
        assert re.search(r"✕ no image since \d", text)
        assert "it does not answer; retry in 4 s" in text
        assert viewer.see("document.title") == "✕ 1 down · ffd"
        assert viewer.see("byId('summary').textContent") == (
            "1 of 2 sources without an image, 1 generated now"
        )
        said = "document.querySelector('.down').innerText"
        run.lose("door", next_try=None)
        viewer.wait(said, lambda text: "it does not answer; retrying now" in text)
        run.lose("door", state="failed", next_try=None, error="given up")
        viewer.wait(said, lambda text: "given up; no more retries" in text)
        run.find("door")
        viewer.wait("document.querySelectorAll('.down').length", lambda n: n == 0)
        assert viewer.see(ground) == before
        first = viewer.see(PIXELS)
        viewer.wait(PIXELS, lambda now: np.abs(np.subtract(now, first)).max() > 20)
        assert viewer.console() == []


def test_page_reconnects_to_a_restarted_server(viewer: Viewer) -> None:
    with serve() as served, Run(served, ["door"]):
        viewer.visit(served.url)
        viewer.wait(SHOWN)
        viewer.wait("document.querySelectorAll('.verdicts li').length", lambda n: n == 2)
        assert viewer.see("byId('banner').hidden")
        assert viewer.console() == []
    viewer.wait("byId('banner').innerText", lambda text: "Connection lost" in text)
    assert viewer.see("document.title") == "✕ no connection · ffd"
    with serve(served.address.port) as again, Run(again, ["door", "gate"]) as run:
        run.labels = ["groundtruth"]
        viewer.wait("document.querySelectorAll('.source').length", lambda n: n == 2)
        viewer.wait("byId('banner').hidden")
        viewer.wait("document.querySelectorAll('.verdicts li').length", lambda n: n == 2)
        first = viewer.see(PIXELS)
        viewer.wait(PIXELS, lambda now: np.abs(np.subtract(now, first)).max() > 20)
    # Only the browser reports that the server did not respond.
    assert all("ERR_" in message for message in viewer.console())


def test_page_of_a_blocked_run_is_stale(viewer: Viewer) -> None:
    stale = "document.body.classList.contains('stale')"
    with serve() as served, Run(served, ["door", "gate"]) as run:
        run.lose("gate", state="failed", next_try=None)
        viewer.visit(served.url)
        viewer.wait(SHOWN.replace(".view img", ".source:not(.down) img"))
        assert not viewer.see(stale)
        run.blocked.set()
        viewer.wait(stale)
        assert "ffd has not responded for" in viewer.see("byId('banner').innerText")
        assert viewer.see("document.title") == "✕ not responding · ffd"
        run.blocked.clear()
        viewer.wait(f"!{stale}")
        assert viewer.see("byId('banner').hidden")
        assert viewer.console() == []


def test_hidden_page_requests_no_images_but_updates_its_title(viewer: Viewer) -> None:
    hidden = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true})"
    with serve() as served, Run(served, ["door"]) as run:
        viewer.visit(served.url)
        viewer.wait(SHOWN)
        viewer.browser.evaluate(hidden % "true")
        time.sleep(0.5)
        drawn = served._snapshots.drawn
        run.lose("door")
        viewer.wait("document.title", lambda title: "down" in title)
        assert served._snapshots.drawn == drawn
        run.find("door")
        viewer.browser.evaluate(hidden % "false")
        first = viewer.see(PIXELS)
        viewer.wait(PIXELS, lambda now: np.abs(np.subtract(now, first)).max() > 20)


def test_token_form_opens_the_page_and_hides_the_token(viewer: Viewer) -> None:
    token = "a-token-that-is-long-enough"
    with serve(host="0.0.0.0", token=token) as served, Run(served, ["door"]):
        address = f"http://127.0.0.1:{served.address.port}/"
        viewer.visit(address)
        viewer.wait("document.querySelector('h1')?.textContent", lambda t: "Token required" in t)
        assert [message for message in viewer.console() if "401" not in message] == []
        viewer.browser.evaluate(
            f"document.querySelector('[type=password]').value = '{token}';"
            "document.querySelector('button').click()"
        )
        viewer.wait("document.querySelectorAll('.view img').length", lambda n: n == 1)
        viewer.wait(SHOWN)
        assert viewer.see("location.href") == address
        assert viewer.see("document.cookie") == ""
        assert viewer.console() == []


def test_page_works_with_the_keyboard(viewer: Viewer) -> None:
    with serve() as served, Run(served, ["door"]) as run:
        viewer.visit(served.url)
        viewer.wait(SHOWN)
        viewer.browser.press("Tab", 9)
        assert viewer.see("document.activeElement.className") == "skip"
        viewer.browser.press("Tab", 9)
        assert viewer.see("document.activeElement.id") == "heatmap"
        plain = viewer.see(PIXELS)
        viewer.browser.press(" ", 32, " ")
        assert viewer.see("document.activeElement.checked")
        assert not viewer.see("byId('scale').hidden")
        # The middle of the heatmap is red.
        reds = max(plain[0::4])
        viewer.wait(PIXELS, lambda now: max(now[0::4]) > reds + 15)
        run.labels = []
        viewer.wait("document.querySelector('.faces').innerText", lambda t: "No face" in t)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_every_screen(viewer: Viewer, tmp_path: Path, scheme: str) -> None:
    with serve() as served, Run(served, ["door", HOSTILE, "gate"]) as run:
        run.lose("gate", error="the camera at rtsp://" + "x" * 200 + " does not answer")
        viewer.visit(served.url, 1200, scheme)
        viewer.wait("document.querySelectorAll('.verdicts li').length", lambda n: n == 4)
        for width in (320, 390, 768, 1200, 1920):
            shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
            viewer.browser.command("Emulation.setDeviceMetricsOverride", **shape)
            assert viewer.see(OVERFLOWING) == []
            assert viewer.see("document.documentElement.scrollWidth <= innerWidth")
            if width in (390, 1200):
                viewer.save(tmp_path / f"{width}-{scheme}.png")
        ground = viewer.see("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
        assert viewer.console() == []

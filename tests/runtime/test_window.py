"""Show the window on a real X server, Xvfb, whose screen is a file."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from ffd_runtime.core.errors import OutputError
from ffd_runtime.video.window import Window, require_screen, save_image

Array = npt.NDArray[np.uint8]
GREEN, BLUE, RED = (60, 180, 60), (200, 90, 40), (40, 35, 200)

# Shows frames until the user quits; sources other than `a` fail and only have ticks.
_SHOWS = """
import sys, time
import numpy as np
from ffd_runtime.core.results import Result
from ffd_runtime.video.window import Window
from ffd_runtime.video.frame_result import Frame, StreamHealth, Quit, FrameResult
sources = sys.argv[1:]
heatmap = np.full((10, 10), 20, np.float32)
image = np.full((240, 320, 3), (60, 180, 60), np.uint8)
results = [Result("a", 0, (120, 60, 80, 90), "generated", 0.98, heatmap=heatmap)]
health = StreamHealth("a", True, "playing", size=(320, 240))
silent = [StreamHealth(name, True, "waiting", "it is dark") for name in sources if name != "a"]
try:
    with Window(sources, face_scale=1.3) as window:
        print("open", flush=True)
        for number in range(20_000):
            if "a" in sources:
                frame = Frame("a", number, image, time.monotonic(), time.time())
                window.show(FrameResult(frame, results, health))
            if number % 10 == 0:
                window.tick([health, *silent])
            time.sleep(0.01)
except Quit:
    print("quit", flush=True)
"""


class Screen:
    """An X server with one screen of 1280x720 pixels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        begin, end = os.pipe()
        # Otherwise the server resets when its last client disconnects.
        options = ["-noreset", "-screen", "0", "1280x720x24", "-fbdir", str(folder)]
        self._server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(end), *options],
            pass_fds=[end],
            stderr=subprocess.DEVNULL,
        )
        os.close(end)
        with os.fdopen(begin) as file:
            self.display = f":{file.readline().strip()}"

    def close(self) -> None:
        self._server.terminate()
        self._server.wait(10)

    def look(self) -> Array:
        """Return the screen, uint8 [720, 1280, 3]; the file is in xwd format."""
        data = (self.folder / "Xvfb_screen0").read_bytes()
        header = np.frombuffer(data[:100], ">u4")
        start = int(header[0]) + 12 * int(header[19])
        rows = np.frombuffer(data, np.uint8, 720 * int(header[12]), start)
        return rows.reshape(720, -1, 4)[:, :1280, :3]

    def count(self, colour: tuple[int, int, int], right: int = 1280) -> int:
        """Count the pixels of a colour left of a column."""
        return int((np.abs(self.look()[:, :right].astype(int) - colour) < 4).all(axis=2).sum())

    def press(self, *keys: str) -> None:
        subprocess.run(["xdotool", "key", *keys], env=self.environment(), check=True)

    def window(self) -> int:
        words = ["xdotool", "search", "--onlyvisible", "--name", "^ffd$"]
        found = subprocess.run(words, env=self.environment(), check=True, capture_output=True)
        return int(found.stdout.split()[-1])

    def environment(self) -> dict[str, str]:
        return {**os.environ, "DISPLAY": self.display}

    def close_window(self) -> None:
        """Send the message of a window manager when the user closes a window."""
        x11 = ctypes.CDLL("libX11.so.6")
        x11.XOpenDisplay.restype = ctypes.c_void_p
        x11.XInternAtom.restype = ctypes.c_ulong
        display = ctypes.c_void_p(x11.XOpenDisplay(self.display.encode()))
        event = _ClientMessage(type=33, display=display, window=self.window(), format=32)
        event.message = x11.XInternAtom(display, b"WM_PROTOCOLS", 0)
        event.data[0] = x11.XInternAtom(display, b"WM_DELETE_WINDOW", 0)
        window = ctypes.c_ulong(event.window)
        assert x11.XSendEvent(display, window, 0, ctypes.c_long(0), ctypes.byref(event))
        x11.XCloseDisplay(display)


class _ClientMessage(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("message", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5),
        ("rest_of_xevent", ctypes.c_long * 12),
    )


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    for program in ("Xvfb", "xdotool"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (Debian: {program.lower()})")
    if not cv2.currentUIFramework():
        pytest.skip("this OpenCV has no windows")
    screen = Screen(tmp_path_factory.mktemp("screen"))
    yield screen
    screen.close()


@pytest.fixture
def shows(screen: Screen, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program with a window; it is killed after the test."""
    begun = []

    def begin(*sources: str) -> subprocess.Popen[str]:
        for _ in range(4):
            wait_until(lambda: not screen.look().any())
            child = start(*sources)
            end = time.monotonic() + 4
            while time.monotonic() < end:
                if screen.look().any():
                    return child
                time.sleep(0.02)
            # Without a window manager, Qt may wait for ever for the event that its window is
            # visible: one time in ten on a busy machine, even in three lines of plain OpenCV.
            child.kill()
        pytest.fail("the window stays empty")

    def start(*sources: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", _SHOWS, *sources],
            env=screen.environment(),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(child)
        assert child.stdout
        assert child.stdout.readline() == "open\n"
        return child

    yield begin
    for child in begun:
        child.kill()
        child.communicate(timeout=20)


def settled(screen: Screen) -> int:
    """Count green pixels once the window no longer changes."""
    count = -1
    while count != (count := screen.count(GREEN)):
        time.sleep(0.5)
    return count


def press_until(screen: Screen, key: str, holds: Callable[[], bool]) -> None:
    """Press a key, repeatedly: without a window manager that sets the focus, it may be lost."""
    for _ in range(4):
        screen.press(key)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if holds():
                return
            time.sleep(0.05)
    pytest.fail(f"{key} did nothing")


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


@pytest.mark.alone
def test_window_shows_the_stream_and_handles_keys(
    screen: Screen, shows: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    child = shows("a")
    # The window has the size of the picture, 320x240.
    wait_until(lambda: 40_000 < screen.count(GREEN) < 320 * 240)
    before = settled(screen)
    window = ["xdotool", "windowfocus", "--sync", str(screen.window())]
    subprocess.run(window, env=screen.environment(), check=True)
    # The classified square is 117 pixels wide.
    press_until(screen, "h", lambda: screen.count(GREEN) < before - 3000)
    evidence = settled(screen)
    press_until(screen, "h", lambda: screen.count(GREEN) > before - 1000)
    press_until(screen, "question", lambda: screen.count(GREEN) < before - 3000)
    assert settled(screen) != evidence
    saves = tmp_path.glob
    press_until(screen, "s", lambda: any(path.stat().st_size for path in saves("ffd-*.png")))
    time.sleep(0.1)
    saved = cv2.imread(str(next(tmp_path.glob("ffd-*.png"))))
    assert saved is not None
    assert (saved == screen.look()[:240, :320]).all()
    screen.press("q")
    assert child.wait(15) == 0
    assert child.stdout
    assert child.stdout.read() == "quit\n"
    assert child.stderr
    assert child.stderr.read().startswith("saved ffd-")
    wait_until(lambda: screen.count(GREEN) == 0)


@pytest.mark.alone
def test_closing_the_window_ends_the_run(
    screen: Screen, shows: Callable[..., subprocess.Popen[str]]
) -> None:
    child = shows("a")
    wait_until(lambda: screen.count(GREEN) > 1000)
    screen.close_window()
    assert child.wait(15) == 0
    assert child.stdout
    assert child.stdout.read() == "quit\n"
    assert child.stderr
    assert child.stderr.read() == ""


@pytest.mark.alone
def test_failed_source_is_shown_beside_a_playing_one(
    screen: Screen, shows: Callable[..., subprocess.Popen[str]]
) -> None:
    shows("dark", "a")
    wait_until(lambda: screen.count(RED, right=640) > 100 and screen.count(GREEN) > 40_000)
    assert not screen.count(GREEN, right=640)


@pytest.mark.alone
def test_window_opens_before_the_first_frame(
    screen: Screen, shows: Callable[..., subprocess.Popen[str]]
) -> None:
    shows("dark")
    wait_until(lambda: screen.count(RED) > 100)


def refused(monkeypatch: pytest.MonkeyPatch, display: str | None) -> str:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    with pytest.raises(OutputError) as caught, Window(["a"], face_scale=1.3):
        pass
    said = str(caught.value)
    assert "\n" not in said
    assert "--serve" in said
    return said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no DISPLAY")
@pytest.mark.skipif(not cv2.currentUIFramework(), reason="this OpenCV has no windows")
def test_missing_screen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "DISPLAY is not set" in refused(monkeypatch, None)
    assert ":987" in refused(monkeypatch, ":987")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no DISPLAY")
@pytest.mark.skipif(not cv2.currentUIFramework(), reason="this OpenCV has no windows")
def test_screen_that_does_not_respond_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffd_runtime.video.window._PROBE_TIMEOUT_SECONDS", 1.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        number = server.getsockname()[1] - 6000
        assert "does not respond" in refused(monkeypatch, f"127.0.0.1:{number}")


def test_opencv_without_windows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "")
    with pytest.raises(OutputError, match="opencv-python-headless"):
        require_screen()


def test_saved_picture_does_not_overwrite_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    image = np.full((20, 30, 3), BLUE, np.uint8)
    when = datetime(2026, 3, 1, 14, 3, 22)
    names = [save_image(image, when) for _ in range(2)]
    assert [str(name) for name in names] == ["ffd-20260301-140322.png", "ffd-20260301-140322-2.png"]
    for name in names:
        saved = cv2.imread(str(name))
        assert saved is not None
        assert (saved == image).all()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert save_image(image, when) is None
    assert "cannot be saved" in caplog.text

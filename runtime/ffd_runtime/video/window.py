"""Show streams in a window on this machine's screen."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from ..core.errors import OutputError
from ..core.text import printable
from ..image.decode import Image
from ..image.draw import enlargement
from ..outputs.html_page import encode_image
from .draw_frame import draw_frame, draw_keys, draw_no_signal, fit_size, shrink_to_fit
from .frame_result import FrameResult, Quit, StreamHealth
from .video_file import create_numbered

log = logging.getLogger(__name__)

WINDOW_NAME = "ffd"
KEYS = {"q, Esc": "quit", "h": "heatmap", "s": "save this image", "?, F1": "show these keys"}

# Larger windows enlarge an image of this size.
MAX_SIZE_PX = (1920, 1080)
# Maximum size of the window when it opens, and its size before the first frame.
MAX_INITIAL_SIZE_PX = (1280, 720)
PLACEHOLDER_SIZE_PX = (640, 480)
# Each image costs about 3 ms of the frame loop, most of it in Qt.
MAX_FPS = 30.0
HELP_SECONDS = 4.0

_QUIT_KEYS = (ord("q"), ord("Q"), 27)
# F1 on X11 and on Windows.
_HELP_KEYS = (ord("?"), 0xFFBE, 0x700000)

# OpenCV 4 with Qt reports the size of the image if the window is larger.
_REPORTS_WINDOW_SIZE = int(cv2.__version__.partition(".")[0]) >= 5

_FLAGS = cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL
_ADVICE = "omit --show, and use --serve or --record instead"
# Limit for the test process; most of it is the import of OpenCV.
_PROBE_TIMEOUT_SECONDS = 20.0


class Window:
    """A frame sink that shows all sources as tiles in one window.

    Keys: see `KEYS`. Closing the window also ends the run.

    Args:
        sources: names of all sources, in the order of their tiles.
        face_scale: the card's `preprocess.face_scale`.

    Example:
        >>> with Window(["0"], face_scale=1.3) as window:  # doctest: +SKIP
        ...     window.show(frame_result)
    """

    def __init__(self, sources: Sequence[str], *, face_scale: float, heatmap: bool = False) -> None:
        self._sources = list(sources)
        self._face_scale = face_scale
        self._heatmap = heatmap
        self._frame_results: dict[str, FrameResult] = {}
        self._health: dict[str, StreamHealth] = {}
        self._tiles: dict[str, Image] = {}
        self._shown: Image | None = None
        self._fitted = False
        self._tile_size = PLACEHOLDER_SIZE_PX
        self._refreshed = -math.inf
        self._help_until = -math.inf

    def show(self, frame_result: FrameResult) -> None:
        """Show a frame in place of the previous one of its source.

        Raises:
            Quit: the user pressed a key or closed the window.
        """
        source = frame_result.frame.source
        self._frame_results[source], self._health[source] = frame_result, frame_result.health
        self._tiles.pop(source, None)
        self._refresh()

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Show the state of sources that do not play; raises as `show` does."""
        for health in sources:
            if health.state != "playing":
                self._health[health.source] = health
                self._tiles.pop(health.source, None)
        self._refresh()

    def __enter__(self) -> Self:
        """Open the window.

        Raises:
            OutputError: there is no screen, or this OpenCV does not support windows.
        """
        # The Qt of the wheels warns that it has no fonts; none are needed.
        os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")
        require_screen()
        try:
            cv2.namedWindow(WINDOW_NAME, _FLAGS)
            cv2.resizeWindow(WINDOW_NAME, *PLACEHOLDER_SIZE_PX)
        except cv2.error as error:
            raise OutputError(f"cannot open a window ({error.err}): {_ADVICE}") from None
        return self

    def __exit__(self, *_: object) -> None:
        # The user may have closed it.
        with suppress(cv2.error):
            cv2.destroyWindow(WINDOW_NAME)
            cv2.pollKey()

    def _refresh(self) -> None:
        """Update the image and handle keys, at most `MAX_FPS` times per second."""
        now = time.monotonic()
        if now - self._refreshed < 1 / MAX_FPS:
            return
        # Checked first: `imshow` would reopen a window that the user has closed.
        if not _is_open():
            raise Quit
        self._shown = self._compose()
        if now < self._help_until:
            draw_keys(self._shown, KEYS)
        cv2.imshow(WINDOW_NAME, self._shown)
        while (key := cv2.pollKey()) != -1:
            self._press(key)
        self._refreshed = time.monotonic()

    def _press(self, key: int) -> None:
        if key in _QUIT_KEYS:
            raise Quit
        if key in (ord("h"), ord("H")):
            self._heatmap = not self._heatmap
            self._tiles.clear()
        elif key in (ord("s"), ord("S")) and self._shown is not None:
            save_image(self._shown, datetime.now())
        elif key in _HELP_KEYS:
            self._help_until = time.monotonic() + HELP_SECONDS

    def _compose(self) -> Image:
        """Draw all sources in a new image, in the size of the window if that is known."""
        columns = math.ceil(math.sqrt(len(self._sources)))
        rows = math.ceil(len(self._sources) / columns)
        shape = self._single_source_size() if columns == 1 else (16 * columns, 9 * rows)
        width, height = fit_size(shape, MAX_INITIAL_SIZE_PX, enlarge=columns > 1)
        if self._frame_results and not self._fitted:
            self._fitted = True
            cv2.resizeWindow(WINDOW_NAME, width, height)
        if _REPORTS_WINDOW_SIZE:
            *_, width, height = cv2.getWindowImageRect(WINDOW_NAME)
            limit = (width, height) if width > 0 < height else PLACEHOLDER_SIZE_PX
            width, height = fit_size(shape, fit_size(limit, MAX_SIZE_PX), enlarge=True)
        room = (max(1, width // columns), max(1, height // rows))
        if room != self._tile_size:
            self._tile_size = room
            self._tiles.clear()
        whole = np.zeros((height, width, 3), np.uint8)
        for number, source in enumerate(self._sources):
            tile = self._draw(source)
            row, column = divmod(number, columns)
            top = row * room[1] + (room[1] - tile.shape[0]) // 2
            left = column * room[0] + (room[0] - tile.shape[1]) // 2
            whole[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        return whole

    def _single_source_size(self) -> tuple[int, int]:
        """Return width and height of the only source's frame as it is drawn."""
        frame_result = self._frame_results.get(self._sources[0])
        if not frame_result:
            return PLACEHOLDER_SIZE_PX
        factor = enlargement(frame_result.frame.image)
        height, width = frame_result.frame.image.shape[:2]
        return factor * width, factor * height

    def _draw(self, source: str) -> Image:
        """Draw a source in the size of its tile: its frame, or the reason why it has no frame."""
        if source not in self._tiles:
            health = self._health.get(source) or StreamHealth(source, True, "connecting")
            frame_result = self._frame_results.get(source)
            if frame_result and health.state in ("playing", "ended"):
                # Shrunk before drawing: text would become illegible.
                frame_result = shrink_to_fit(frame_result, *self._tile_size)
                tile = draw_frame(frame_result, heatmap=self._heatmap, face_scale=self._face_scale)
                size = fit_size((tile.shape[1], tile.shape[0]), self._tile_size, enlarge=True)
                self._tiles[source] = np.asarray(cv2.resize(tile, size), np.uint8)
            else:
                self._tiles[source] = draw_no_signal(self._tile_size, health)
        return self._tiles[source]


def require_screen() -> None:
    """Check that a window can be opened: without a screen, Qt would abort the process.

    Raises:
        OutputError: there is no screen, it does not respond, or this OpenCV does not support
            windows.
    """
    if not cv2.currentUIFramework():
        raise OutputError(
            "this OpenCV does not support windows: replace opencv-python-headless by "
            f"opencv-python, or {_ADVICE}"
        )
    if not sys.platform.startswith("linux"):
        return
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not display:
        raise OutputError(f"there is no screen (DISPLAY is not set): {_ADVICE}")
    reason = _try_window()
    if reason:
        raise OutputError(f"cannot open a window on {printable(display)} ({reason}): {_ADVICE}")


def _try_window() -> str | None:
    """Open a window in another process; return the reason if it fails."""
    code = f"import cv2; cv2.namedWindow({WINDOW_NAME!r}, {_FLAGS})"
    try:
        test = subprocess.run(  # noqa: S603 (this Python, with the program above)
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it does not respond"
    if test.returncode == 0:
        return None
    lines = test.stderr.decode(errors="replace").strip().splitlines()
    return printable(lines[0]) if lines else f"exit code {test.returncode}"


def save_image(image: Image, when: datetime) -> Path | None:
    """Write uint8 [height, width, 3], BGR, to the current folder as ffd-DATE.png.

    Returns:
        The path, with a number if the name exists; None if it cannot be written.
    """
    data = encode_image(".png", image)
    path = Path(f"ffd-{when:%Y%m%d-%H%M%S}.png")
    try:
        path, _ = create_numbered(path)
        path.write_bytes(data)
    except OSError as error:
        # An image that cannot be saved must not end the run.
        log.warning("the image cannot be saved to %s: %s", error.filename or path, error.strerror)
        return None
    log.warning("saved %s", path)
    return path


def _is_open() -> bool:
    try:
        return cv2.getWindowProperty(WINDOW_NAME, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:
        return False

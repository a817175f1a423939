"""Render JPEGs on request, once for all viewers."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2

from ..outputs.html_page import encode_image
from ..video.draw_frame import draw_frame, draw_no_signal, fit_size, shrink_to_fit
from .dashboard_state import DashboardSource, DashboardState

# Longer side, and frame rate per source. At these limits, rendering and serving 1920x1080 took a
# tenth of a workstation's core.
MAX_SIDE_PX = 960
MAX_FPS = 15.0
JPEG_OPTIONS = (cv2.IMWRITE_JPEG_QUALITY, 80)
# Maximum wait of a request for an image newer than the one the viewer has.
LONG_POLL_SECONDS = 2.0

_PLACEHOLDER_SIZE_PX = (640, 360)


class Snapshot(NamedTuple):
    """A JPEG and its `DashboardSource.number`."""

    number: int
    jpeg: bytes


@dataclass
class _SnapshotCache:
    """The newest JPEG of one source, with or without heatmap; shared by all viewers."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    snapshot: Snapshot | None = None
    drawn: float = 0.0


class SnapshotRenderer:
    """Render the newest images in the server's event loop.

    `changed` and `stop` may be called from other threads.

    Attributes:
        drawn: number of images rendered.
        waiting: number of requests that wait for an image.
    """

    def __init__(self, state: DashboardState, face_scale: float) -> None:
        self.drawn = 0
        self.waiting = 0
        self._state = state
        self._face_scale = face_scale
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cache: defaultdict[tuple[int, bool], _SnapshotCache] = defaultdict(_SnapshotCache)
        self._events: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._stopped = False

    def __enter__(self) -> SnapshotRenderer:
        self._loop = asyncio.get_running_loop()
        # A single thread: many viewers get fewer images, and the run keeps its processor time.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ffd-serve-draw")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop = None
        self._executor.shutdown()

    def changed(self, index: int) -> None:
        """Wake the requests that wait for a new image of a source."""
        if self.waiting:
            self._wake_soon(index)

    def stop(self) -> None:
        """Answer all waiting requests."""
        self._stopped = True
        self._wake_soon(None)

    def _wake_soon(self, index: int | None) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(self._wake, index)

    def _wake(self, index: int | None) -> None:
        for waiting in list(self._events) if index is None else [index]:
            self._events.pop(waiting, asyncio.Event()).set()

    async def newest(self, index: int, heatmap: bool, after: int | None) -> Snapshot | None:
        """Return a source's newest image; None if it is still number `after` at the timeout."""
        self.waiting += 1
        try:
            async with asyncio.timeout(LONG_POLL_SECONDS):
                while (view := self._state.view(index)) and view.number == after:
                    if self._stopped:
                        return None
                    await self._events[index].wait()
            return await self._draw(index, heatmap, after)
        except TimeoutError:
            return None
        finally:
            self.waiting -= 1

    async def _draw(self, index: int, heatmap: bool, after: int | None) -> Snapshot | None:
        cache = self._cache[index, heatmap]
        async with cache.lock:
            pause = cache.drawn + 1 / MAX_FPS - time.monotonic()
            if cache.snapshot and cache.snapshot.number != after and pause > 0:
                return cache.snapshot
            await asyncio.sleep(max(pause, 0))
            view = self._state.view(index)
            if view is None or self._stopped:
                return None
            if cache.snapshot is None or cache.snapshot.number != view.number:
                loop = asyncio.get_running_loop()
                jpeg = await loop.run_in_executor(self._executor, self._encode, view, heatmap)
                cache.snapshot = Snapshot(view.number, jpeg)
                cache.drawn = time.monotonic()
                self.drawn += 1
            return cache.snapshot

    def _encode(self, view: DashboardSource, heatmap: bool) -> bytes:
        if view.frame_result is None:
            size = view.health.size or _PLACEHOLDER_SIZE_PX
            image = draw_no_signal(fit_size(size, (MAX_SIDE_PX, MAX_SIDE_PX)), view.health)
        else:
            frame_result = shrink_to_fit(view.frame_result, MAX_SIDE_PX, MAX_SIDE_PX)
            image = draw_frame(frame_result, heatmap=heatmap, face_scale=self._face_scale)
        return encode_image(".jpg", image, JPEG_OPTIONS)

"""Settings of the whole process that several threads need at the same time."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

import cv2


class ProcessSetting:
    """Change a setting while any thread needs the change. Use as a context manager.

    The first thread that enters changes the setting, and the last one that leaves restores it.

    Args:
        change: changes the setting and returns a function that restores it.
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change = change
        self._lock = Lock()
        self._users = 0
        self._restore: Callable[[], object] = change

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._restore = self._change()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._restore()


def _use_one_thread() -> Callable[[], object]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    return lambda: cv2.setNumThreads(before)


# OpenCV's calls run on their own thread: worker threads use all cores already, and a forked process
# would wait for threads of OpenCV that it does not have.
ONE_OPENCV_THREAD = ProcessSetting(_use_one_thread)

"""The number of threads that one call of OpenCV may use: a setting of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import cv2

_lock = Lock()
# Of all threads inside the context at the moment.
_limits: list[int] = []
_usual = 0


@contextmanager
def limit_opencv_threads(count: int) -> Iterator[None]:
    """Limit the threads of each call while any thread is inside; the lowest limit applies.

    The last thread that leaves restores the usual number.
    """
    global _usual
    with _lock:
        if not _limits:
            _usual = cv2.getNumThreads()
        _limits.append(count)
        cv2.setNumThreads(min(_usual, *_limits))
    try:
        yield
    finally:
        with _lock:
            _limits.remove(count)
            cv2.setNumThreads(min([_usual, *_limits]))

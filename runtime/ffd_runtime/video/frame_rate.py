"""Estimate a video file's frame rate from the timestamps of its first frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DEFAULT_FPS = 25.0
# The range that MPEG-4 part 2 can encode.
MIN_FPS, MAX_FPS = 0.05, 240.0
# A smaller time between frames means that the file has no timestamps.
MIN_FRAME_SECONDS = 1e-5
# Relative difference below which the estimate is rounded to a standard rate. Over 20 frames with
# timestamps in milliseconds, as in Matroska, a least-squares slope is within 0.03 %.
STANDARD_RATE_TOLERANCE = 4e-4


def estimate_frame_rate(times: Sequence[float]) -> float:
    """Estimate frames per second.

    Args:
        times: timestamps of consecutive frames in seconds, ascending.

    Returns:
        The nearest standard rate (N or N / 1.001) if the estimate is close to one, otherwise the
        estimate; `DEFAULT_FPS` if there are fewer than two frames or no timestamps.
    """
    if len(times) < 2:
        return DEFAULT_FPS
    step = float(np.polynomial.polynomial.polyfit(np.arange(len(times)), times, 1)[1])
    if step < MIN_FRAME_SECONDS:
        return DEFAULT_FPS
    rate = min(max(1 / step, MIN_FPS), MAX_FPS)
    for standard in (round(rate), round(rate * 1.001) / 1.001):
        if abs(rate - standard) < STANDARD_RATE_TOLERANCE * rate:
            return float(standard)
    return rate

"""Log-odds of a probability."""

from __future__ import annotations

import math


def log_odds(probability: float, margin: float = 0.0) -> float:
    """Return ln(p / (1 - p)).

    Args:
        probability: 0 to 1.
        margin: clip the probability to [margin, 1 - margin]; with 0, the ends are infinite.

    Example:
        >>> log_odds(0.5), log_odds(1), round(log_odds(0, margin=5e-7), 1)
        (0.0, inf, -14.5)
    """
    clipped = min(max(probability, margin), 1 - margin)
    if clipped <= 0:
        return -math.inf
    return math.inf if clipped >= 1 else math.log(clipped) - math.log1p(-clipped)

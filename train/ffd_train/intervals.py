"""How far a figure measured on some images may be from the one on all such images."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ffd_runtime.card import ModelCard

from .metrics import Floats, confidence_gaps, log_losses

Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

CONFIDENCE = 0.95
# Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals want about
# a thousand.
RESAMPLES = 1000
SEED = 0
# Counts of one chunk of resamples, so that memory does not grow with the images.
_MOST_COUNTS = 1 << 21


def wilson(successes: int, trials: int) -> Interval:
    """The interval of a proportion (Wilson, 1927): honest for few trials, and at 0 and 1.

    Args:
        successes: how many of the trials.
        trials: at least 1.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = successes / trials
    middle = share + z * z / (2 * trials)
    reach = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (middle - reach) / scale
    high = 1.0 if successes == trials else (middle + reach) / scale
    return low, high


def percentile(values: Floats) -> Interval:
    """The interval that holds `CONFIDENCE` of resampled values."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def resample(scores: Floats, generated: Bools, card: ModelCard) -> dict[str, Floats]:
    """Metrics of bootstrap resamples, each class drawn from itself.

    The draws depend on `generated` alone: those of two models, or of two perturbations, on the same
    images are paired.

    Args:
        scores: [N], P(generated).
        generated: [N], the truth; both classes.
        card: its threshold decides.

    Returns:
        `RESAMPLES` values each of `accuracy`, `roc_auc`, `average_precision`, `eer`,
        `tpr_at_1_fpr`, `ece`, `nll` and `brier`; what they mean, see `Report` and `Reliability`.
    """
    parts = [_measure(scores, generated, card, counts) for counts in _draw(generated)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def estimate(scores: Floats, generated: Bools, card: ModelCard) -> dict[str, float]:
    """The metrics of `resample` on the images as they are."""
    whole = _measure(scores, generated, card, np.ones((1, len(scores))))
    return {name: float(values[0]) for name, values in whole.items()}


def _draw(generated: Bools) -> Iterator[Floats]:
    """How often each image was drawn: chunks of [resamples, N]."""
    rng = np.random.default_rng(SEED)
    size = len(generated)
    most = max(1, _MOST_COUNTS // size)
    for start in range(0, RESAMPLES, most):
        rows = min(most, RESAMPLES - start)
        counts = np.empty((rows, size))
        for kind in (generated, ~generated):
            count = int(kind.sum())
            drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            counts[:, kind] = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, -1)
        yield counts


def _measure(
    scores: Floats, generated: Bools, card: ModelCard, counts: Floats
) -> dict[str, Floats]:
    size = len(scores)
    right = (scores >= card.threshold) == generated
    bins, gap = confidence_gaps(scores, generated)
    in_bin = gap[:, None] * (bins[:, None] == np.unique(bins))
    return {
        "accuracy": counts @ right / size,
        **_measure_ranking(scores, generated, counts),
        "ece": np.abs(counts @ in_bin).sum(1) / size,
        "nll": counts @ log_losses(scores, generated) / size,
        "brier": counts @ (scores - generated) ** 2 / size,
    }


def _measure_ranking(scores: Floats, generated: Bools, counts: Floats) -> dict[str, Floats]:
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], generated[order]
    # Equal scores are found together: only the last of each group is a point of the curve.
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    drawn = counts[:, order]
    zero = np.zeros((len(counts), 1))
    found = np.hstack([zero, np.cumsum(drawn * truth, 1)[:, last]])
    alarms = np.hstack([zero, np.cumsum(drawn * ~truth, 1)[:, last]])
    precision = found[:, 1:] / np.maximum(found[:, 1:] + alarms[:, 1:], 1)
    found /= truth.sum()
    alarms /= (~truth).sum()
    steps = np.diff(alarms, axis=1)
    return {
        "roc_auc": (steps * (found[:, 1:] + found[:, :-1]) / 2).sum(1),
        "average_precision": (np.diff(found, axis=1) * precision).sum(1),
        "eer": _equal_error_rates(alarms, found),
        "tpr_at_1_fpr": np.where(alarms <= 0.01, found, 0).max(1),
    }


def _equal_error_rates(alarms: Floats, found: Floats) -> Floats:
    """As `metrics.equal_error_rate`, a row a curve."""
    gap = alarms - (1 - found)
    after = np.argmax(gap >= 0, axis=1)[:, None]

    def at(values: Floats, place: npt.NDArray[np.int64]) -> Floats:
        return np.take_along_axis(values, place, 1)[:, 0]

    # The curve begins with a gap of -1, so there is always one before.
    before = after - 1
    weight = -at(gap, before) / (at(gap, after) - at(gap, before))
    rates: Floats = at(alarms, before) + weight * (at(alarms, after) - at(alarms, before))
    return rates

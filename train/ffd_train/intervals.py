"""Confidence intervals of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from scipy.stats import beta, binomtest, norm

from .classification_metrics import Floats, confidence_gaps, equal_error_rates, log_losses

Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

CONFIDENCE = 0.95
# Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: about a thousand resamples for
# percentile intervals, and two hundred for a standard deviation.
MAX_RESAMPLES = 1000
MIN_RESAMPLES = 200
SEED = 0
# Draws of all resamples together, about ten seconds of one core.
_MAX_DRAWS = 1 << 27
# Counts in one chunk of resamples; limits the memory.
_MAX_COUNTS = 1 << 21


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's interval of a proportion (1927), valid for few trials and at 0 and 1."""
    found = binomtest(successes, trials).proportion_ci(CONFIDENCE, "wilson")
    return float(found.low), float(found.high)


def clopper_pearson(share: float, trials: int) -> Interval:
    """Return the exact interval of a proportion (Clopper and Pearson, 1934).

    Args:
        share: share of successes; may be a fractional number of trials (Korn and Graubard, 1998).
        trials: number of trials, at least 1.
    """
    tail, successes = (1 - CONFIDENCE) / 2, share * trials
    low = beta.ppf(tail, successes, trials - successes + 1) if share > 0 else 0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if share < 1 else 1
    return float(low), float(high)


def auc_interval(found: Floats, spared: Floats) -> Interval:
    """Return the interval of an area under the ROC curve.

    It uses DeLong's variance on the logit scale (Pepe, "The Statistical Evaluation of Medical Tests
    for Classification and Prediction", 2003). This variance is 0 for perfect separation, and too
    small near it. The classes form k disjoint and therefore independent pairs, where k is the size
    of the smaller class. With an area A, all of them are ranked correctly with a probability of at
    most A^k. For perfect separation, A^k = (1 - `CONFIDENCE`) / 2 is the exact bound. The interval
    always includes this bound.

    Args:
        found: placement of each generated image, from `find_placements`.
        spared: placement of each photograph.
    """
    positives, negatives = len(found), len(spared)
    area = float(found.sum()) / (positives * negatives)
    pairs = min(positives, negatives)
    variance = delong_variance(found, spared)
    if not variance:
        return clopper_pearson(area, pairs)
    reach = norm.isf((1 - CONFIDENCE) / 2) * sqrt(variance) / (area * (1 - area))
    low, high = (float(expit(logit(area) + side * reach)) for side in (-1, 1))
    return min(low, clopper_pearson(1, pairs)[0]), max(high, clopper_pearson(0, pairs)[1])


def delong_variance(found: Floats, spared: Floats) -> float:
    """Return the variance of an area under the ROC curve (DeLong et al., 1988).

    With the differences of two models' placements, it is the variance of the difference of areas.

    Args:
        found: placement of each generated image, from `find_placements`.
        spared: placement of each photograph.

    Returns:
        Exactly 0 if the placements do not vary, or if a class has one image.
    """
    positives, negatives = len(found), len(spared)
    if min(positives, negatives) < 2:
        return 0.0
    return float(
        np.var(found, ddof=1) / (positives * negatives**2)
        + np.var(spared, ddof=1) / (negatives * positives**2)
    )


def tpr_interval(scores: Floats, generated: Bools) -> Interval:
    """Return the interval of `Report.tpr_at_1_fpr`: a bootstrap, at least as wide as Wilson's.

    Wilson's interval assumes a fixed threshold, but the photographs determine the threshold. The
    bootstrap needs no resampling: the photograph that sets the threshold is an order statistic of n
    uniform draws, which has a beta distribution (David and Nagaraja, "Order Statistics", 2003), and
    the number of generated images above it is binomial.

    Args:
        scores: [N], P(generated).
        generated: [N], true for generated images; both classes.
    """
    photographs, faces = np.sort(scores[~generated])[::-1], np.sort(scores[generated])
    count, allowed = len(photographs), len(photographs) // 100
    rng = np.random.default_rng(SEED)
    place = rng.beta(allowed + 1, count - allowed, MAX_RESAMPLES)
    limits = photographs[np.minimum((place * count).astype(np.int64), count - 1)]
    above = len(faces) - np.searchsorted(faces, limits, "right")
    drawn = rng.binomial(len(faces), above / len(faces)) / len(faces)
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(end) for end in np.quantile(drawn, (tail, 1 - tail)))
    fixed = wilson(int((faces > photographs[allowed]).sum()), len(faces))
    return min(low, fixed[0]), max(high, fixed[1])


def difference_interval(
    values: tuple[float, float], intervals: tuple[Interval, Interval], correlation: float
) -> Interval:
    """Return the interval of a difference, second minus first, from the intervals of both.

    Zou and Donner, "Construction of confidence intervals about effect measures: a general
    approach", Statistics in Medicine 27, 2008. For two accuracies it equals Newcombe's tenth
    method, Statistics in Medicine 17, 1998. Its width is not 0 unless those of both intervals are.

    Args:
        values: both estimates.
        intervals: both intervals.
        correlation: correlation of the estimates; 0 if unknown.
    """
    gap = values[1] - values[0]
    lows, highs = zip(*intervals, strict=True)
    falls = values[1] - lows[1], highs[0] - values[0]
    rises = highs[1] - values[1], values[0] - lows[0]
    down, up = (sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b)) for a, b in (falls, rises))
    return max(-1.0, gap - down), min(1.0, gap + up)


def percentile(values: Floats) -> Interval | None:
    """Return the interval that contains `CONFIDENCE` of resampled values.

    If all values are equal, the result is None: an interval of width 0 would suggest certainty.
    """
    if np.ptp(values) == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def count_resamples(images: int) -> int:
    """Return the number of bootstrap resamples; larger data sets need fewer."""
    return min(MAX_RESAMPLES, max(MIN_RESAMPLES, _MAX_DRAWS // images))


def resample(scores: Floats, generated: Bools) -> dict[str, Floats]:
    """Compute metrics of bootstrap resamples, stratified by class.

    The draws depend only on `generated`: those of two models on the same images are paired.

    Args:
        scores: [N], P(generated).
        generated: [N], true for generated images; both classes.

    Returns:
        `count_resamples` values each of `average_precision`, `eer`, `tpr_at_1_fpr`, `ece`, `nll`
        and `brier`; see `Report` and `Reliability`.
    """
    parts = [_measure(scores, generated, counts) for counts in _draw(generated)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def estimate(scores: Floats, generated: Bools) -> dict[str, float]:
    """Compute the metrics of `resample` on the images without resampling."""
    whole = _measure(scores, generated, np.ones((1, len(scores))))
    return {name: float(values[0]) for name, values in whole.items()}


def _draw(generated: Bools) -> Iterator[Floats]:
    """Yield how often each image is drawn, in chunks of [resamples, N]."""
    rng = np.random.default_rng(SEED)
    size = len(generated)
    most, resamples = max(1, _MAX_COUNTS // size), count_resamples(size)
    for start in range(0, resamples, most):
        rows = min(most, resamples - start)
        counts = np.empty((rows, size))
        for kind in (generated, ~generated):
            count = int(kind.sum())
            drawn = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
            counts[:, kind] = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, -1)
        yield counts


def _measure(scores: Floats, generated: Bools, counts: Floats) -> dict[str, Floats]:
    size = len(scores)
    bins, gap = confidence_gaps(scores, generated)
    in_bin = gap[:, None] * (bins[:, None] == np.unique(bins))
    return {
        **_measure_ranking(scores, generated, counts),
        "ece": np.abs(counts @ in_bin).sum(1) / size,
        "nll": counts @ log_losses(scores, generated) / size,
        "brier": counts @ (scores - generated) ** 2 / size,
    }


def _measure_ranking(scores: Floats, generated: Bools, counts: Floats) -> dict[str, Floats]:
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], generated[order]
    # A threshold cannot separate equal scores: only the last of each group is a curve point.
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    drawn = counts[:, order]
    zero = np.zeros((len(counts), 1))
    found = np.hstack([zero, np.cumsum(drawn * truth, 1)[:, last]])
    alarms = np.hstack([zero, np.cumsum(drawn * ~truth, 1)[:, last]])
    precision = found[:, 1:] / np.maximum(found[:, 1:] + alarms[:, 1:], 1)
    found /= truth.sum()
    alarms /= (~truth).sum()
    return {
        "average_precision": (np.diff(found, axis=1) * precision).sum(1),
        "eer": equal_error_rates(alarms, found),
        "tpr_at_1_fpr": np.where(alarms <= 0.01, found, 0).max(1),
    }

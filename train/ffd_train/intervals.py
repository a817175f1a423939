"""How far a figure measured on some images may be from the one on all such images."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit
from scipy.stats import beta

from .classification_metrics import Floats, confidence_gaps, log_losses

Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float]

CONFIDENCE = 0.95
# Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals want about
# a thousand.
RESAMPLES = 1000
SEED = 0
# The same: two hundred are enough for a deviation. Draws of all resamples together, above which
# there are fewer: about ten seconds' worth on one core.
FEWEST = 200
_MOST_DRAWS = 1 << 27
# Counts of one chunk of resamples, so that memory does not grow with the images.
_MOST_COUNTS = 1 << 21


def wilson(successes: int, trials: int) -> Interval:
    """The interval of a proportion (Wilson, 1927): honest for few trials, and at 0 and 1.

    Args:
        successes: how many of the trials.
        trials: at least 1.
    """
    z = _quantile()
    share = successes / trials
    middle = share + z * z / (2 * trials)
    reach = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low = 0.0 if successes == 0 else (middle - reach) / scale
    high = 1.0 if successes == trials else (middle + reach) / scale
    return low, high


def clopper_pearson(share: float, trials: int) -> Interval:
    """The exact interval of a proportion (Clopper and Pearson, 1934).

    Args:
        share: of the trials; not necessarily a whole number of them (Korn and Graubard, 1998).
        trials: at least 1.
    """
    tail, successes = (1 - CONFIDENCE) / 2, share * trials
    low = beta.ppf(tail, successes, trials - successes + 1) if share > 0 else 0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if share < 1 else 1
    return float(low), float(high)


def _quantile() -> float:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def auc_interval(found: Floats, spared: Floats) -> Interval:
    """The interval of an area under the ROC curve, which few images never make look certain.

    By DeLong's variance on the logit scale (Pepe, "The Statistical Evaluation of Medical Tests for
    Classification and Prediction", 2003). That variance is 0 for perfect separation, and too small
    near it. But the classes form k disjoint, so independent, pairs, k being the size of the smaller
    class, and an area A separates all of them with a probability of at most A^k: at perfect
    separation, A^k = (1 - `CONFIDENCE`) / 2 is the exact bound. No interval ends before it.

    Args:
        found: of each generated image, as `find_placements` gives them.
        spared: of each photograph, likewise.
    """
    positives, negatives = len(found), len(spared)
    area = float(found.sum()) / (positives * negatives)
    pairs = min(positives, negatives)
    variance = delong_variance(found, spared)
    if not variance:
        return clopper_pearson(area, pairs)
    reach = _quantile() * sqrt(variance) / (area * (1 - area))
    low, high = (float(expit(logit(area) + side * reach)) for side in (-1, 1))
    return min(low, clopper_pearson(1, pairs)[0]), max(high, clopper_pearson(0, pairs)[1])


def delong_variance(found: Floats, spared: Floats) -> float:
    """Variance of an area under the ROC curve (DeLong, DeLong and Clarke-Pearson, 1988).

    Of the difference of two areas, if the differences of two models' placements are given; exactly
    0 if those do not vary.

    Args:
        found: of each generated image, as `find_placements` gives them.
        spared: of each photograph, likewise.

    Returns:
        0 also where a class has one image.
    """
    positives, negatives = len(found), len(spared)
    if min(positives, negatives) < 2:
        return 0.0
    return float(
        np.var(found, ddof=1) / (positives * negatives**2)
        + np.var(spared, ddof=1) / (negatives * positives**2)
    )


def tpr_interval(scores: Floats, generated: Bools) -> Interval:
    """The interval of `Report.tpr_at_1_fpr`: a bootstrap, at least as wide as Wilson's.

    Wilson's holds for the threshold as it is; resampled photographs move that. No image need be
    drawn for it: of n drawn photographs the one that sets the threshold is an order statistic of n
    uniform draws, which is beta distributed (David and Nagaraja, "Order Statistics", 2003), and how
    many generated images lie above it is binomial.

    Args:
        scores: [N], P(generated).
        generated: [N], the truth; both classes.
    """
    photographs, faces = np.sort(scores[~generated])[::-1], np.sort(scores[generated])
    count, allowed = len(photographs), len(photographs) // 100
    rng = np.random.default_rng(SEED)
    place = rng.beta(allowed + 1, count - allowed, RESAMPLES)
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
    """The interval of a difference of two estimates, second less first, from those of each.

    Zou and Donner, "Construction of confidence intervals about effect measures: a general
    approach", Statistics in Medicine 27, 2008; of two accuracies it is Newcombe's tenth method,
    Statistics in Medicine 17, 1998. It does not collapse where the intervals do not.

    Args:
        values: of both.
        intervals: of both.
        correlation: of the estimates; 0 where it cannot be told.
    """
    gap = values[1] - values[0]
    lows, highs = zip(*intervals, strict=True)
    falls = values[1] - lows[1], highs[0] - values[0]
    rises = highs[1] - values[1], values[0] - lows[0]
    down, up = (sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b)) for a, b in (falls, rises))
    return max(-1.0, gap - down), min(1.0, gap + up)


def percentile(values: Floats) -> Interval | None:
    """The interval that holds `CONFIDENCE` of resampled values; None if they are all the same.

    Then no image tells how far the figure may be off, and an interval without width would look like
    certainty.
    """
    if np.ptp(values) == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def count_resamples(images: int) -> int:
    """How many bootstrap resamples are drawn: fewer of many images, whose figures vary little."""
    return min(RESAMPLES, max(FEWEST, _MOST_DRAWS // images))


def resample(scores: Floats, generated: Bools) -> dict[str, Floats]:
    """Metrics of bootstrap resamples, each class drawn from itself.

    The draws depend on `generated` alone: those of two models on the same images are paired.

    Args:
        scores: [N], P(generated).
        generated: [N], the truth; both classes.

    Returns:
        `count_resamples` values each of `average_precision`, `eer`, `tpr_at_1_fpr`, `ece`, `nll`
        and `brier`; what they mean, see `Report` and `Reliability`.
    """
    parts = [_measure(scores, generated, counts) for counts in _draw(generated)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def estimate(scores: Floats, generated: Bools) -> dict[str, float]:
    """The metrics of `resample` on the images as they are."""
    whole = _measure(scores, generated, np.ones((1, len(scores))))
    return {name: float(values[0]) for name, values in whole.items()}


def _draw(generated: Bools) -> Iterator[Floats]:
    """How often each image was drawn: chunks of [resamples, N]."""
    rng = np.random.default_rng(SEED)
    size = len(generated)
    most, resamples = max(1, _MOST_COUNTS // size), count_resamples(size)
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
    # Equal scores are found together: only the last of each group is a point of the curve.
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

"""Two models on the same pictures: which is better, and whether that is more than chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest, norm

from ffd_runtime.model.card import ModelCard

from .classification_metrics import Floats, find_placements
from .intervals import (
    CONFIDENCE,
    Bools,
    Interval,
    auc_interval,
    delong_variance,
    difference_interval,
    estimate,
    percentile,
    wilson,
)

# The share of pairs of equal models that a test calls different.
LEVEL = 0.05


@dataclass(frozen=True)
class AucTest:
    """DeLong's test of two areas under ROC curves.

    Attributes:
        auc: of the first model.
        other: of the second.
        z: their difference, second less first, over its standard error; None where that is 0.
        p: two-sided; 1 for equal areas, None where it cannot be told.
        untested: why it cannot; None where it can.
    """

    auc: float
    other: float
    z: float | None
    p: float | None
    untested: str | None = None


@dataclass(frozen=True)
class AccuracyTest:
    """McNemar's exact test of two accuracies.

    Attributes:
        only_first: images that the first model alone has right.
        only_second: images that the second alone has right.
        p: two-sided.
    """

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Difference:
    """A metric of both models.

    Attributes:
        first: of the first model.
        second: of the second.
        difference: second less first.
        interval: of the difference; None where resamples do not differ.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Two models on the images that both have judged.

    Attributes:
        images: how many.
        differences: by the metric's name: intervals of `accuracy` by `difference_interval`, of
            `roc_auc` by DeLong's variance, or where that is 0 likewise, of what was resampled by a
            paired bootstrap.
        auc: DeLong's test.
        accuracy: McNemar's test.
    """

    images: int
    differences: dict[str, Difference]
    auc: AucTest
    accuracy: AccuracyTest

    def to_json(self) -> dict[str, object]:
        """The comparison as JSON types."""
        return asdict(self)


def compare(
    first: Floats,
    second: Floats,
    generated: Bools,
    card: ModelCard,
    other: ModelCard,
    resampled: tuple[dict[str, Floats], dict[str, Floats]] | None = None,
) -> Comparison:
    """Test two models on the same images.

    Args:
        first: [N], P(generated) by the first model.
        second: [N], by the second.
        generated: [N], the truth; both classes.
        card: of the first; its threshold decides.
        other: of the second, likewise.
        resampled: what `intervals.resample` gives for both; None to leave those metrics out.
    """
    right = (first >= card.threshold) == generated
    also = (second >= other.threshold) == generated
    differences = {
        "accuracy": _compare_accuracies(right, also),
        "roc_auc": _compare_areas(first, second, generated),
    }
    if resampled:
        here, there = (estimate(scores, generated) for scores in (first, second))
        ones, twos = resampled
        for name in ones:
            gap, interval = there[name] - here[name], percentile(twos[name] - ones[name])
            differences[name] = Difference(here[name], there[name], gap, interval)
    return Comparison(
        len(first), differences, delong(first, second, generated), mcnemar(right, also)
    )


def _compare_accuracies(right: Bools, also: Bools) -> Difference:
    values = float(right.mean()), float(also.mean())
    one, two = (wilson(int(each.sum()), len(each)) for each in (right, also))
    covariance = float((right & also).mean()) - values[0] * values[1]
    spread = np.sqrt(np.prod([value * (1 - value) for value in values]))
    correlation = covariance / spread if spread else 0.0
    interval = difference_interval(values, (one, two), correlation)
    return Difference(*values, values[1] - values[0], interval)


def _compare_areas(first: Floats, second: Floats, generated: Bools) -> Difference:
    one, two = (find_placements(scores, generated) for scores in (first, second))
    pairs = one[0].size * one[1].size
    values = float(one[0].sum()) / pairs, float(two[0].sum()) / pairs
    gap = values[1] - values[0]
    # Where there is a variance, what agrees with the test.
    reach = norm.isf((1 - CONFIDENCE) / 2) * np.sqrt(
        delong_variance(two[0] - one[0], two[1] - one[1])
    )
    if reach:
        return Difference(*values, gap, (float(gap - reach), float(gap + reach)))
    # Models that rank alike are as sure as each of them, and no surer where both make no error.
    correlation = 1.0 if gap == 0 and delong_variance(*one) else 0.0
    interval = difference_interval(values, (auc_interval(*one), auc_interval(*two)), correlation)
    return Difference(*values, gap, interval)


def delong(first: Floats, second: Floats, generated: Bools) -> AucTest:
    """Test the difference of two areas under ROC curves (DeLong, DeLong and Clarke-Pearson, 1988).

    In O(N log N), as each image's placement is found by sorting and not from all pairs: Sun and Xu,
    "Fast Implementation of DeLong's Algorithm for Comparing the Areas Under Correlated Receiver
    Operating Characteristic Curves", IEEE Signal Processing Letters 21(11), 2014.

    Args:
        first: [N], scores by one model.
        second: [N], by the other.
        generated: [N], the positives; both classes.
    """
    one, two = (find_placements(scores, generated) for scores in (first, second))
    positives, negatives = len(one[0]), len(one[1])
    pairs = positives * negatives
    auc, other = (float(each[0].sum()) / pairs for each in (one, two))
    found, spared = two[0] - one[0], two[1] - one[1]
    # Of halves, so that it is exactly 0 for equal areas, and the variance where nothing varies.
    gap = float(found.sum()) / pairs
    if gap == 0:
        return AucTest(auc, other, None, 1.0)
    if min(positives, negatives) < 2:
        return AucTest(auc, other, None, None, "as one of the classes has a single image")
    variance = delong_variance(found, spared)
    if variance == 0:
        reason = "as every image ranks otherwise by the same amount: nothing tells that from chance"
        return AucTest(auc, other, None, None, reason)
    z = gap / np.sqrt(variance)
    return AucTest(auc, other, float(z), float(2 * norm.sf(abs(z))))


def describe(comparison: Comparison, first: str, second: str) -> list[str]:
    """The outcome in plain words: how they rank, and how they decide.

    Args:
        comparison: of the two.
        first: name of the first model.
        second: name of the second.
    """
    auc, decided = comparison.auc, comparison.accuracy
    row = comparison.differences["roc_auc"]
    assert row.interval is not None
    low, high = row.interval
    figures = (
        f"ROC-AUC {row.first:.4f} of {first}, {row.second:.4f} of {second} "
        f"(difference {row.difference:+.4f}, {low:+.4f} to {high:+.4f})"
    )
    if auc.p is None:
        ranking = f"Ranking cannot be tested, {auc.untested}; {figures}."
    elif auc.p < LEVEL:
        better = second if row.difference > 0 else first
        ranking = f"{better} is better at ranking: {figures}; DeLong's test, {_p(auc.p)}."
    else:
        ranking = f"No difference in ranking is shown: {figures}; DeLong's test, {_p(auc.p)}."
    alone = (
        f"{first} alone is right on {decided.only_first}, {second} alone on "
        f"{decided.only_second} of {comparison.images} images; McNemar's exact test, "
        f"{_p(decided.p)}"
    )
    if decided.p < LEVEL:
        better = second if decided.only_second > decided.only_first else first
        return [ranking, f"{better} is better at its threshold: {alone}."]
    return [ranking, f"No difference at the thresholds is shown: {alone}."]


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def mcnemar(right: Bools, also: Bools) -> AccuracyTest:
    """Test the difference of two accuracies by the images on which they differ (McNemar, 1947).

    Args:
        right: [N], whether the first model is right.
        also: [N], whether the second is.
    """
    only_first, only_second = int((right & ~also).sum()), int((~right & also).sum())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return AccuracyTest(only_first, only_second, p)

"""Statistical comparison of two models on the same images."""

from __future__ import annotations

from dataclasses import dataclass

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

# Significance level of the tests.
LEVEL = 0.05


@dataclass(frozen=True)
class AucTest:
    """DeLong's test of two areas under ROC curves.

    Attributes:
        auc: ROC-AUC of the first model.
        other: ROC-AUC of the second model.
        z: difference, second minus first, divided by its standard error; None if that is 0.
        p: two-sided p-value; 1 for equal areas, None if the test is impossible.
        untested: reason why the test is impossible, or None.
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
        only_first: number of images that only the first model classifies correctly.
        only_second: number of images that only the second model classifies correctly.
        p: two-sided p-value.
    """

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class Difference:
    """A metric of both models, and the difference, second minus first.

    The interval is that of the difference; None if all resamples are equal.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """Two models on the images that both have classified.

    Attributes:
        images: number of images.
        differences: differences by the metric's name. The interval of `accuracy` is from
            `difference_interval`, that of `roc_auc` from DeLong's variance (or
            `difference_interval` if the variance is 0), and the others are from a paired bootstrap.
        auc: DeLong's test.
        accuracy: McNemar's test.
    """

    images: int
    differences: dict[str, Difference]
    auc: AucTest
    accuracy: AccuracyTest


def compare(
    first: Floats,
    second: Floats,
    generated: Bools,
    card: ModelCard,
    other: ModelCard,
    resampled: tuple[dict[str, Floats], dict[str, Floats]] | None = None,
) -> Comparison:
    """Compare two models on the same images.

    Args:
        first: [N], P(generated) of the first model.
        second: [N], P(generated) of the second model.
        generated: [N], true for generated images; both classes.
        card: card of the first model, for its threshold.
        other: card of the second model.
        resampled: results of `intervals.resample` for both; None to skip these metrics.
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
    # With a variance, the interval that agrees with the test.
    reach = norm.isf((1 - CONFIDENCE) / 2) * np.sqrt(
        delong_variance(two[0] - one[0], two[1] - one[1])
    )
    if reach:
        return Difference(*values, gap, (float(gap - reach), float(gap + reach)))
    # Equal rankings are fully correlated, unless both separate the classes perfectly.
    correlation = 1.0 if gap == 0 and delong_variance(*one) else 0.0
    interval = difference_interval(values, (auc_interval(*one), auc_interval(*two)), correlation)
    return Difference(*values, gap, interval)


def delong(first: Floats, second: Floats, generated: Bools) -> AucTest:
    """Test the difference of two areas under ROC curves (DeLong, DeLong and Clarke-Pearson, 1988).

    It takes O(N log N), because sorting replaces the comparison of all pairs: Sun and Xu, "Fast
    Implementation of DeLong's Algorithm for Comparing the Areas Under Correlated Receiver Operating
    Characteristic Curves", IEEE Signal Processing Letters 21(11), 2014.

    Args:
        first: [N], scores of one model.
        second: [N], scores of the other.
        generated: [N], true for generated images; both classes.
    """
    one, two = (find_placements(scores, generated) for scores in (first, second))
    positives, negatives = len(one[0]), len(one[1])
    pairs = positives * negatives
    auc, other = (float(each[0].sum()) / pairs for each in (one, two))
    found, spared = two[0] - one[0], two[1] - one[1]
    # Placements are multiples of 0.5: equal areas differ by exactly 0, and so does the variance.
    gap = float(found.sum()) / pairs
    if gap == 0:
        return AucTest(auc, other, None, 1.0)
    if min(positives, negatives) < 2:
        return AucTest(auc, other, None, None, "because a class has only one image")
    variance = delong_variance(found, spared)
    if variance == 0:
        reason = "because the rank of every image differs by the same amount"
        return AucTest(auc, other, None, None, reason)
    z = gap / np.sqrt(variance)
    return AucTest(auc, other, float(z), float(2 * norm.sf(abs(z))))


def describe(comparison: Comparison, first: str, second: str) -> list[str]:
    """Describe in one sentence each how two named models rank images and classify them."""
    auc, decided = comparison.auc, comparison.accuracy
    row = comparison.differences["roc_auc"]
    assert row.interval is not None
    low, high = row.interval
    figures = (
        f"ROC-AUC {row.first:.4f} of {first}, {row.second:.4f} of {second} "
        f"(difference {row.difference:+.4f}, {low:+.4f} to {high:+.4f})"
    )
    if auc.p is None:
        ranking = f"The ranking cannot be tested {auc.untested}; {figures}."
    elif auc.p < LEVEL:
        better = second if row.difference > 0 else first
        ranking = f"{better} is better at ranking: {figures}; DeLong's test, {_p(auc.p)}."
    else:
        ranking = f"No significant difference in ranking: {figures}; DeLong's test, {_p(auc.p)}."
    counts = (
        f"only {first} is right on {decided.only_first} and only {second} on "
        f"{decided.only_second} of {comparison.images} images; McNemar's exact test, "
        f"{_p(decided.p)}"
    )
    if decided.p < LEVEL:
        better = second if decided.only_second > decided.only_first else first
        return [ranking, f"{better} is better at its threshold: {counts}."]
    return [ranking, f"No significant difference at the thresholds: {counts}."]


def _p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def mcnemar(right: Bools, also: Bools) -> AccuracyTest:
    """Test the difference of two accuracies (McNemar, 1947).

    Args:
        right: [N], true if the first model is right.
        also: [N], true if the second model is right.
    """
    only_first, only_second = int((right & ~also).sum()), int((~right & also).sum())
    differ = only_first + only_second
    p = float(binomtest(only_first, differ).pvalue) if differ else 1.0
    return AccuracyTest(only_first, only_second, p)

"""Two models on the same pictures: which is better, and whether that is more than chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest, norm, rankdata

from ffd_runtime.card import ModelCard

from .intervals import Bools, Interval, estimate, percentile, resample
from .metrics import Floats

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
    """

    auc: float
    other: float
    z: float | None
    p: float | None


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
        interval: of the difference, by a paired bootstrap.
    """

    first: float
    second: float
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """Two models on the images that both have judged.

    Attributes:
        images: how many.
        differences: by the metric's name, as in `intervals.resample`.
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
    first: Floats, second: Floats, generated: Bools, card: ModelCard, other: ModelCard
) -> Comparison:
    """Test two models on the same images.

    Args:
        first: [N], P(generated) by the first model.
        second: [N], by the second.
        generated: [N], the truth; both classes.
        card: of the first; its threshold decides.
        other: of the second, likewise.
    """
    ones, twos = resample(first, generated, card), resample(second, generated, other)
    here, there = estimate(first, generated, card), estimate(second, generated, other)
    differences = {
        name: Difference(
            here[name], there[name], there[name] - here[name], percentile(twos[name] - ones[name])
        )
        for name in ones
    }
    right = (first >= card.threshold) == generated
    also = (second >= other.threshold) == generated
    return Comparison(
        len(first), differences, delong(first, second, generated), mcnemar(right, also)
    )


def delong(first: Floats, second: Floats, generated: Bools) -> AucTest:
    """Test the difference of two areas under ROC curves (DeLong, DeLong and Clarke-Pearson, 1988).

    By midranks, in O(N log N): Sun and Xu, "Fast Implementation of DeLong's Algorithm for Comparing
    the Areas Under Correlated Receiver Operating Characteristic Curves", IEEE Signal Processing
    Letters 21(11), 2014.

    Args:
        first: [N], scores by one model.
        second: [N], by the other.
        generated: [N], the positives; both classes.
    """
    found, spared = zip(
        *(_placements(scores, generated) for scores in (first, second)), strict=True
    )
    auc, other = (float(each.mean()) for each in found)
    gap = other - auc
    positives, negatives = len(found[0]), len(spared[0])
    if abs(gap) < 1e-12:
        return AucTest(auc, other, None, 1.0)
    if min(positives, negatives) < 2:
        return AucTest(auc, other, None, None)
    variance = float(
        np.var(found[1] - found[0], ddof=1) / positives
        + np.var(spared[1] - spared[0], ddof=1) / negatives
    )
    if variance < 1e-18:
        return AucTest(auc, other, None, None)
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
    low, high = row.interval
    figures = (
        f"ROC-AUC {row.first:.4f} of {first}, {row.second:.4f} of {second} "
        f"(difference {row.difference:+.4f}, {low:+.4f} to {high:+.4f})"
    )
    if auc.p is None:
        ranking = f"Ranking cannot be tested on so few images: {figures}."
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


def _placements(scores: Floats, generated: Bools) -> tuple[Floats, Floats]:
    """Of each positive, the share of negatives below it; of each negative, of positives above it.

    The variance of these over the images is what DeLong's covariance is made of.
    """
    ranks = rankdata(scores)
    positives, negatives = int(generated.sum()), int((~generated).sum())
    below = (ranks[generated] - rankdata(scores[generated])) / negatives
    above = 1 - (ranks[~generated] - rankdata(scores[~generated])) / positives
    return below, above


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

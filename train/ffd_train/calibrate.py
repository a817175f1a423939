"""Calibration on the validation split: temperature, threshold and unsure band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit

from ffd_runtime.core.log_odds import log_odds

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Scores are clipped to [margin, 1 - margin] before their log-odds are averaged.
_MARGIN = 1e-7


@dataclass(frozen=True)
class Calibration:
    """Fitted values for the model card."""

    temperature: float
    threshold: float
    unsure: tuple[float, float]


def calibrate(
    logits: Floats,
    generated: Bools,
    sources: Sequence[str | None] | None = None,
    max_fpr: float = 0.01,
    confidence: float = 0.99,
) -> Calibration:
    """Fit temperature, threshold and unsure band on validation logits.

    Args:
        logits: [N, 2], in the card's class order (generated first).
        generated: [N], true for generated images.
        sources: [N], names of the sources, where known.
        max_fpr: maximum share of each source's photographs that are classified as generated.
        confidence: share of correct verdicts outside the unsure band.
    """
    margin = logits[:, 0] - logits[:, 1]
    temperature = fit_temperature(margin, generated)
    scores = expit(margin / temperature)
    threshold = fit_threshold(scores, generated, sources, max_fpr)
    return Calibration(
        temperature, threshold, fit_unsure_band(scores, generated, threshold, confidence)
    )


def fit_temperature(margin: Floats, generated: Bools) -> float:
    """Find the temperature that minimises the negative log-likelihood (Guo et al., 2017).

    With targets 0 and 1, a few images that are all correct have no best temperature: it falls to
    its lower bound, and errors on other images get scores near 0 or 1. Platt's (1999) targets
    (n + 1) / (n + 2) and 1 / (m + 2) prevent this.

    Args:
        margin: [N], logit of generated minus logit of groundtruth.
        generated: [N], true for generated images.
    """
    found, spared = int(generated.sum()), int((~generated).sum())
    target = np.where(generated, (found + 1) / (found + 2), 1 / (spared + 2))

    def loss(log_temperature: float) -> float:
        scaled = margin / np.exp(log_temperature)
        return float((np.logaddexp(0, scaled) - target * scaled).mean())

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(best.x))


def fit_threshold(
    scores: Floats,
    generated: Bools,
    sources: Sequence[str | None] | None = None,
    max_fpr: float = 0.01,
) -> float:
    """Find the lowest threshold that keeps every source below the max FPR.

    Images of unseen generators score lower than those of trained ones. The threshold is therefore
    as low as the photographs allow, not at the equal error rate. It is half way, in log-odds,
    between the score of the highest photograph that must stay below and the next score.

    Args:
        scores: [N], P(generated).
        generated: [N], true for generated images; both classes.
        sources: [N], names of the sources, where known. Sources with too few photographs to
            measure `max_fpr` are combined.
        max_fpr: maximum share of each source's photographs that are classified as generated,
            rounded to whole photographs.
    """
    names = np.array([source or "" for source in sources or [""] * len(scores)])
    photographs, names = scores[~generated], names[~generated]
    counts = {str(name): int((names == name).sum()) for name in np.unique(names)}
    few = [name for name, count in counts.items() if round(max_fpr * count) < 1]
    names = np.where(np.isin(names, few), "", names)
    # The threshold must exceed these scores to keep the max FPR.
    groups = [np.sort(photographs[names == name]) for name in np.unique(names)]
    lower = max(float(group[-1 - round(max_fpr * len(group))]) for group in groups)
    above = scores[scores > lower]
    threshold = _midpoint(lower, float(above.min()) if above.size else 1.0)
    # The floating-point resolution may be too low for a value in between.
    return threshold if threshold > lower else float(np.nextafter(lower, 1))


def fit_unsure_band(
    scores: Floats, generated: Bools, threshold: float, confidence: float
) -> tuple[float, float]:
    """Find the narrowest band around the threshold outside which verdicts are reliable.

    Of the scores at or above `high`, at least `confidence` are generated; of those below `low`, at
    least `confidence` are groundtruth. If no cut on a side satisfies this, the band covers the
    whole side.
    """
    high = _confident_cut(scores, generated, threshold, confidence)
    low = 1 - _confident_cut(1 - scores, ~generated, 1 - threshold, confidence)
    return min(low, threshold), max(high, threshold)


def _confident_cut(scores: Floats, right: Bools, threshold: float, confidence: float) -> float:
    """Return the lowest cut from the threshold on above which `confidence` are right."""
    side = scores >= threshold
    if not side.any() or right[side].mean() >= confidence:
        return threshold
    order = np.argsort(-scores[side], kind="stable")
    ranked = scores[side][order]
    precision = np.cumsum(right[side][order]) / np.arange(1, ranked.size + 1)
    # A cut cannot separate equal scores: only the last of each group is a candidate.
    last = np.append(ranked[1:] < ranked[:-1], True)
    good = np.flatnonzero((precision >= confidence) & last)
    if not good.size:
        return 1.0
    cut = int(good[-1])
    # Half way to the next lower score, if the floating-point resolution allows it.
    middle = _midpoint(ranked[cut], ranked[cut + 1])
    return middle if ranked[cut + 1] < middle <= ranked[cut] else float(ranked[cut])


def _midpoint(one: float, other: float) -> float:
    """Return the score half way between two scores, in log-odds."""
    return float(expit((log_odds(one, _MARGIN) + log_odds(other, _MARGIN)) / 2))

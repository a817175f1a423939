"""What is fitted on the validation split after training: temperature, threshold, unsure band."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.metrics import roc_curve

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """Fitted values, as the model card holds them."""

    temperature: float
    threshold: float
    unsure: tuple[float, float]


def calibrate(logits: Floats, generated: Bools, confidence: float = 0.99) -> Calibration:
    """Fit all three on validation logits.

    Args:
        logits: [N, 2], in the card's class order (generated first).
        generated: [N], the truth.
        confidence: share of verdicts that must be right outside the unsure band.
    """
    margin = logits[:, 0] - logits[:, 1]
    temperature = fit_temperature(margin, generated)
    scores = expit(margin / temperature)
    threshold = fit_threshold(scores, generated)
    return Calibration(temperature, threshold, fit_unsure(scores, generated, threshold, confidence))


def fit_temperature(margin: Floats, generated: Bools) -> float:
    """The temperature that minimises the negative log-likelihood (Guo et al., 2017).

    Args:
        margin: [N], logit of generated less logit of groundtruth.
        generated: [N].
    """
    sign = np.where(generated, 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -sign * margin / np.exp(log_temperature)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def fit_threshold(scores: Floats, generated: Bools) -> float:
    """The threshold of equal error: half way, in log-odds, between the two scores around it."""
    false_alarm, found, thresholds = roc_curve(generated, scores, drop_intermediate=False)
    at = int(np.argmin(np.abs(false_alarm - (1 - found))))
    above = thresholds[at] if np.isfinite(thresholds[at]) else 1.0
    lower = scores[scores < above]
    below = lower.max() if lower.size else 0.0
    middle = (_log_odds(above) + _log_odds(below)) / 2
    return float(expit(middle))


def fit_unsure(
    scores: Floats, generated: Bools, threshold: float, confidence: float
) -> tuple[float, float]:
    """The narrowest band around the threshold outside which each verdict can be trusted.

    Of the scores at or above `high`, at least `confidence` are generated; of those below `low`, at
    least `confidence` are groundtruth. A side where no score can be trusted is all unsure.
    """
    high = _trusted(scores, generated, threshold, confidence)
    low = 1 - _trusted(1 - scores, ~generated, 1 - threshold, confidence)
    return min(low, threshold), max(high, threshold)


def _trusted(scores: Floats, right: Bools, threshold: float, confidence: float) -> float:
    """The lowest cut, not under the threshold, at or above which `confidence` are right."""
    side = scores >= threshold
    if not side.any() or right[side].mean() >= confidence:
        return threshold
    order = np.argsort(-scores[side], kind="stable")
    ranked = scores[side][order]
    precision = np.cumsum(right[side][order]) / np.arange(1, ranked.size + 1)
    # Equal scores stand or fall together: only the last of each group is a possible cut.
    last = np.append(ranked[1:] < ranked[:-1], True)
    good = np.flatnonzero((precision >= confidence) & last)
    if not good.size:
        return 1.0
    cut = int(good[-1])
    # Half way to the first score that is not trusted any more, if numbers are fine enough there.
    middle = float(expit((_log_odds(ranked[cut]) + _log_odds(ranked[cut + 1])) / 2))
    return middle if ranked[cut + 1] < middle <= ranked[cut] else float(ranked[cut])


def _log_odds(score: float) -> float:
    return float(logit(np.clip(score, 1e-7, 1 - 1e-7)))

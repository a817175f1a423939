"""What is fitted on the validation split after training: temperature, threshold, unsure band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Calibration:
    """Fitted values, as the model card holds them."""

    temperature: float
    threshold: float
    unsure: tuple[float, float]


def calibrate(
    logits: Floats,
    generated: Bools,
    sources: Sequence[str | None] | None = None,
    false_alarms: float = 0.01,
    confidence: float = 0.99,
) -> Calibration:
    """Fit all three on validation logits.

    Args:
        logits: [N, 2], in the card's class order (generated first).
        generated: [N], the truth.
        sources: [N], by name, where known.
        false_alarms: share of each source's photographs that may be called generated.
        confidence: share of verdicts that must be right outside the unsure band.
    """
    margin = logits[:, 0] - logits[:, 1]
    temperature = fit_temperature(margin, generated)
    scores = expit(margin / temperature)
    threshold = fit_threshold(scores, generated, sources, false_alarms)
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


def fit_threshold(
    scores: Floats,
    generated: Bools,
    sources: Sequence[str | None] | None = None,
    false_alarms: float = 0.01,
) -> float:
    """The lowest threshold at which each source's photographs are safe.

    Generators that were not trained on score lower than those that were, so the threshold lies as
    low as the photographs allow, not where both errors are equal. It stands half way, in log-odds,
    between the last photograph that must be safe and the next score above it.

    Args:
        scores: [N], P(generated).
        generated: [N], the truth; both classes.
        sources: [N], by name, where known; one for all where not. Those with too few photographs
            for `false_alarms` to be told count as one.
        false_alarms: share of each source's photographs that may be called generated, to the
            nearest photograph.
    """
    names = np.array([source or "" for source in sources or [""] * len(scores)])
    photographs, names = scores[~generated], names[~generated]
    counts = {str(name): int((names == name).sum()) for name in np.unique(names)}
    few = [name for name, count in counts.items() if round(false_alarms * count) < 1]
    names = np.where(np.isin(names, few), "", names)
    lower = max(_last_safe(photographs[names == name], false_alarms) for name in np.unique(names))
    above = scores[scores > lower]
    middle = (_log_odds(lower) + _log_odds(float(above.min()) if above.size else 1.0)) / 2
    threshold = float(expit(middle))
    # Where numbers are not fine enough to stand between the two.
    return threshold if threshold > lower else float(np.nextafter(lower, 1))


def _last_safe(photographs: Floats, false_alarms: float) -> float:
    """The highest score of a source that must not be reached."""
    allowed = round(false_alarms * len(photographs))
    return float(np.sort(photographs)[-1 - allowed])


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

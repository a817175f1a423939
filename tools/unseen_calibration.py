"""Calibration for images of sources that a network was not trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit

from ffd_train.calibrate import Bools, Calibration, Floats, calibrate


def calibrate_unseen(
    logits: Floats,
    generated: Bools,
    sources: Sequence[str],
    left_out: Collection[str],
    max_fpr: float = 0.02,
    max_confident_misses: float = 0.25,
    confidence: float = 0.99,
) -> Calibration:
    """Fit temperature, threshold and unsure band on seen and unseen sources together.

    The threshold keeps the max FPR for every source of photographs, also for those that were left
    out of training. The lower end of the unsure band depends on unseen generators: a network gives
    many of their images a low score, and such a score must not count as a certain photograph.

    Args:
        logits: [N, 2], in the card's class order (generated first).
        generated: [N], true for generated images.
        sources: [N], names of the sources.
        left_out: the sources that the network was not trained on.
        max_fpr: maximum share of each source's photographs that are classified as generated.
        max_confident_misses: maximum share of the missed generated images of `left_out` that are
            below the unsure band. An image is missed if its score is below the threshold.
        confidence: share of correct verdicts outside the unsure band.
    """
    fitted = calibrate(logits, generated, sources, max_fpr, confidence)
    unseen = generated & np.isin(sources, list(left_out))
    scores = expit((logits[unseen, 0] - logits[unseen, 1]) / fitted.temperature)
    low, high = fitted.unsure
    low = min(low, lower_end(scores, fitted.threshold, max_confident_misses))
    return replace(fitted, unsure=(low, high))


def lower_end(scores: Floats, threshold: float, max_confident_misses: float) -> float:
    """Return the highest lower end of the unsure band that few missed images are below.

    Args:
        scores: [N], P(generated) of generated images.
        threshold: images with a lower score are missed.
        max_confident_misses: maximum share of the missed images below the band.
    """
    missed = np.sort(scores[scores < threshold])
    if not missed.size:
        return threshold
    return float(missed[int(max_confident_misses * missed.size)])

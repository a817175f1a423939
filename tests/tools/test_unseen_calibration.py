"""Calibration on sources that were left out of training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from tools.unseen_calibration import calibrate_unseen, lower_end

Scores = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60)


@given(Scores, st.floats(0.01, 1.0), st.floats(0.0, 0.9))
def test_few_missed_images_are_below_the_band(
    values: list[float], threshold: float, share: float
) -> None:
    scores = np.array(values)
    low = lower_end(scores, threshold, share)
    missed = scores[scores < threshold]
    assert low <= threshold
    assert (missed < low).sum() <= share * len(missed)


def test_the_band_ends_at_the_threshold_if_nothing_is_missed() -> None:
    assert lower_end(np.array([0.8, 0.9]), 0.5, 0.25) == 0.5


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Logits of two seen sources, an unseen generator of middling scores, unseen photographs."""
    rng = np.random.default_rng(0)
    groups = {"gan": (True, 4.0), "ffhq": (False, -4.0), "new": (True, 0.0), "studio": (False, -1)}
    margins = np.concatenate([rng.normal(mean, 1.5, 200) for _, mean in groups.values()])
    generated = np.repeat([truth for truth, _ in groups.values()], 200)
    return np.stack([margins, 0 * margins], 1), generated, list(np.repeat(list(groups), 200))


def test_unseen_photographs_raise_the_threshold_and_unseen_faces_lower_the_band(
    data: tuple[np.ndarray, np.ndarray, Sequence[str]],
) -> None:
    logits, generated, sources = data
    fitted = calibrate_unseen(logits, generated, sources, ["new", "studio"])
    scores = expit((logits[:, 0] - logits[:, 1]) / fitted.temperature)
    for name in ("ffhq", "studio"):
        of_source = np.array(sources) == name
        assert (scores[of_source] >= fitted.threshold).mean() <= 0.02
    new = scores[np.array(sources) == "new"]
    missed = new[new < fitted.threshold]
    low, high = fitted.unsure
    assert len(missed) > 50
    assert (missed < low).mean() <= 0.25
    assert low <= fitted.threshold <= high


def test_only_generated_images_of_left_out_sources_lower_the_band(
    data: tuple[np.ndarray, np.ndarray, Sequence[str]],
) -> None:
    logits, generated, sources = data
    without = calibrate_unseen(logits, generated, sources, [], 0.02, 0.0, 0.6)
    photographs = calibrate_unseen(logits, generated, sources, ["studio"], 0.02, 0.0, 0.6)
    generators = calibrate_unseen(logits, generated, sources, ["new"], 0.02, 0.0, 0.6)
    assert without == photographs
    assert generators.unsure[0] < without.unsure[0]

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn.metrics import average_precision_score, roc_auc_score

from ffd_runtime.card import ModelCard, Provenance
from ffd_train import intervals
from ffd_train.intervals import RESAMPLES, estimate, percentile, resample, wilson
from ffd_train.metrics import measure_reliability, measure_scores

CARD = ModelCard("m", "tiny", Provenance("0"), threshold=0.45, unsure=(0.4, 0.6))


def draw(
    size: int, seed: int, apart: float = 1.5
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores of as many of each class, whose log-odds are normal; some scores are equal."""
    rng = np.random.default_rng(seed)
    generated = np.arange(2 * size) % 2 == 0
    scores = expit(rng.normal(np.where(generated, apart, 0), 1))
    return scores.round(2), generated


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 20), (3, 7), (799, 800)])
def test_wilson_against_scipy(successes: int, trials: int) -> None:
    theirs = binomtest(successes, trials).proportion_ci(method="wilson")
    assert list(wilson(successes, trials)) == pytest.approx([theirs.low, theirs.high])


def test_estimates_are_the_reports_figures() -> None:
    scores, generated = draw(70, 0)
    report = measure_scores(scores, (~generated).astype(int).tolist(), CARD)
    reliability = measure_reliability(scores, generated)
    for name, value in estimate(scores, generated, CARD).items():
        source = reliability if name in ("nll", "brier") else report
        assert value == pytest.approx(getattr(source, name)), name


def test_resamples_are_what_drawing_images_again_gives() -> None:
    scores, generated = draw(40, 1)
    found = resample(scores, generated, CARD)
    assert all(values.shape == (RESAMPLES,) for values in found.values())
    counts = next(intervals._draw(generated)).astype(int)
    for row in range(50):
        drawn = np.repeat(np.arange(80), counts[row])
        truth, again = generated[drawn], scores[drawn]
        assert truth.sum() == 40
        assert len(drawn) == 80
        assert found["roc_auc"][row] == pytest.approx(roc_auc_score(truth, again))
        assert found["average_precision"][row] == pytest.approx(
            average_precision_score(truth, again)
        )
        report = measure_scores(again, (~truth).astype(int).tolist(), CARD)
        for name in ("accuracy", "eer", "tpr_at_1_fpr", "ece"):
            assert found[name][row] == pytest.approx(getattr(report, name)), name


def test_resamples_are_repeatable_and_may_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, generated = draw(30, 2)
    whole = resample(scores, generated, CARD)
    again = resample(scores, generated, CARD)
    assert all((whole[name] == again[name]).all() for name in whole)
    monkeypatch.setattr(intervals, "_MOST_COUNTS", 60 * 300)
    parts = resample(scores, generated, CARD)
    assert len(parts["roc_auc"]) == RESAMPLES
    # Other draws, the same distribution.
    assert parts["roc_auc"].std() == pytest.approx(whole["roc_auc"].std(), rel=0.15)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth = norm.cdf(1.5 / np.sqrt(2))
    held = 0
    for seed in range(40):
        scores, generated = draw(60, 100 + seed)
        low, high = percentile(resample(scores, generated, CARD)["roc_auc"])
        held += low <= truth <= high
    assert 35 <= held <= 40


def test_one_image_of_a_class_is_no_reason_to_fail() -> None:
    found = resample(np.array([0.9, 0.2, 0.4]), np.array([True, False, False]), CARD)
    assert percentile(found["roc_auc"]) == (1, 1)

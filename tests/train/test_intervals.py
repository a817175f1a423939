from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from ffd_runtime.model.card import ModelCard, Provenance
from ffd_train import intervals
from ffd_train.classification_metrics import find_placements, measure_reliability, measure_scores
from ffd_train.intervals import (
    MAX_RESAMPLES,
    auc_interval,
    count_resamples,
    difference_interval,
    estimate,
    percentile,
    resample,
    tpr_interval,
    wilson,
)

CARD = ModelCard("m", "tiny", Provenance("0"), threshold=0.45, unsure=(0.4, 0.6))


def draw(
    size: int, seed: int, apart: float = 1.5
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores with normally distributed log-odds, `count` per class, with ties."""
    rng = np.random.default_rng(seed)
    generated = np.arange(2 * size) % 2 == 0
    scores = expit(rng.normal(np.where(generated, apart, 0), 1))
    return scores.round(2), generated


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_equals_newcombes_table(
    successes: int, trials: int, low: float, high: float
) -> None:
    # Newcombe, Statistics in Medicine 17, 1998, pages 857 to 872, table I.
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_estimates_equal_the_report() -> None:
    scores, generated = draw(70, 0)
    report = measure_scores(scores, (~generated).astype(int).tolist(), CARD)
    reliability = measure_reliability(scores, generated)
    for name, value in estimate(scores, generated).items():
        source = reliability if name in ("nll", "brier") else report
        assert value == pytest.approx(getattr(source, name)), name


def test_resamples_equal_resampled_images() -> None:
    scores, generated = draw(40, 1)
    found = resample(scores, generated)
    assert all(values.shape == (MAX_RESAMPLES,) for values in found.values())
    counts = next(intervals._draw(generated)).astype(int)
    for row in range(50):
        drawn = np.repeat(np.arange(80), counts[row])
        truth, again = generated[drawn], scores[drawn]
        assert truth.sum() == 40
        assert len(drawn) == 80
        assert found["average_precision"][row] == pytest.approx(
            average_precision_score(truth, again)
        )
        report = measure_scores(again, (~truth).astype(int).tolist(), CARD)
        for name in ("eer", "tpr_at_1_fpr", "ece"):
            assert found[name][row] == pytest.approx(getattr(report, name)), name


def test_resamples_are_deterministic_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, generated = draw(30, 2)
    whole = resample(scores, generated)
    again = resample(scores, generated)
    assert all((whole[name] == again[name]).all() for name in whole)
    monkeypatch.setattr(intervals, "_MAX_COUNTS", 60 * 300)
    parts = resample(scores, generated)
    assert len(parts["brier"]) == MAX_RESAMPLES
    # Different draws from the same distribution.
    assert parts["brier"].std() == pytest.approx(whole["brier"].std(), rel=0.15)


def test_many_images_have_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_resamples(800) == MAX_RESAMPLES
    assert count_resamples(10**7) == 200
    monkeypatch.setattr(intervals, "_MAX_DRAWS", 60 * 300)
    scores, generated = draw(30, 2)
    assert len(resample(scores, generated)["eer"]) == count_resamples(60) == 300


@pytest.mark.parametrize(("apart", "generated", "photographs"), [(1.5, 30, 90), (3.5, 20, 200)])
def test_intervals_have_their_nominal_coverage(
    apart: float, generated: int, photographs: int
) -> None:
    truth = norm.cdf(apart / np.sqrt(2))
    held = 0
    labels = np.arange(generated + photographs) < generated
    for seed in range(400):
        scores = np.random.default_rng(seed).normal(np.where(labels, apart, 0), 1)
        low, high = auc_interval(*find_placements(scores, labels))
        held += low <= truth <= high
    assert held >= 0.93 * 400


def test_the_auc_interval_is_delongs_without_perfect_separation() -> None:
    scores, generated = draw(400, 3)
    low, high = auc_interval(*find_placements(scores, generated))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(200):
        faces, photographs = (rng.choice(scores[generated == kind], 400) for kind in (1, 0))
        drawn.append(roc_auc_score(generated, np.stack([faces, photographs], 1).ravel()))
    assert (high - low) / (2 * norm.ppf(0.975)) == pytest.approx(np.std(drawn), rel=0.2)
    assert low < roc_auc_score(generated, scores) < high


@pytest.mark.parametrize(("size", "bound"), [(1, 0.025), (4, 0.3976), (400, 0.9908)])
def test_the_interval_of_a_perfect_separation_has_a_width(size: int, bound: float) -> None:
    generated = np.arange(2 * size) < size
    perfect = np.where(generated, 0.9, 0.1)
    low, high = auc_interval(*find_placements(perfect, generated))
    # With this area, perfect separation has a probability of 2.5 %.
    assert low == pytest.approx(bound, abs=1e-4)
    assert low**size == pytest.approx(0.025)
    assert high == 1
    assert auc_interval(*find_placements(1 - perfect, generated)) == pytest.approx((0, 1 - low))
    # One misordered pair does not narrow the interval.
    perfect[0], perfect[-1] = 0.3, 0.5
    assert auc_interval(*find_placements(perfect, generated))[0] <= low


def test_the_tpr_interval_is_a_bootstrap_with_a_width() -> None:
    scores, generated = draw(300, 5, apart=4)
    found = resample(scores, generated)["tpr_at_1_fpr"]
    low, high = tpr_interval(scores, generated)
    assert [low, high] == pytest.approx(percentile(found), abs=0.015)
    few = generated[:8]
    assert tpr_interval(few.astype(float), few) == wilson(4, 4)
    values = resample(few.astype(float), few)
    assert percentile(values["average_precision"]) is None
    assert percentile(values["ece"]) is None


def test_differences_against_newcombe() -> None:
    # Newcombe's first example of independent proportions: Statistics in Medicine 17, 1998.
    both = wilson(48, 80), wilson(56, 70)
    found = difference_interval((48 / 80, 56 / 70), both, 0)
    assert found == pytest.approx((0.0524, 0.3339), abs=1e-4)
    one = wilson(20, 20)
    low, high = difference_interval((1, 1), (one, one), 0)
    assert low < -0.1 < 0.1 < high


def test_a_class_may_have_one_image() -> None:
    scores, generated = np.array([0.9, 0.2, 0.4]), np.array([True, False, False])
    resample(scores, generated)
    assert auc_interval(*find_placements(scores, generated)) == pytest.approx((0.025, 1))
    assert tpr_interval(scores, generated) == wilson(1, 1)

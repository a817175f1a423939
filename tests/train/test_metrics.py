from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from ffd_runtime.model.card import ModelCard, Provenance
from ffd_train.calibrate import calibrate, fit_temperature, fit_threshold, fit_unsure_band
from ffd_train.classification_metrics import (
    equal_error_rates,
    expected_calibration_error,
    find_placements,
    measure_reliability,
    measure_scores,
)

CARD = ModelCard("m", "tiny", Provenance("0"), threshold=0.5, unsure=(0.4, 0.6))

labelled = st.lists(st.tuples(st.floats(-12, 12), st.booleans()), min_size=4, max_size=60).filter(
    lambda rows: len({truth for _, truth in rows}) == 2
)


def arrays(rows: list[tuple[float, bool]]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    margin = np.array([m for m, _ in rows])
    return np.stack([margin / 2, -margin / 2], 1), np.array([truth for _, truth in rows])


@given(labelled)
def test_a_calibration_is_always_a_valid_card(rows: list[tuple[float, bool]]) -> None:
    logits, generated = arrays(rows)
    fitted = calibrate(logits, generated)
    card = CARD.replace(
        temperature=fitted.temperature, threshold=fitted.threshold, unsure=fitted.unsure
    )
    scores = expit((logits[:, 0] - logits[:, 1]) / fitted.temperature)
    verdicts = np.array([card.verdict(score) for score in scores])
    # Outside the band, at least 99 % of each verdict must be right.
    for verdict, truth in (("generated", generated), ("groundtruth", ~generated)):
        if (verdicts == verdict).any():
            assert truth[verdicts == verdict].mean() >= 0.99


@given(labelled)
def test_metrics_stay_in_their_ranges(rows: list[tuple[float, bool]]) -> None:
    logits, generated = arrays(rows)
    scores = expit((logits[:, 0] - logits[:, 1]) / CARD.temperature)
    report = measure_scores(scores, list(1 - generated), CARD)
    for name, value in report.summary().items():
        if name != "images" and value is not None:
            assert isinstance(value, float)
            assert 0 <= value <= 1


def test_a_perfect_separation_has_no_unsure_band() -> None:
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    generated = np.array([False, False, True, True])
    threshold = fit_threshold(scores, generated)
    assert threshold == pytest.approx(0.5)
    assert fit_unsure_band(scores, generated, threshold, 0.99) == (threshold, threshold)


def test_the_threshold_keeps_the_max_fpr_of_each_source() -> None:
    rng = np.random.default_rng(0)
    generated = np.arange(3000) < 1000
    sources = ["gan"] * 1000 + ["easy"] * 1500 + ["hard"] * 500
    centres = np.repeat([2.0, -3.0, -1.0], [1000, 1500, 500])
    scores = expit(rng.normal(centres, 1.0))
    threshold = fit_threshold(scores, generated, sources, 0.02)
    alarms = {
        name: int((scores[np.array(sources) == name] >= threshold).sum())
        for name in ("easy", "hard")
    }
    assert alarms["hard"] == 10
    assert alarms["easy"] < 30
    # In a combined source, easy photographs hide the hard ones.
    assert fit_threshold(scores, generated, None, 0.02) < threshold


def test_small_sources_are_combined() -> None:
    # Ten sources of 20: separately, a single outlier would determine the threshold.
    scores = np.concatenate([np.full(200, 0.9), np.linspace(0.01, 0.2, 199), [0.8]])
    generated = np.arange(400) < 200
    sources = [None] * 200 + [f"s{i % 10}" for i in range(200)]
    assert fit_threshold(scores, generated, sources, 0.01) < 0.5
    assert fit_threshold(scores, generated, sources, 0.001) > 0.8


def test_verdicts_outside_the_unsure_band_are_reliable() -> None:
    scores = np.concatenate([np.linspace(0.51, 0.6, 10), np.linspace(0.9, 0.99, 200), [0.1]])
    generated = np.array([True, False] * 5 + [True] * 200 + [False])
    low, high = fit_unsure_band(scores, generated, 0.5, 0.99)
    assert low == 0.5
    assert 0.55 < high < 0.9


def test_the_temperature_corrects_overconfidence() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 2, 20_000)
    generated = rng.random(20_000) < expit(truth)
    assert fit_temperature(truth * 3, generated) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("count", [1, 10, 40])
def test_few_images_without_errors_do_not_make_scores_certain(count: int) -> None:
    """Their likelihood has no maximum: without Platt's targets, the temperature falls to 0."""
    rng = np.random.default_rng(count)
    generated = np.arange(2 * count) % 2 == 0
    margin = np.where(generated, 1, -1) * rng.uniform(1, 5, 2 * count)
    scores = expit(margin / fit_temperature(margin, generated))
    confidence = np.where(generated, scores, 1 - scores)
    assert confidence.min() > 0.5
    # About as confident as the number of images allows.
    assert 1 / (count + 2) / 4 < 1 - confidence.mean() < 2 / (count + 2)


def test_known_numbers() -> None:
    scores = np.array([0.9, 0.8, 0.45, 0.3, 0.2, 0.55])
    labels = [0, 0, 0, 1, 1, 1]
    report = measure_scores(scores, labels, CARD, ["a", "a", "b", "c", "c", None])
    assert report.accuracy == pytest.approx(4 / 6)
    assert report.roc_auc == pytest.approx(8 / 9)
    assert report.per_class == {
        "generated": pytest.approx(2 / 3),
        "groundtruth": pytest.approx(2 / 3),
    }
    assert report.per_source["a"] == {"images": 2, "accuracy": 1.0, "roc_auc": 1.0}
    assert report.per_source["b"] == {"images": 1, "accuracy": 0.0, "roc_auc": pytest.approx(2 / 3)}
    assert report.per_source["c"] == {"images": 2, "accuracy": 1.0, "roc_auc": 1.0}
    assert set(report.per_source) == {"a", "b", "c"}
    assert report.decided == pytest.approx(4 / 6)
    assert report.decided_accuracy == 1
    assert report.tpr_at_1_fpr == pytest.approx(2 / 3)
    assert report.eer == pytest.approx(1 / 3)


def test_a_source_is_ranked_against_the_other_class() -> None:
    rng = np.random.default_rng(5)
    labels = np.array([0] * 40 + [1] * 60)
    scores = rng.normal(np.where(labels == 0, 1, 0)).round(1)
    sources = ["gan", "other"] * 20 + ["phone"] * 20 + ["web"] * 20 + ["both"] * 20
    sources[0] = "both"
    found = measure_scores(expit(scores), labels.tolist(), CARD, sources).per_source
    names = np.array(sources)
    for name, part in (
        ("gan", (names == "gan") | (labels == 1)),
        ("web", (names == "web") | (labels == 0)),
        ("both", names == "both"),
    ):
        expected = roc_auc_score(labels[part] == 0, scores[part])
        assert found[name]["roc_auc"] == pytest.approx(expected), name


def test_placements_count_every_pair() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.1, 0.5])
    found, spared = find_placements(scores, np.array([True, True, False, False, False]))
    assert found.tolist() == [3, 2]
    assert spared.tolist() == [1.5, 2, 1.5]


def test_no_decision_has_no_accuracy() -> None:
    report = measure_scores(np.array([0.5, 0.5]), [0, 1], CARD)
    assert report.decided == 0
    assert report.decided_accuracy is None


def test_the_equal_error_rate_is_interpolated() -> None:
    alarms, found = np.array([[0, 0.2, 1], [0, 0, 1]]), np.array([[0, 0.6, 1], [0, 1, 1]])
    assert equal_error_rates(alarms, found) == pytest.approx([1 / 3, 0])


def test_calibration_error_of_calibrated_and_overconfident_scores() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random(50_000)
    generated = rng.random(50_000) < scores
    assert expected_calibration_error(scores, generated) < 0.01
    assert expected_calibration_error(np.full(100, 1.0), np.arange(100) < 70) == pytest.approx(0.3)


def test_reliability_against_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    scores = np.append(rng.random(998), [0.0, 1.0])
    generated = np.append(rng.random(998) < scores[:998] ** 2, [False, True])
    found = measure_reliability(scores, generated)
    assert found.brier == pytest.approx(brier_score_loss(generated, scores))
    assert found.nll == pytest.approx(log_loss(generated, scores), rel=1e-5)
    assert found.ece == expected_calibration_error(scores, generated)
    assert sum(each.images for each in found.bins) == 1000
    assert [each.low for each in found.bins] == [b / 10 for b in range(10)]
    for each in found.bins:
        inside = (scores >= each.low) & ((scores < each.high) | (each.high == 1))
        assert each.score == pytest.approx(scores[inside].mean())
        assert each.generated == pytest.approx(generated[inside].mean())


def test_a_confident_error_has_a_finite_loss() -> None:
    found = measure_reliability(np.array([1.0, 0.0]), np.array([False, True]))
    assert 10 < found.nll < 20
    assert found.brier == 1
    assert [each.images for each in found.bins] == [1, 1]

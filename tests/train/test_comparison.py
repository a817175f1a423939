from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from ffd_runtime.model.card import ModelCard, Provenance
from ffd_train.comparison import compare, delong, describe, mcnemar
from ffd_train.intervals import resample

CARD = ModelCard("m", "tiny", Provenance("0"), threshold=0.5, unsure=(0.4, 0.6))
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def pair(size: int, seed: int, second: float = 1.2) -> tuple[Floats, Floats, Bools]:
    """Correlated scores of two models, the second slightly better, with ties."""
    rng = np.random.default_rng(seed)
    generated = rng.random(size) < 0.4
    shared = rng.normal(size=size)
    scores = [
        1 / (1 + np.exp(-(shared + rng.normal(size=size) + apart * np.where(generated, 1, -1))))
        for apart in (0.8, second)
    ]
    return scores[0].round(2), scores[1].round(2), generated


def slow_delong(first: Floats, second: Floats, generated: Bools) -> tuple[float, float]:
    """z and p by the definition (DeLong et al., 1988), over all pairs of images."""
    components = []
    for scores in (first, second):
        kernel = np.array(
            [
                [1.0 if p > n else 0.5 if p == n else 0.0 for n in scores[~generated]]
                for p in scores[generated]
            ]
        )
        components.append((kernel.mean(1), kernel.mean(0)))
    (v10, v01), (w10, w01) = components
    covariance = np.cov(v10, w10) / len(v10) + np.cov(v01, w01) / len(v01)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (w10.mean() - v10.mean()) / np.sqrt(variance)
    return z, 2 * (1 - norm.cdf(abs(z)))


@pytest.mark.parametrize("seed", range(4))
def test_delong_against_the_definition(seed: int) -> None:
    first, second, generated = pair(120, seed)
    found = delong(first, second, generated)
    assert found.auc == pytest.approx(roc_auc_score(generated, first))
    assert found.other == pytest.approx(roc_auc_score(generated, second))
    z, p = slow_delong(first, second, generated)
    assert found.z == pytest.approx(z)
    assert found.p == pytest.approx(p)


def test_delong_and_the_interval_agree() -> None:
    first, second, generated = pair(400, 7)
    found = delong(first, second, generated)
    gap = compare(first, second, generated, CARD, CARD).differences["roc_auc"]
    assert gap.difference == pytest.approx(found.other - found.auc)
    assert found.z is not None
    deviation = (found.other - found.auc) / found.z
    assert gap.interval is not None
    low, high = gap.interval
    assert (high - low) / (2 * norm.ppf(0.975)) == pytest.approx(deviation)


def test_equal_models_differ_by_chance_in_one_of_twenty() -> None:
    p = [delong(*pair(150, seed, second=0.8)).p for seed in range(400)]
    assert 0.025 < np.mean([each is not None and each < 0.05 for each in p]) < 0.085


def test_impossible_tests_give_a_reason() -> None:
    truth = np.array([True, True, False, False])
    good, bad = np.array([0.9, 0.8, 0.1, 0.2]), np.array([0.1, 0.2, 0.9, 0.8])
    assert delong(good, good, truth).p == 1
    assert delong(good, bad, truth).p is None
    one = np.array([True, False, False, False])
    assert delong(good, bad, one).p is None
    lines = describe(compare(good, bad, truth, CARD, CARD), "A", "B")
    assert "cannot be tested because the rank of every image differs by the same amount" in lines[0]
    lines = describe(compare(good, bad, one, CARD, CARD), "A", "B")
    assert "cannot be tested because a class has only one image" in lines[0]


def test_a_small_difference_of_good_models_on_many_images_is_tested() -> None:
    generated = np.arange(200_000) < 100_000
    perfect = np.where(generated, 0.9, 0.1)
    nearly = perfect.copy()
    nearly[0], nearly[-1] = 0.5, 0.5
    found = delong(perfect, nearly, generated)
    assert found.auc - found.other == pytest.approx(5e-11)
    assert found.z == pytest.approx(-1 / np.sqrt(2), rel=1e-4)
    assert found.p is not None


def test_two_models_without_an_error_are_not_certainly_equal() -> None:
    truth = np.arange(8) < 4
    perfect = np.where(truth, 0.9, 0.1)
    drawn = resample(perfect, truth)
    found = compare(perfect, perfect, truth, CARD, CARD, (drawn, drawn)).differences
    for name in ("roc_auc", "accuracy"):
        low, high = found[name].interval or (0, 0)
        assert low < -0.3 < 0.3 < high
    assert found["eer"].interval is None
    assert set(found) == {"roc_auc", "accuracy", *drawn}


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 9), (5, 5), (30, 12)])
def test_mcnemar_against_scipy(only_first: int, only_second: int) -> None:
    right = np.array([True] * only_first + [False] * only_second + [True, False] * 20)
    also = np.array([False] * only_first + [True] * only_second + [True, False] * 20)
    found = mcnemar(right, also)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    differ = only_first + only_second
    assert found.p == (pytest.approx(binomtest(only_second, differ).pvalue) if differ else 1)


def test_each_model_decides_by_its_own_threshold() -> None:
    scores = np.array([0.4, 0.45, 0.1, 0.2])
    truth = np.array([True, True, False, False])
    lower = CARD.replace(threshold=0.3, unsure=(0.3, 0.3))
    found = compare(scores, scores, truth, CARD, lower)
    assert found.differences["accuracy"].first == 0.5
    assert found.differences["accuracy"].second == 1
    assert (found.accuracy.only_first, found.accuracy.only_second) == (0, 2)
    assert found.auc.p == 1


def test_the_description_names_the_better_model() -> None:
    first, second, generated = pair(600, 3)
    ranking, decided = describe(compare(first, second, generated, CARD, CARD), "old", "new")
    assert ranking.startswith("new is better at ranking: ROC-AUC 0.")
    assert "DeLong's test, p" in ranking
    assert decided.startswith("new is better at its threshold: ")
    ranking, decided = describe(compare(second, first, generated, CARD, CARD), "old", "new")
    assert ranking.startswith("old is better at ranking")
    same = describe(compare(first, first, generated, CARD, CARD), "old", "new")
    assert same[0].startswith("No significant difference in ranking")
    assert same[1].startswith("No significant difference at the thresholds")
    assert same[1].endswith("p = 1.")

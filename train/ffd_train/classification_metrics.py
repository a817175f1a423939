"""What a model is worth on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ffd_runtime.model.card import ModelCard

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """Metrics of one evaluation; generated is the positive class.

    Attributes:
        images: how many.
        accuracy: two-way, at the card's threshold.
        roc_auc: area under the ROC curve.
        average_precision: area under the precision-recall curve.
        eer: rate at which false alarms and misses are equally frequent.
        tpr_at_1_fpr: share of generated faces found where at most 1 % of photographs are called
            generated: of fewer than 100 photographs, none.
        ece: expected calibration error, 15 bins.
        decided: share of images outside the unsure band.
        decided_accuracy: accuracy among them; None if there are none.
        per_class: accuracy of each class.
        per_source: images, accuracy and ROC-AUC of each source, where sources are known; what the
            latter is of, see `find_rivals`.
    """

    images: int
    accuracy: float
    roc_auc: float
    average_precision: float
    eer: float
    tpr_at_1_fpr: float
    ece: float
    decided: float
    decided_accuracy: float | None
    per_class: dict[str, float]
    per_source: dict[str, dict[str, float]]

    def summary(self) -> dict[str, float | int | str | None]:
        """The flat part, as a model card keeps it."""
        flat = asdict(self)
        del flat["per_class"], flat["per_source"]
        return {**flat, **{f"accuracy_{name}": v for name, v in self.per_class.items()}}


def measure(
    logits: Floats,
    labels: Sequence[int],
    card: ModelCard,
    sources: Sequence[str | None] | None = None,
) -> Report:
    """Metrics from logits; the card's temperature is applied here.

    Args:
        logits: [N, 2], in the card's class order.
        labels: [N], 0 generated, 1 groundtruth.
        card: temperature, threshold and unsure band.
        sources: [N], by name, where known.
    """
    scores = expit((logits[:, 0] - logits[:, 1]) / card.temperature)
    return measure_scores(scores, labels, card, sources)


def measure_scores(
    scores: Floats,
    labels: Sequence[int],
    card: ModelCard,
    sources: Sequence[str | None] | None = None,
) -> Report:
    """Metrics from P(generated), as the runtime gives it; otherwise as `measure`."""
    scores = np.asarray(scores, np.float64)
    generated = np.asarray(labels) == 0
    right = (scores >= card.threshold) == generated
    verdicts = np.array([card.verdict(float(score)) for score in scores])
    decided = verdicts != "unsure"
    decided_right = (verdicts == "generated") == generated
    false_alarm, found, _ = roc_curve(generated, scores, drop_intermediate=False)
    return Report(
        images=len(scores),
        accuracy=float(right.mean()),
        roc_auc=float(roc_auc_score(generated, scores)),
        average_precision=float(average_precision_score(generated, scores)),
        eer=equal_error_rate(false_alarm, found),
        tpr_at_1_fpr=float(found[false_alarm <= 0.01].max()),
        ece=expected_calibration_error(scores, generated),
        decided=float(decided.mean()),
        decided_accuracy=float(decided_right[decided].mean()) if decided.any() else None,
        per_class={
            "generated": float(right[generated].mean()),
            "groundtruth": float(right[~generated].mean()),
        },
        per_source=_per_source(scores, generated, right, sources),
    )


def find_placements(scores: Floats, generated: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """How each image stands to those of the other class; equal scores count half.

    The area under the ROC curve is the mean of either, as a share of the other class (Mann and
    Whitney, 1947).

    Args:
        scores: [N], P(generated).
        generated: [N], the truth; both classes.

    Returns:
        Of each generated image, in order, how many photographs score lower; of each photograph, how
        many generated images score higher. Multiples of 0.5, so that their sums are exact.
    """
    positives, negatives = scores[generated], scores[~generated]
    return _count_below(positives, negatives), len(positives) - _count_below(negatives, positives)


def find_rivals(
    own: npt.NDArray[np.bool_], generated: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """The images that the ROC-AUC of one source is of.

    A generated source is set against all photographs, a photographic one against all generated
    faces; one that has both classes against itself.

    Args:
        own: [N], whether an image is of the source.
        generated: [N], the truth.
    """
    if not (own & generated).any():
        return own | generated
    return own if (own & ~generated).any() else own | ~generated


def _count_below(scores: Floats, others: Floats) -> Floats:
    ranked = np.sort(others)
    below: Floats = np.searchsorted(ranked, scores, "left") / 2
    return below + np.searchsorted(ranked, scores, "right") / 2


def equal_error_rate(false_alarm: Floats, found: Floats) -> float:
    """Where the ROC curve meets the line on which misses equal false alarms, interpolated."""
    gap = false_alarm - (1 - found)
    after = int(np.argmax(gap >= 0))
    if after == 0:
        return float(false_alarm[0])
    weight = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(false_alarm[after - 1] + weight * (false_alarm[after] - false_alarm[after - 1]))


def expected_calibration_error(
    scores: Floats, generated: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence (Guo et al., 2017)."""
    index, gap = confidence_gaps(scores, generated, bins)
    sums = np.bincount(index, gap, bins)
    return float(np.abs(sums).sum() / len(scores))


def confidence_gaps(
    scores: Floats, generated: npt.NDArray[np.bool_], bins: int = 15
) -> tuple[npt.NDArray[np.int64], Floats]:
    """The bin of confidence that each image falls in, and its confidence less 1 if it is right.

    Within a bin, their sum is the gap between confidence and accuracy times the images.
    """
    confidence = np.maximum(scores, 1 - scores)
    right = (scores >= 0.5) == generated
    index = np.clip(((confidence - 0.5) * 2 * bins).astype(np.int64), 0, bins - 1)
    return index, confidence - right


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose scores lie in `[low, high)`, the last bin with its end.

    Attributes:
        low: of the scores.
        high: of the scores.
        images: how many.
        score: their mean P(generated).
        generated: the share of them that is generated.
    """

    low: float
    high: float
    images: int
    score: float
    generated: float


@dataclass(frozen=True)
class Reliability:
    """Whether a score is the probability that it says it is.

    Attributes:
        ece: expected calibration error, as in `Report`.
        nll: mean negative log-likelihood, in nats.
        brier: mean squared distance of the scores from the truth (Brier, 1950).
        bins: of P(generated), equally wide; those without an image are left out.
    """

    ece: float
    nll: float
    brier: float
    bins: tuple[ReliabilityBin, ...]


def measure_reliability(
    scores: Floats, generated: npt.NDArray[np.bool_], bins: int = 10
) -> Reliability:
    """Compare scores with how often they come true.

    Args:
        scores: [N], P(generated).
        generated: [N], the truth.
        bins: between 0 and 1.
    """
    index = np.minimum((scores * bins).astype(int), bins - 1)
    found = tuple(
        ReliabilityBin(
            low=int(b) / bins,
            high=(int(b) + 1) / bins,
            images=int((index == b).sum()),
            score=float(scores[index == b].mean()),
            generated=float(generated[index == b].mean()),
        )
        for b in np.unique(index)
    )
    return Reliability(
        ece=expected_calibration_error(scores, generated),
        nll=float(log_losses(scores, generated).mean()),
        brier=float(((scores - generated) ** 2).mean()),
        bins=found,
    )


def log_losses(scores: Floats, generated: npt.NDArray[np.bool_]) -> Floats:
    """Negative log-likelihood of each truth, in nats: [N].

    A float32 softmax rounds to 0 and 1, of which the logarithm would be infinite.
    """
    likelihood = np.where(generated, scores, 1 - scores)
    losses: Floats = -np.log(np.clip(likelihood, 2.0**-24, 1))
    return losses


def _per_source(
    scores: Floats,
    generated: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    sources: Sequence[str | None] | None,
) -> dict[str, dict[str, float]]:
    names, index = np.unique([source or "" for source in sources or ()], return_inverse=True)
    found = {}
    for number, name in enumerate(names):
        if name:
            own = index == number
            rivals = find_rivals(own, generated)
            found[str(name)] = {
                "images": int(own.sum()),
                "accuracy": float(right[own].mean()),
                "roc_auc": float(roc_auc_score(generated[rivals], scores[rivals])),
            }
    return found

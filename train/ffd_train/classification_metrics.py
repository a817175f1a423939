"""Metrics of binary classification on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ffd_runtime.model.card import ModelCard

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """Metrics of one evaluation; generated is the positive class.

    Attributes:
        images: number of images.
        accuracy: accuracy at the card's threshold.
        roc_auc: area under the ROC curve.
        average_precision: area under the precision-recall curve.
        eer: equal error rate.
        tpr_at_1_fpr: TPR at the threshold where at most 1 % of the photographs are classified as
            generated; with fewer than 100 photographs, none of them.
        ece: expected calibration error with 15 bins.
        decided: share of images outside the unsure band.
        decided_accuracy: accuracy of the decided images; None without such images.
        per_class: accuracy of each class.
        per_source: images, accuracy and ROC-AUC of each known source; see `roc_auc_mask`.
        per_family: the same for each known family of generators, such as `gan` and `diffusion`.
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
    per_family: dict[str, dict[str, float]]

    def summary(self) -> dict[str, float | int | str | None]:
        """Return the metrics for a model card, without those by source and family."""
        flat = asdict(self)
        del flat["per_class"], flat["per_source"], flat["per_family"]
        return {**flat, **{f"accuracy_{name}": v for name, v in self.per_class.items()}}


def measure_scores(
    scores: Floats,
    labels: Sequence[int],
    card: ModelCard,
    sources: Sequence[str | None] | None = None,
    families: Sequence[str | None] | None = None,
) -> Report:
    """Compute metrics.

    Args:
        scores: [N], P(generated).
        labels: [N], 0 generated, 1 groundtruth.
        card: threshold and unsure band.
        sources: [N], names of the sources, where known.
        families: [N], families of the generated images, where known.
    """
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
        eer=float(equal_error_rates(false_alarm[None], found[None])[0]),
        tpr_at_1_fpr=float(found[false_alarm <= 0.01].max()),
        ece=expected_calibration_error(scores, generated),
        decided=float(decided.mean()),
        decided_accuracy=float(decided_right[decided].mean()) if decided.any() else None,
        per_class={
            "generated": float(right[generated].mean()),
            "groundtruth": float(right[~generated].mean()),
        },
        per_source=_by_name(scores, generated, right, sources),
        per_family=_by_name(scores, generated, right, families),
    )


def find_placements(scores: Floats, generated: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Compute the placement of each image among those of the other class; ties count half.

    The area under the ROC curve is the mean placement of either class, divided by the size of the
    other (Mann and Whitney, 1947).

    Args:
        scores: [N], P(generated).
        generated: [N], true for generated images; both classes.

    Returns:
        For each generated image, the number of photographs with a lower score; for each photograph,
        the number of generated images with a higher score. All are multiples of 0.5, so that their
        sums are exact.
    """
    ranks = rankdata(scores)
    found, spared = (ranks[own] - rankdata(scores[own]) for own in (generated, ~generated))
    return found, len(found) - spared


def roc_auc_mask(
    own: npt.NDArray[np.bool_], generated: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Select the images for the ROC-AUC of one source.

    A generated source is compared with all photographs, and a photographic source with all
    generated images. A source with both classes is used without other images.

    Args:
        own: [N], true for images of the source.
        generated: [N], true for generated images.
    """
    if not (own & generated).any():
        return own | generated
    return own if (own & ~generated).any() else own | ~generated


def equal_error_rates(false_alarm: Floats, found: Floats) -> Floats:
    """Return the rates, [N], at which FPR and FNR are equal, interpolated on ROC curves.

    Args:
        false_alarm: [N, points], FPR of each curve, from 0 to 1.
        found: [N, points], TPR of each curve, from 0 to 1.
    """
    gap = false_alarm - (1 - found)
    after = np.argmax(gap >= 0, axis=1)
    # A curve begins with a gap of -1, so an earlier point exists.
    rows, before = np.arange(len(gap)), after - 1
    weight = -gap[rows, before] / (gap[rows, after] - gap[rows, before])
    low, high = false_alarm[rows, before], false_alarm[rows, after]
    rates: Floats = low + weight * (high - low)
    return rates


def expected_calibration_error(
    scores: Floats, generated: npt.NDArray[np.bool_], bins: int = 15
) -> float:
    """Return the expected calibration error with equal-width bins (Guo et al., 2017)."""
    index, gap = confidence_gaps(scores, generated, bins)
    sums = np.bincount(index, gap, bins)
    return float(np.abs(sums).sum() / len(scores))


def confidence_gaps(
    scores: Floats, generated: npt.NDArray[np.bool_], bins: int = 15
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return each image's confidence bin, and its confidence minus 1 if it is right.

    The sum over a bin is the number of images times the gap between confidence and accuracy.
    """
    confidence = np.maximum(scores, 1 - scores)
    right = (scores >= 0.5) == generated
    index = np.clip(((confidence - 0.5) * 2 * bins).astype(np.int64), 0, bins - 1)
    return index, confidence - right


@dataclass(frozen=True)
class ReliabilityBin:
    """The images with scores in `[low, high)`; the last bin includes `high`.

    Attributes:
        low: lower end of the bin.
        high: upper end of the bin.
        images: number of images.
        score: mean P(generated).
        generated: share of generated images.
    """

    low: float
    high: float
    images: int
    score: float
    generated: float


@dataclass(frozen=True)
class Reliability:
    """Calibration metrics, and the bins of a reliability diagram.

    Attributes:
        ece: expected calibration error, as in `Report`.
        nll: mean negative log-likelihood, in nats.
        brier: Brier score (1950).
        bins: equal-width bins of P(generated) that contain an image.
    """

    ece: float
    nll: float
    brier: float
    bins: tuple[ReliabilityBin, ...]


def measure_reliability(
    scores: Floats, generated: npt.NDArray[np.bool_], bins: int = 10
) -> Reliability:
    """Compute calibration metrics.

    Args:
        scores: [N], P(generated).
        generated: [N], true for generated images.
        bins: number of bins.
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
    """Compute the negative log-likelihood of each label, in nats: [N].

    Scores are clipped, because a float32 softmax may round to 0.
    """
    likelihood = np.where(generated, scores, 1 - scores)
    losses: Floats = -np.log(np.clip(likelihood, 2.0**-24, 1))
    return losses


def _by_name(
    scores: Floats,
    generated: npt.NDArray[np.bool_],
    right: npt.NDArray[np.bool_],
    names: Sequence[str | None] | None,
) -> dict[str, dict[str, float]]:
    """Return images, accuracy and ROC-AUC of the images of each known name."""
    known, index = np.unique([name or "" for name in names or ()], return_inverse=True)
    found = {}
    for number, name in enumerate(known):
        if name:
            own = index == number
            rivals = roc_auc_mask(own, generated)
            found[str(name)] = {
                "images": int(own.sum()),
                "accuracy": float(right[own].mean()),
                "roc_auc": float(roc_auc_score(generated[rivals], scores[rivals])),
            }
    return found

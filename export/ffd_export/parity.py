"""Compare the results of an exported model with its source's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ffd_runtime.core.errors import ModelError
from ffd_runtime.core.pipeline import Prepared, infer_prepared
from ffd_runtime.core.results import Result
from ffd_runtime.model.backends import Backend
from ffd_runtime.model.card import Metric, ModelCard
from ffd_runtime.model.within_memory import WithinMemory

from .sample_images import SampleImages

NOT_VERIFIED: dict[str, Metric] = {"verified": "not verified"}


@dataclass(frozen=True)
class Limits:
    """Largest differences from the source; None for no limit.

    Attributes:
        largest: largest |Δp|, where p is P(generated).
        flips: verdicts that differ.
        accuracy: loss of accuracy. Without labels, the share of two-way decisions that differ,
            which is never smaller.
    """

    largest: float | None = None
    flips: int | None = None
    accuracy: float | None = None


LIMITS = {
    "fp32": Limits(largest=1e-4, flips=0),
    "fp16": Limits(largest=1e-2),
    "int8": Limits(accuracy=0.005),
}


@dataclass(frozen=True)
class Parity:
    """Differences between two models on the same images.

    Attributes:
        images: number of images.
        largest: largest |Δp|, where p is P(generated).
        mean: mean |Δp|.
        flips: number of images with different verdicts.
        decisions: number of images with different two-way decisions at the threshold.
        worst: the image with the largest |Δp|.
        accuracy: of the reference and of the export; None without labels.
        auc: area under the ROC curve of the reference and of the export; None without labels.
    """

    images: int
    largest: float
    mean: float
    flips: int
    decisions: int
    worst: str
    accuracy: tuple[float, float] | None = None
    auc: tuple[float, float] | None = None

    @property
    def accuracy_lost(self) -> float:
        """Loss of accuracy; without labels, its upper bound."""
        if self.accuracy is None:
            return self.decisions / self.images
        return self.accuracy[0] - self.accuracy[1]

    def failures(self, precision: str) -> list[str]:
        """Return a message for each exceeded limit of a precision."""
        limits = LIMITS[precision]
        found = []
        if limits.largest is not None and not self.largest <= limits.largest:
            found.append(
                f"largest |Δp| {self.largest:.2e} (limit {limits.largest:g}, on {self.worst})"
            )
        if limits.flips is not None and self.flips > limits.flips:
            found.append(f"{self.flips} verdict flips (limit {limits.flips})")
        # Rounding must not exceed the limit: 0.985 - 0.980 is slightly more than 0.005.
        if limits.accuracy is not None and not self.accuracy_lost <= limits.accuracy + 1e-9:
            what = "accuracy lost" if self.accuracy else "two-way decisions changed"
            lost = 100 * self.accuracy_lost
            found.append(f"{lost:.2f} points of {what} (limit {100 * limits.accuracy:g})")
        if not math.isfinite(self.largest) and not found:
            found.append(f"no probability for {self.worst}")
        return found

    def require(self, precision: str, hint: str = "") -> None:
        """Enforce the limits of a precision.

        Args:
            precision: `fp32`, `fp16` or `int8`.
            hint: follows the exceeded limits in the message.

        Raises:
            ModelError: a limit is exceeded.
        """
        failures = self.failures(precision)
        if failures:
            raise ModelError(
                f"the exported {precision} model differs from the checkpoint on {self.images} "
                f"images: {', '.join(failures)}; {hint}nothing was written"
            )

    def summary(self) -> dict[str, Metric]:
        """Return the entry of the model card."""
        flat: dict[str, Metric] = {
            "verified": "verified",
            "images": self.images,
            "largest_difference": self.largest,
            "mean_difference": self.mean,
            "verdict_flips": self.flips,
            "decision_flips": self.decisions,
        }
        if self.accuracy and self.auc:
            flat["accuracy_reference"], flat["accuracy"] = self.accuracy
            flat["roc_auc_reference"], flat["roc_auc"] = self.auc
        return flat


def classify(backend: Backend, images: SampleImages, batch: int = 8) -> list[Result]:
    """Classify images as the runtime does; return one result for each."""
    backend = WithinMemory.of(backend)
    rows: list[Result] = []
    for start, pixels in zip(range(0, len(images), batch), images.batches(batch), strict=True):
        sources = images.sources[start : start + batch]
        rows += infer_prepared(list(map(Prepared, sources, pixels)), backend)
    return rows


def classify_and_close(backend: Backend, images: SampleImages) -> list[Result]:
    """Classify images, then close the backend."""
    with closing(backend):
        return classify(backend, images)


def difference(a: Result, b: Result) -> float:
    """Return |Δp|, or infinity if a probability is missing."""
    if a.score is None or b.score is None:
        return math.inf
    return abs(a.score - b.score)


def compare(
    reference: Sequence[Result],
    exported: Sequence[Result],
    images: SampleImages,
    card: ModelCard,
) -> Parity:
    """Compare the results of two models for the same images.

    Args:
        reference: results of the source.
        exported: results of the export.
        images: that both classified.
        card: gives the threshold of two-way decisions.
    """
    differences = [difference(a, b) for a, b in zip(reference, exported, strict=True)]
    scores = [np.array([math.nan if r.score is None else r.score for r in rows], np.float64)
              for rows in (reference, exported)]  # fmt: skip
    decided = [score >= card.threshold for score in scores]
    largest = max(differences)
    accuracy = auc = None
    if images.labelled and not any(np.isnan(score).any() for score in scores):
        generated = np.array(images.labels) == 0
        accuracy = (_mean(decided[0] == generated), _mean(decided[1] == generated))
        auc = (roc_auc(generated, scores[0]), roc_auc(generated, scores[1]))
    return Parity(
        images=len(images),
        largest=largest,
        mean=sum(differences) / len(differences),
        flips=sum(a.label != b.label for a, b in zip(reference, exported, strict=True)),
        decisions=int((decided[0] != decided[1]).sum()),
        worst=images.sources[differences.index(largest)],
        accuracy=accuracy,
        auc=auc,
    )


def roc_auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    """Area under the ROC curve, from the rank sum of Mann and Whitney (1947); ties count half.

    Devices that build engines have no scikit-learn.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    found = int(positive.sum())
    rank_sum = float(ranks[positive].sum()) - found * (found + 1) / 2
    return rank_sum / (found * (len(scores) - found))


def _mean(values: npt.NDArray[np.bool_]) -> float:
    return float(values.mean())

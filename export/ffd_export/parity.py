"""Compare the results of an exported model with its source's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


@dataclass(frozen=True)
class Limits:
    """Limits of `Parity.largest`, `flips` and `accuracy_lost`; None for no limit."""

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
        """Loss of accuracy; without labels, the share of changed decisions, its upper bound."""
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

    def require(self, precision: str, explain: Callable[[], str] = lambda: "") -> None:
        """Enforce the limits of a precision.

        Raises:
            ModelError: a limit is exceeded; the message contains the explanation.
        """
        failures = self.failures(precision)
        if failures:
            raise ModelError(
                f"the exported {precision} model differs from its source on {self.images} "
                f"images: {', '.join(failures)}; {explain()}nothing was written"
            )


def summarise(parity: Parity | None) -> dict[str, Metric]:
    """Return the entry of the model card; None stands for a model that is not verified."""
    if parity is None:
        return {"verified": "not verified"}
    flat: dict[str, Metric] = {
        "verified": "verified",
        "images": parity.images,
        "largest_difference": parity.largest,
        "mean_difference": parity.mean,
        "verdict_flips": parity.flips,
        "decision_flips": parity.decisions,
    }
    if parity.accuracy and parity.auc:
        flat["accuracy_reference"], flat["accuracy"] = parity.accuracy
        flat["roc_auc_reference"], flat["roc_auc"] = parity.auc
    return flat


def classify(backend: Backend, images: SampleImages) -> list[Result]:
    """Classify images as the runtime does; return one result for each."""
    backend = WithinMemory.of(backend)
    sources = iter(images.sources)
    rows: list[Result] = []
    for pixels in images.batches():
        rows += infer_prepared([Prepared(next(sources), image) for image in pixels], backend)
    return rows


def compare(
    reference: Sequence[Result], exported: Sequence[Result], images: SampleImages, card: ModelCard
) -> Parity:
    """Compare the results of a source and its export for the same images.

    The card gives the threshold of two-way decisions.
    """
    scores = np.array([[r.score for r in rows] for rows in (reference, exported)], np.float64)
    differences = measure_differences(reference, exported)
    decided = scores >= card.threshold
    accuracy = auc = None
    if images.labelled and not np.isnan(scores).any():
        generated = np.array(images.labels) == 0
        before, after = (decided == generated).mean(1)
        accuracy = (float(before), float(after))
        auc = (roc_auc(generated, scores[0]), roc_auc(generated, scores[1]))
    return Parity(
        images=len(images),
        largest=max(differences),
        mean=sum(differences) / len(differences),
        flips=sum(a.label != b.label for a, b in zip(reference, exported, strict=True)),
        decisions=int((decided[0] != decided[1]).sum()),
        worst=images.sources[differences.index(max(differences))],
        accuracy=accuracy,
        auc=auc,
    )


def measure_differences(reference: Sequence[Result], exported: Sequence[Result]) -> list[float]:
    """Return |Δp| of each image, or infinity if a probability is missing."""
    return [
        math.inf if a.score is None or b.score is None else abs(a.score - b.score)
        for a, b in zip(reference, exported, strict=True)
    ]


def roc_auc(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    """Area under the ROC curve, from the rank sum of Mann and Whitney (1947); ties count half.

    Devices that build engines have no scikit-learn.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    found = int(positive.sum())
    rank_sum = float(ranks[positive].sum()) - found * (found + 1) / 2
    return rank_sum / (found * (len(scores) - found))

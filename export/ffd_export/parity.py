"""Does an exported file say the same as the checkpoint that it was made from?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ffd_runtime.backends import Backend
from ffd_runtime.classifier import Classifier
from ffd_runtime.errors import DataError, ModelError
from ffd_runtime.results import Result
from ffd_runtime.sources import Item

# Largest allowed |Δp| by precision, and how many verdicts may differ.
LIMITS = {"fp32": (1e-4, 0)}


@dataclass(frozen=True)
class Parity:
    """How far two models are apart on the same images.

    Attributes:
        images: how many at least one of them could classify.
        largest: largest |Δp|, p being P(generated).
        mean: mean |Δp|.
        flips: images whose verdict differs.
        worst: the image of the largest |Δp|.
    """

    images: int
    largest: float
    mean: float
    flips: int
    worst: str

    def require(self, precision: str) -> None:
        """Enforce the limits of a precision.

        Raises:
            ModelError: they are exceeded.
        """
        limit, flips = LIMITS[precision]
        if self.largest > limit or self.flips > flips:
            raise ModelError(
                f"the exported {precision} model differs from the checkpoint: largest |Δp| "
                f"{self.largest:.2e} (limit {limit:g}, on {self.worst}), {self.flips} verdict "
                f"flips (limit {flips}) on {self.images} images; nothing was written"
            )

    def summary(self) -> dict[str, float | int | str | None]:
        """As the model card keeps it."""
        return {
            "images": self.images,
            "largest_difference": self.largest,
            "mean_difference": self.mean,
            "verdict_flips": self.flips,
        }


def compare(reference: Backend, exported: Backend, sources: Sequence[str]) -> Parity:
    """Classify the same images with both.

    Args:
        reference: the checkpoint.
        exported: the file.
        sources: paths of images.

    Raises:
        DataError: not one of them can be read.
    """
    pairs = [
        (a.source, _difference(a, b), a.label != b.label)
        for a, b in zip(_rows(reference, sources), _rows(exported, sources), strict=True)
        if a.score is not None or b.score is not None
    ]
    if not pairs:
        raise DataError("none of the images to verify with can be read: give others by --verify")
    differences = [difference for _, difference, _ in pairs]
    largest = max(differences)
    return Parity(
        images=len(pairs),
        largest=largest,
        mean=sum(differences) / len(differences),
        flips=sum(flip for *_, flip in pairs),
        worst=pairs[differences.index(largest)][0],
    )


def _difference(a: Result, b: Result) -> float:
    """|Δp|; where only one of the two gives a probability, no number is large enough."""
    if a.score is None or b.score is None:
        return math.inf
    return abs(a.score - b.score)


def _rows(backend: Backend, sources: Sequence[str]) -> Iterator[Result]:
    return Classifier(backend).classify_items(Item(source) for source in sources)

"""Robustness: metrics under compression, resizing, blur, noise and screenshots."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import DataError, InputError, ModelError
from ffd_runtime.core.ordered_map import map_in_order
from ffd_runtime.core.pipeline import Prepared, infer_prepared
from ffd_runtime.core.text import printable
from ffd_runtime.image.decode import Image, decode
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.inputs import Item
from ffd_runtime.model.card import ModelCard

from . import launder
from .classification_metrics import Floats, find_placements, measure_scores
from .intervals import Interval, auc_interval, tpr_interval, wilson


@dataclass(frozen=True)
class Perturbation:
    """A change to every image.

    Attributes:
        name: name in JSON.
        label: name in tables.
        apply: maps uint8 [H, W, 3], BGR, to the same without modifying its argument.
    """

    name: str
    label: str
    apply: Callable[[Image], Image]


def _noise(image: Image, deviation: float) -> Image:
    # Seeded by content: the noise does not depend on order or sample, and all levels share it.
    seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8])
    return launder.noise(image, deviation, np.random.default_rng(seed))


def _vary(
    name: str, label: str, apply: Callable[..., Image], argument: str, values: tuple[float, ...]
) -> list[Perturbation]:
    return [
        Perturbation(f"{name}-{v:g}", label.format(f"{v:g}"), partial(apply, **{argument: v}))
        for v in values
    ]


PERTURBATIONS = (
    *_vary("jpeg", "JPEG {}", launder.jpeg, "quality", (95, 80, 70, 50, 30)),
    *_vary("webp", "WebP {}", launder.webp, "quality", (80, 50)),
    *_vary("resize", "resize {}", launder.rescale, "factor", (0.75, 0.5, 0.25)),
    *_vary("blur", "blur {} px", launder.blur, "sigma", (1, 2, 3)),
    *_vary("noise", "noise {}", _noise, "deviation", (5, 10, 20)),
    *_vary("brightness", "brightness {}", launder.brightness, "factor", (0.6, 0.8, 1.25, 1.5)),
    Perturbation("screenshot", "screenshot", launder.screenshot),
)

CLEAN = "clean"


@dataclass(frozen=True)
class Cell:
    """Metrics under one perturbation; see `Report` and `Perturbation`.

    Attributes:
        name: name of the perturbation, or `CLEAN`.
        scores: [N], P(generated) of each image.
        tpr_at_1_fpr: TPR at 1 % FPR; its threshold is determined on the perturbed images.
        false_alarms: FPR at the card's threshold.
        misses: FNR at the card's threshold.
        intervals: intervals of these five metrics.
        per_source: images, accuracy, interval of the accuracy, and ROC-AUC of each known source.
        per_family: the same for each known family of generators.
    """

    name: str
    label: str
    scores: Floats
    images: int
    roc_auc: float
    accuracy: float
    tpr_at_1_fpr: float
    false_alarms: float
    misses: float
    intervals: dict[str, Interval]
    per_source: dict[str, dict[str, Any]]
    per_family: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, object]:
        """Return the cell as JSON types, without the scores."""
        return {key: value for key, value in vars(self).items() if key not in ("name", "scores")}


def sweep(
    classifier: Classifier,
    items: Sequence[Item],
    advance: Callable[[], None] = lambda: None,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
) -> dict[str, Floats]:
    """Score every image under every perturbation.

    An image is decoded once, perturbed, and processed like in the runtime. Workers prefetch at most
    two images each.

    Args:
        classifier: the model.
        items: readable images.
        advance: called after every image.
        perturbations: the perturbations.

    Returns:
        P(generated) of each image, [N], by the perturbation's name.

    Raises:
        DataError: an image cannot be read any more, or a codec does not support its size.
        ModelError: the model returned no probability.
    """
    work = partial(_perturb, classifier=classifier, perturbations=perturbations)
    scores: list[float] = []
    waiting: list[Prepared] = []
    with ThreadPoolExecutor(classifier.workers, "ffd-perturb") as pool:
        for prepared in map_in_order(pool, work, items, ahead=2 * classifier.workers):
            waiting += prepared
            while len(waiting) >= classifier.batch:
                scores += _infer(waiting[: classifier.batch], classifier)
                del waiting[: classifier.batch]
            advance()
    scores += _infer(waiting, classifier)
    table = np.array(scores).reshape(len(items), len(perturbations))
    return {p.name: table[:, i].copy() for i, p in enumerate(perturbations)}


def _perturb(
    item: Item, classifier: Classifier, perturbations: Sequence[Perturbation]
) -> list[Prepared]:
    """Return the network's inputs for one image under every perturbation."""
    spec = classifier.card.preprocess
    try:
        # At full size: with a reduced JPEG decode, the effect of a perturbation would depend on
        # the file's format and size.
        image = decode(item.read(), classifier.max_pixels, at_least=0)
    except InputError as error:
        name = printable(item.source)
        raise DataError(f"{name} can no longer be read: {error.message}") from None
    prepared = []
    for perturbation in perturbations:
        try:
            changed = perturbation.apply(image)
        except cv2.error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(
                f"{printable(item.source)}: {perturbation.label} does not support an image of "
                f"{size} pixels: remove it"
            ) from None
        prepared.append(Prepared(item.source, preprocess(changed, spec)))
    return prepared


def _infer(prepared: list[Prepared], classifier: Classifier) -> list[float]:
    scores = []
    for result in infer_prepared(prepared, classifier.backend) if prepared else ():
        if result.error or result.score is None:
            reason = result.error.message if result.error else "no score"
            raise ModelError(f"{printable(result.source)}, perturbed: {reason}")
        scores.append(result.score)
    return scores


def with_intervals(groups: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Add the interval of the accuracy to each source or family of a report."""
    return {
        name: {
            **row,
            "interval": wilson(round(row["accuracy"] * row["images"]), int(row["images"])),
        }
        for name, row in groups.items()
    }


def measure_cell(
    name: str,
    label: str,
    scores: Floats,
    labels: Sequence[int],
    card: ModelCard,
    sources: Sequence[str | None],
    families: Sequence[str | None] | None = None,
) -> Cell:
    """Compute the metrics of one cell, with their intervals; as `measure_scores`."""
    report = measure_scores(scores, labels, card, sources, families)
    generated = np.asarray(labels) == 0
    positive = scores >= card.threshold
    false_alarms, misses = positive[~generated], ~positive[generated]
    return Cell(
        name,
        label,
        scores,
        len(scores),
        report.roc_auc,
        report.accuracy,
        report.tpr_at_1_fpr,
        float(false_alarms.mean()),
        float(misses.mean()),
        {
            "roc_auc": auc_interval(*find_placements(scores, generated)),
            "accuracy": wilson(round(report.accuracy * len(scores)), len(scores)),
            "tpr_at_1_fpr": tpr_interval(scores, generated),
            "false_alarms": wilson(int(false_alarms.sum()), len(false_alarms)),
            "misses": wilson(int(misses.sum()), len(misses)),
        },
        with_intervals(report.per_source),
        with_intervals(report.per_family),
    )

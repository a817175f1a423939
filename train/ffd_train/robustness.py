"""What is left of a model when its pictures were compressed, resized, blurred or captured."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import DataError, InputError, ModelError
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
    """One thing that is done to every picture.

    Attributes:
        name: for programs.
        label: for people.
        apply: uint8 [H, W, 3], BGR, to the same; the picture itself is never changed.
    """

    name: str
    label: str
    apply: Callable[[Image], Image]


def _noise(image: Image, deviation: float) -> Image:
    # By content, so that it is the same in every run, order and sample; the levels share a pattern.
    seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8])
    return launder.noise(image, deviation, np.random.default_rng(seed))


def _each(
    name: str, label: str, apply: Callable[..., Image], argument: str, values: tuple[float, ...]
) -> list[Perturbation]:
    return [
        Perturbation(f"{name}-{v:g}", label.format(f"{v:g}"), partial(apply, **{argument: v}))
        for v in values
    ]


PERTURBATIONS = (
    *_each("jpeg", "JPEG {}", launder.jpeg, "quality", (95, 80, 70, 50, 30)),
    *_each("webp", "WebP {}", launder.webp, "quality", (80, 50)),
    *_each("resize", "resize {}", launder.rescale, "factor", (0.75, 0.5, 0.25)),
    *_each("blur", "blur {} px", launder.blur, "sigma", (1, 2, 3)),
    *_each("noise", "noise {}", _noise, "deviation", (5, 10, 20)),
    *_each("brightness", "brightness {}", launder.brightness, "factor", (0.6, 0.8, 1.25, 1.5)),
    Perturbation("screenshot", "screenshot", launder.screenshot),
)

CLEAN = "clean"


@dataclass(frozen=True)
class Cell:
    """What a model is worth under one perturbation.

    Attributes:
        name: of the perturbation; `CLEAN` for the pictures as they are.
        label: for people.
        scores: [N], P(generated) of each image.
        images: how many.
        roc_auc: see `Report`, as for the two below.
        accuracy: at the card's threshold.
        tpr_at_1_fpr: the threshold for it chosen on the perturbed pictures.
        false_alarms: share of photographs called generated, at the card's threshold.
        misses: share of generated faces called photographs.
        intervals: of each of the five.
        per_source: images, accuracy, its interval, and ROC-AUC, of each source that is known.
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

    def to_json(self) -> dict[str, object]:
        """The cell as JSON types, without its scores."""
        return {key: value for key, value in vars(self).items() if key not in ("name", "scores")}


def sweep(
    classifier: Classifier,
    items: Sequence[Item],
    advance: Callable[[], None] = lambda: None,
    perturbations: Sequence[Perturbation] = PERTURBATIONS,
) -> dict[str, Floats]:
    """Score every picture under every perturbation.

    A picture is decoded once, perturbed, and from there on goes the runtime's way. Workers prepare
    what comes next; at most two pictures a worker are held.

    Args:
        classifier: the model.
        items: pictures that were read before.
        advance: called after every picture.
        perturbations: what is done to them.

    Returns:
        P(generated) of each picture, [N], by the perturbation's name.

    Raises:
        DataError: a picture cannot be read any more, or a codec cannot hold it.
        ModelError: the model gave no probability.
    """
    work = partial(_perturb, classifier=classifier, perturbations=perturbations)
    scores: list[float] = []
    waiting: list[Prepared] = []
    for prepared in _ahead(items, work, classifier.workers):
        waiting += prepared
        while len(waiting) >= classifier.batch:
            scores += _infer(waiting[: classifier.batch], classifier)
            del waiting[: classifier.batch]
        advance()
    scores += _infer(waiting, classifier)
    table = np.array(scores).reshape(len(items), len(perturbations))
    return {p.name: table[:, i].copy() for i, p in enumerate(perturbations)}


def _ahead(
    items: Iterable[Item], work: Callable[[Item], list[Prepared]], workers: int
) -> Iterator[list[Prepared]]:
    """What the workers make of each item, in order."""
    pool = ThreadPoolExecutor(workers, "ffd-perturb")
    pending: deque[Future[list[Prepared]]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _perturb(
    item: Item, classifier: Classifier, perturbations: Sequence[Perturbation]
) -> list[Prepared]:
    """One picture under every perturbation, as the network takes it."""
    spec = classifier.card.preprocess
    try:
        # Whole: what is left of a perturbation after a JPEG's reduced decode would depend on the
        # format and the size of the file.
        image = decode(item.read(), classifier.max_pixels, at_least=0)
    except InputError as error:
        name = printable(item.source)
        raise DataError(f"{name} cannot be read any more: {error.message}") from None
    prepared = []
    for perturbation in perturbations:
        try:
            changed = perturbation.apply(image)
        except cv2.error:
            size = f"{image.shape[1]}x{image.shape[0]}"
            raise DataError(
                f"{printable(item.source)}: {perturbation.label} cannot be done to a picture of "
                f"{size} pixels: leave it out"
            ) from None
        prepared.append(Prepared(item.source, preprocess(changed, spec)))
    return prepared


def _infer(prepared: list[Prepared], classifier: Classifier) -> list[float]:
    scores = []
    for result in infer_prepared(prepared, classifier.backend) if prepared else ():
        if result.error or result.score is None:
            said = result.error.message if result.error else "no score"
            raise ModelError(f"{printable(result.source)}, perturbed: {said}")
        scores.append(result.score)
    return scores


def with_intervals(per_source: dict[str, dict[str, float]]) -> dict[str, dict[str, Any]]:
    """A report's sources, each with the interval of its accuracy."""
    return {
        source: {
            **row,
            "interval": wilson(round(row["accuracy"] * row["images"]), int(row["images"])),
        }
        for source, row in per_source.items()
    }


def measure_cell(
    name: str,
    label: str,
    scores: Floats,
    labels: Sequence[int],
    card: ModelCard,
    sources: Sequence[str | None],
) -> Cell:
    """The figures of one cell, with their intervals.

    Args:
        name: of the perturbation.
        label: for people.
        scores: [N], P(generated).
        labels: [N], 0 generated, 1 groundtruth.
        card: its threshold decides.
        sources: [N], by name, where known.
    """
    report = measure_scores(scores, labels, card, sources)
    generated = np.asarray(labels) == 0
    called = scores >= card.threshold
    false_alarms, misses = called[~generated], ~called[generated]
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
    )

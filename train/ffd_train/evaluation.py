"""Evaluation of checkpoints and exported models through the runtime's pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import BackendError, DataError
from ffd_runtime.core.results import Result
from ffd_runtime.model.backends import READS, Backend, open_backend
from ffd_runtime.model.card import ModelCard

from .classification_metrics import (
    Floats,
    Reliability,
    Report,
    find_placements,
    measure_reliability,
    measure_scores,
    roc_auc_mask,
)
from .face_data import FaceData, Sample
from .intervals import Bools, Interval, auc_interval, percentile, resample, tpr_interval, wilson
from .robustness import CLEAN, PERTURBATIONS, Cell, measure_cell, sweep, with_intervals


@dataclass(frozen=True)
class Evaluation:
    """The result of a model for every image of a data set, and metrics of the readable images."""

    rows: tuple[Result, ...]
    data: FaceData
    card: ModelCard

    @cached_property
    def report(self) -> Report:
        """Metrics of the readable images."""
        labels = [sample.label for sample, _ in self.read]
        return measure_scores(self.scores, labels, self.card, self.sources, self.families)

    @property
    def unreadable(self) -> list[Result]:
        """Results of the unreadable images."""
        return [row for row in self.rows if row.error]

    @cached_property
    def read(self) -> list[tuple[Sample, Result]]:
        """Samples and results of the readable images."""
        pairs = zip(self.data.samples, self.rows, strict=True)
        return [(sample, row) for sample, row in pairs if row.score is not None]

    @cached_property
    def scores(self) -> Floats:
        """P(generated) of each readable image: [N]."""
        return np.array([_score(row) for _, row in self.read])

    @cached_property
    def generated(self) -> Bools:
        """Whether each readable image is generated: [N]."""
        return np.array([sample.label == 0 for sample, _ in self.read])

    @property
    def sources(self) -> list[str | None]:
        """Source of each readable image, where known: [N]."""
        return [sample.source for sample, _ in self.read]

    @property
    def families(self) -> list[str | None]:
        """Family of each readable generated image, where known: [N]."""
        return [sample.family for sample, _ in self.read]

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """Intervals of the report's metrics, by name; None if all resamples are equal."""
        report, count = self.report, len(self.scores)
        decided = round(report.decided * count)
        found: dict[str, Any] = {
            name: percentile(values) for name, values in self.resampled.items()
        }
        found["accuracy"] = wilson(round(report.accuracy * count), count)
        found["roc_auc"] = auc_interval(*find_placements(self.scores, self.generated))
        found["tpr_at_1_fpr"] = tpr_interval(self.scores, self.generated)
        found["decided"] = wilson(decided, count)
        if report.decided_accuracy is not None:
            found["decided_accuracy"] = wilson(round(report.decided_accuracy * decided), decided)
        sizes = {
            "generated": int(self.generated.sum()),
            "groundtruth": int((~self.generated).sum()),
        }
        found["per_class"] = {
            name: wilson(round(share * sizes[name]), sizes[name])
            for name, share in report.per_class.items()
        }
        for key, groups, names in (
            ("per_source", report.per_source, self.sources),
            ("per_family", report.per_family, self.families),
        ):
            rows = with_intervals(groups)
            found[key] = {name: row["interval"] for name, row in rows.items()}
            found[f"{key}_roc_auc"] = {name: self._area_of(name, names) for name in groups}
        return found

    @cached_property
    def resampled(self) -> dict[str, Floats]:
        """Result of `intervals.resample` for these images."""
        return resample(self.scores, self.generated)

    def _area_of(self, group: str, names: list[str | None]) -> Interval:
        own = np.array([name == group for name in names])
        rivals = roc_auc_mask(own, self.generated)
        return auc_interval(*find_placements(self.scores[rivals], self.generated[rivals]))

    @cached_property
    def reliability(self) -> Reliability:
        """Calibration of the scores."""
        return measure_reliability(self.scores, self.generated)

    def worst(self, label: int, most: int) -> list[tuple[Sample, Result]]:
        """Return the misclassified images of a class, most confident first.

        Args:
            label: 0 for false negatives (generated), 1 for false positives (photographs).
            most: maximum number of images.
        """
        wrong = [
            (sample, row)
            for sample, row in self.read
            if sample.label == label and (_score(row) >= self.card.threshold) == (label == 1)
        ]
        wrong.sort(key=lambda pair: _score(pair[1]), reverse=label == 1)
        return wrong[:most]


def _score(row: Result) -> float:
    assert row.score is not None
    return row.score


def open_model(path: Path, device: str = "auto", backend: str = "auto") -> Backend:
    """Open a checkpoint with PyTorch, or an ONNX file or engine with the runtime.

    Args:
        path: a run folder (its saved checkpoint), a checkpoint, an ONNX file or an engine.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        backend: a backend of the runtime; `auto` for a checkpoint.

    Raises:
        ModelError: the file is not a model of ffd.
        BackendError: the backend or device does not start.
    """
    if path.suffix in READS:
        return open_backend(path, backend, device)
    if backend != "auto":
        raise BackendError(
            f"--backend {backend}: {path} is a checkpoint, which only PyTorch runs: remove "
            "--backend, or export the checkpoint"
        )
    import torch

    from ffd_runtime.core.errors import DeviceError
    from ffd_runtime.model.devices import parse_device

    from .checkpoint import load_checkpoint
    from .scoring import TorchBackend

    kind, index = parse_device(device)
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {device}: PyTorch finds {torch.cuda.device_count()} GPUs: give a lower "
            "number, or --device cpu"
        )
    on_gpu = kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
    net, card = load_checkpoint(find_model(path))
    return TorchBackend(net, card, f"cuda:{index}" if on_gpu else "cpu")


def find_model(path: Path) -> Path:
    """Return the file of a model; for a run folder its saved checkpoint."""
    return path / "best.safetensors" if path.is_dir() else path


def evaluate(
    classifier: Classifier,
    data: FaceData,
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Classify labelled images and compute metrics; call `advance` after every image.

    Raises:
        DataError: a class has no readable image.
    """
    rows = []
    for result in classifier.classify_items(data.item(sample) for sample in data.samples):
        rows.append(result)
        advance()
    evaluation = Evaluation(tuple(rows), data, classifier.card)
    if evaluation.generated.all() or not evaluation.generated.any():
        raise DataError(f"{data.root}: a class has no readable image")
    return evaluation


def measure_robustness(
    classifier: Classifier,
    evaluation: Evaluation,
    advance: Callable[[], None] = lambda: None,
    advance_cell: Callable[[], None] = lambda: None,
) -> tuple[Cell, ...]:
    """Measure the readable images under every perturbation; the first cell is clean.

    `advance` is called after every scored image, and `advance_cell` after every measured cell.

    Raises:
        DataError: an image cannot be read any more, or a codec does not support its size.
        ModelError: the model returned no probability.
    """
    items = [evaluation.data.item(sample) for sample, _ in evaluation.read]
    scores = {CLEAN: evaluation.scores, **sweep(classifier, items, advance)}
    labels = {CLEAN: "unchanged", **{each.name: each.label for each in PERTURBATIONS}}
    truth = [sample.label for sample, _ in evaluation.read]
    cells = []
    for name, found in scores.items():
        cells.append(
            measure_cell(
                *(name, labels[name], found, truth, classifier.card),
                *(evaluation.sources, evaluation.families),
            )
        )
        advance_cell()
    return tuple(cells)


def draw_sample(data: FaceData, size: int, seed: int = 0) -> FaceData:
    """Draw a deterministic sample of at least two images, stratified by class and source."""
    rng = np.random.default_rng(seed)
    groups: dict[tuple[int, str], list[Sample]] = {}
    for sample in sorted(data.samples, key=lambda sample: sample.path):
        groups.setdefault((sample.label, sample.source or ""), []).append(sample)
    ranked = []
    for (label, _), group in sorted(groups.items()):
        for rank, at in enumerate(rng.permutation(len(group))):
            # Spread evenly over 0 to 1: the lowest of all groups keep the share of each group.
            ranked.append(((rank + rng.random()) / len(group), label, group[at].path))
    ranked.sort()
    # Include at least one image of each class.
    first = {label: path for _, label, path in reversed(ranked)}
    drawn = set(first.values())
    for _, _, path in ranked:
        if len(drawn) >= size:
            break
        drawn.add(path)
    return replace(data, samples=tuple(s for s in data.samples if s.path in drawn))

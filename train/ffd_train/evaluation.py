"""Evaluation of any model, a checkpoint or an exported file, through the runtime's own path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ffd_runtime.backends import READS, Backend, open_backend
from ffd_runtime.classifier import Classifier
from ffd_runtime.errors import BackendError, DataError
from ffd_runtime.results import Result
from ffd_runtime.sources import Item

from .data import Sample
from .metrics import Report, measure_scores


@dataclass(frozen=True)
class Evaluation:
    """Metrics over the images that could be read, and a row for every image."""

    report: Report
    rows: tuple[Result, ...]

    @property
    def unreadable(self) -> list[Result]:
        """The rows of images that could not be read."""
        return [row for row in self.rows if row.error]


def open_model(path: Path, device: str = "auto", backend: str = "auto") -> Backend:
    """Open a checkpoint with PyTorch, or an ONNX or engine with the runtime.

    Args:
        path: a run's folder (its best checkpoint), a checkpoint, an ONNX or an engine.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        backend: of the runtime, for what it reads; `auto` for a checkpoint.

    Raises:
        ModelError: the file is not one of ours.
        BackendError: the backend or device does not start.
    """
    if path.suffix in READS:
        return open_backend(path, backend, device)
    if backend != "auto":
        raise BackendError(f"--backend {backend}: {path} is a checkpoint, which PyTorch runs")
    import torch

    from ffd_runtime.devices import parse_device
    from ffd_runtime.errors import DeviceError

    from .checkpoint import load_checkpoint
    from .scoring import TorchBackend

    kind, index = parse_device(device)
    if kind == "cuda" and index >= torch.cuda.device_count():
        raise DeviceError(f"--device {device}: PyTorch sees {torch.cuda.device_count()} GPUs")
    on_gpu = kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
    net, card = load_checkpoint(path / "best.safetensors" if path.is_dir() else path)
    return TorchBackend(net, card, f"cuda:{index}" if on_gpu else "cpu")


def evaluate(
    classifier: Classifier,
    root: Path,
    samples: Sequence[Sample],
    advance: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Classify labelled images and measure the verdicts.

    Args:
        classifier: the model.
        root: folder of the data set.
        samples: what to classify; both classes.
        advance: called after every image.

    Raises:
        DataError: no image of one class could be read.
    """
    rows = []
    for result in classifier.classify_items(Item(str(root / s.path)) for s in samples):
        rows.append(result)
        advance()
    read = [(s, r.score) for s, r in zip(samples, rows, strict=True) if r.score is not None]
    if len({sample.label for sample, _ in read}) < 2:
        raise DataError(f"{root}: no readable image of one of the classes")
    report = measure_scores(
        np.array([score for _, score in read]),
        [sample.label for sample, _ in read],
        classifier.card,
        [sample.source for sample, _ in read],
    )
    return Evaluation(report, tuple(rows))

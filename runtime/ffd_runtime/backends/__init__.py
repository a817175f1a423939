"""Inference backends: a new one is one file here and one line in `BACKENDS`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..card import ModelCard
from ..errors import BackendError, ModelError

# Name to module; each module has `open_model(path, device) -> Backend`.
BACKENDS = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt"}
# Which of them reads a file, by its suffix; all others are onnxruntime's.
READS = {".engine": "tensorrt", ".plan": "tensorrt"}

EMBEDDED = Path(__file__).parent.parent / "models" / "embedded.onnx"


@dataclass(frozen=True)
class Outputs:
    """What the graph gives for a batch.

    Attributes:
        probability: float32 [N, 2], in the card's class order.
        heatmap: float32 [N, h, w], evidence for `generated` in log-odds: the sigmoid of a heatmap's
            mean is P(generated).
    """

    probability: npt.NDArray[np.float32]
    heatmap: npt.NDArray[np.float32]


class Backend(Protocol):
    """A model, loaded and ready on a device.

    Attributes:
        card: of the model.
        description: backend, version and device that really run, for people.
    """

    card: ModelCard
    description: str

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch.

        Args:
            images: uint8 [N, size, size, 3], RGB, as `preprocess` returns them, stacked.

        Raises:
            BackendError: inference failed; the message quotes the backend.
        """

    def close(self) -> None:
        """Free the model."""


def open_backend(
    model: str | Path | None = None, backend: str = "auto", device: str = "auto"
) -> Backend:
    """Load a model.

    Args:
        model: an ONNX or engine of `ffd-export`; None for the embedded model.
        backend: `auto` (what reads the file) or a key of `BACKENDS`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: the file is absent or not one of ours.
        BackendError: the backend or device that was asked for does not start.
    """
    path = Path(model) if model is not None else EMBEDDED
    if path.is_dir():
        raise ModelError(f"model {path} is a folder: give its ONNX, such as {path / 'best.onnx'}")
    if not path.is_file():
        raise ModelError(f"model {path}: no such file")
    if path.suffix in (".safetensors", ".pt", ".pth", ".ckpt"):
        raise ModelError(f"model {path} is a checkpoint: make an ONNX of it with ffd-export {path}")
    reader = READS.get(path.suffix, "onnxruntime")
    name = reader if backend == "auto" else backend
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: use auto or one of {', '.join(BACKENDS)}")
    if name != reader:
        raise BackendError(f"--backend {name} does not read {path.name}: {reader} does")
    opened: Backend = import_module(f".{BACKENDS[name]}", __name__).open_model(path, device)
    return opened

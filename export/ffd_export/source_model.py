"""The model that an export starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.backends import Backend, open_backend
from ffd_runtime.model.card import ModelCard

from .export_options import AUTO
from .layers import require_layers
from .onnx_file import read_onnx

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint, traced to an FP32 graph, or an ONNX.

    `content` are the bytes of the ONNX file; None for a checkpoint.
    """

    path: Path
    model: ModelProto
    card: ModelCard
    content: bytes | None = None

    def open(self) -> Backend:
        """Open the model itself, on the CPU: a checkpoint in PyTorch, an ONNX in onnxruntime."""
        if self.content is not None:
            return open_backend(self.path, "onnxruntime", "cpu")
        from ffd_train.evaluation import open_model

        return open_model(self.path, "cpu")

    def require_convertible(self, keep: tuple[str, ...]) -> None:
        """Reject a conversion that this model does not support, before any work.

        Raises:
            ModelError: the model is not FP32, or lacks a layer that is to be kept in FP32.
        """
        if self.card.precision != "fp32":
            raise ModelError(
                f"{self.path} is {self.card.precision} already: give the checkpoint or its FP32 "
                "ONNX to convert it to another precision"
            )
        if keep != AUTO:
            require_layers(self.model, keep)


def is_onnx(path: Path) -> bool:
    """Return whether a model is an ONNX, not a checkpoint."""
    return path.suffix.lower() == ".onnx"


def open_source(path: Path) -> SourceModel:
    """Read a checkpoint or an ONNX. Only a checkpoint needs torch.

    Raises:
        ModelError, CardError: the file is not a model of ffd.
    """
    if is_onnx(path):
        model, card = read_onnx(path)
        return SourceModel(path, model, card, path.read_bytes())
    from .checkpoint_graph import export_checkpoint

    model, card = export_checkpoint(path)
    return SourceModel(path, model, card)

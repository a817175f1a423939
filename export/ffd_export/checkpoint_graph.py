"""Trace a checkpoint with PyTorch's exporter to an ONNX of the graph contract."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ffd_runtime.core.errors import ModelError
from ffd_runtime.core.file_hash import hash_file
from ffd_runtime.model.card import ModelCard

from .layers import name_nodes
from .quiet import quiet

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

OPSET = 18


def export_checkpoint(path: Path) -> tuple[ModelProto, ModelCard]:
    """Convert a checkpoint to an FP32 graph: `image` in; `probability` and `heatmap` out.

    Raises:
        ModelError: the file is not a checkpoint of ffd-train, or the exporter fails.
    """
    import onnx

    from ffd_train.checkpoint import load_checkpoint
    from ffd_train.scoring import ScoringGraph

    net, card = load_checkpoint(path)
    try:
        with quiet():
            model = _trace(ScoringGraph(net, card.temperature), card.preprocess.size)
    except Exception as error:
        raise ModelError(f"{path} cannot be exported by PyTorch: {error}") from error
    name_nodes(model)
    onnx.checker.check_model(model, full_check=True)
    provenance = dataclasses.replace(card.provenance, checkpoint_sha256=hash_file(path))
    return model, card.replace(provenance=provenance, precision="fp32")


def compare_parts(path: Path, pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Measure the error of an exported checkpoint, part by part.

    Args:
        path: of the checkpoint.
        pixels: uint8 [N, size, size, 3], RGB.

    Returns:
        Root mean square error of each part's features, relative to PyTorch's features.
    """
    import onnxruntime as ort
    import torch

    from ffd_train.checkpoint import load_checkpoint
    from ffd_train.stage import PARTS

    class Parts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, image: Any) -> tuple[Any, ...]:
            features = [self.net.scale(image)]
            for part in names:
                features.append(self.net.get_submodule(part)(features[-1]))
            return tuple(features[1:])

    names = PARTS[:-1]
    net, card = load_checkpoint(path)
    graph = Parts().eval()
    with quiet():
        model = _trace(graph, card.preprocess.size, names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = [features.numpy() for features in graph(torch.from_numpy(pixels))]
    return {
        part: float(np.linalg.norm(features - reference) / np.linalg.norm(reference))
        for part, features, reference in zip(
            names, session.run(None, {"image": pixels}), expected, strict=True
        )
    }


def _trace(
    graph: nn.Module, size: int, outputs: tuple[str, ...] = ("probability", "heatmap")
) -> ModelProto:
    """Export with the default exporter of the installed PyTorch."""
    import onnx
    import torch

    names: dict[str, Any] = {
        "input_names": ["image"],
        "output_names": list(outputs),
        "opset_version": OPSET,
    }
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9):
        # Before 2.9, the newer exporter fails on BatchNorm with some versions of onnxscript.
        axes = {name: {0: "N"} for name in ("image", *outputs)}
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/graph.onnx"
            torch.onnx.export(graph, (example,), path, dynamic_axes=axes, dynamo=False, **names)
            return onnx.load(path)
    batch = torch.export.Dim("N", min=1, max=4096)
    program = torch.onnx.export(
        graph, (example,), dynamic_shapes=({0: batch},), dynamo=True, **names
    )
    assert program is not None
    model: ModelProto = program.model_proto
    return model

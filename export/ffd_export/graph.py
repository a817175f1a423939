"""From a checkpoint to the ONNX of the graph contract."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.card import ModelCard
from ffd_runtime.errors import ModelError

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18


def export_checkpoint(path: Path) -> tuple[ModelProto, ModelCard]:
    """Make the FP32 graph of a checkpoint: `image` in; `probability` and `heatmap` out.

    Args:
        path: a `.safetensors` of ffd-train.

    Returns:
        The model, checked, and the card for it.

    Raises:
        ModelError: the file is not one of our checkpoints, or the exporter fails.
    """
    import onnx
    import torch

    from ffd_train.checkpoint import load_checkpoint, sha256_of
    from ffd_train.scoring import ScoringGraph

    net, card = load_checkpoint(path)
    size = card.preprocess.size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    batch = torch.export.Dim("N", min=1, max=4096)
    with _quiet():
        try:
            program = torch.onnx.export(
                ScoringGraph(net, card.temperature),
                (example,),
                input_names=["image"],
                output_names=["probability", "heatmap"],
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                dynamo=True,
            )
        except Exception as error:
            raise ModelError(f"{path} cannot be exported: {error}") from error
    assert program is not None
    model: ModelProto = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    provenance = dataclasses.replace(card.provenance, checkpoint_sha256=sha256_of(path))
    return model, card.replace(provenance=provenance, precision="fp32")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice off the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

"""Models and images to check and to measure with."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.backends.onnx_metadata import read_metadata
from ffd_runtime.model.card import CARD_KEY, ModelCard

RESNEXT, LITE = "resnext101_32x8d", "tf_efficientnet_lite0"


def embedded_card() -> ModelCard:
    """Return the card of the embedded model."""
    return ModelCard.from_json(read_metadata(EMBEDDED)[CARD_KEY])


def varied_images(count: int, size: int = 299) -> npt.NDArray[np.uint8]:
    """Return smooth and grainy images in turn, the same in every call.

    The embedded model's scores of them range from 0.03 to 0.7. Images with equal scores would not
    show a difference.

    Args:
        count: number of images.
        size: side, in pixels.

    Returns:
        uint8 [count, size, size, 3].
    """
    rng = np.random.default_rng(0)
    images = np.empty((count, size, size, 3), np.uint8)
    for image, cells in zip(images, cycle((2, 17, 75, 299)), strict=False):
        coarse = rng.integers(68, 189, (cells, cells, 3), np.uint8)
        image[:] = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return images


def make_network(network: str) -> Any:
    """Return a network with random weights, the same in every call, to measure speed with."""
    import torch

    from ffd_train.networks import build

    torch.manual_seed(0)
    return build(network).eval()


def make_onnx(folder: Path, network: str) -> Path:
    """Export a network with random weights to an FP32 ONNX, once for each folder."""
    from ffd_export.checkpoint_graph import export_checkpoint
    from ffd_export.onnx_file import to_bytes
    from ffd_train.checkpoint import save_checkpoint

    path = folder / f"{network}.onnx"
    if not path.exists():
        checkpoint = folder / f"{network}.safetensors"
        card = embedded_card().replace(name=network, architecture=network)
        save_checkpoint(checkpoint, make_network(network), card)
        path.write_bytes(to_bytes(*export_checkpoint(checkpoint)))
    return path


def make_fp16(folder: Path, model: Path) -> Path:
    """Convert an FP32 ONNX to FP16, once for each folder."""
    from ffd_export.fp16 import to_fp16
    from ffd_export.onnx_file import read_onnx, to_bytes

    path = folder / f"{model.stem}.fp16.onnx"
    if not path.exists():
        graph, card = read_onnx(model)
        path.write_bytes(to_bytes(to_fp16(graph), card.replace(precision="fp16")))
    return path

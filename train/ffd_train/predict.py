"""Logits of a PyTorch network on whole images, in float32."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ffd_runtime.model.card import PreprocessSpec

from .allocator import keep_freed_memory
from .dataset import FaceDataset
from .face_data import FaceData, Sample
from .loading import TimedLoader
from .networks import FaceNet
from .tf32 import without_tf32

# Messages of cuBLAS and cuDNN, of the driver, and of the allocator inside another error.
_MESSAGES = re.compile(r"ALLOC_FAILED|CUDA error: out of memory|CUDA out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller batch may fit the GPU's memory."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_MESSAGES.search(str(error)))


def predict_logits(
    net: FaceNet,
    data: FaceData,
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    batch: int = 32,
    workers: int | None = 0,
) -> npt.NDArray[np.float64]:
    """Run a network in evaluation mode on its device, in full float32 precision.

    Batches are divided if the device runs out of memory. `workers` is the number of data loading
    processes; None for one per core.

    Returns:
        float64 [len(samples), 2], not divided by the temperature.
    """
    keep_freed_memory()
    net.eval()
    loader = TimedLoader(FaceDataset(data, samples, spec), workers, batch_size=batch)
    logits = []
    with torch.inference_mode(), without_tf32():
        for images, _ in loader:
            logits += _infer(net, images)
    return torch.cat(logits).numpy().astype(np.float64)


def _infer(net: FaceNet, images: Tensor) -> list[Tensor]:
    """Return the logits of a batch; split it if the device runs out of memory."""
    try:
        return [net(images.to(net.mean.device)).float().cpu()]
    except RuntimeError as error:
        if len(images) == 1 or not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    half = len(images) // 2
    return [*_infer(net, images[:half]), *_infer(net, images[half:])]

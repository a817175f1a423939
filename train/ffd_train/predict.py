"""Logits of a PyTorch network over samples, whole images, float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from ffd_runtime.card import PreprocessSpec

from .data import FaceData, FaceDataset, Sample
from .networks import FaceNet


def predict_logits(
    net: FaceNet,
    data: FaceData,
    samples: Sequence[Sample],
    spec: PreprocessSpec,
    batch: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> npt.NDArray[np.float64]:
    """Run a network, in evaluation mode, on the device that it is on.

    Args:
        net: the network.
        data: the data set that the samples are of.
        samples: what to run it on.
        spec: preprocessing, as in the network's card.
        batch: images a step.
        advance: told after each batch how many images it held.

    Returns:
        float64 [len(samples), 2], before the temperature.
    """
    net.eval()
    device = net.mean.device
    loader = DataLoader(FaceDataset(data, samples, spec), batch)
    logits = []
    with torch.inference_mode():
        for images, labels in loader:
            logits.append(net(images.to(device)).float().cpu())
            advance(len(labels))
    return torch.cat(logits).numpy().astype(np.float64)

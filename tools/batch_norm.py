"""BatchNorm statistics, measured anew for weights that were not trained with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ffd_train.networks import FaceNet


def measure_statistics(net: FaceNet, batches: Sequence[Tensor]) -> None:
    """Set the running statistics of all BatchNorm layers to the mean over some batches.

    An average of networks needs this (Izmailov et al., 2018): its activations have other means and
    variances than those of the networks that it was made from.

    Args:
        net: changed in place; in evaluation mode afterwards.
        batches: uint8 [N, H, W, 3], RGB, of training images.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a mean over all batches
    net.train()
    with torch.inference_mode():
        for batch in batches:
            net(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    net.eval()


def unfold_statistics(net: FaceNet, batches: Sequence[Tensor]) -> None:
    """Give BatchNorm layers that only add a bias the statistics of their inputs.

    An exported graph has its BatchNorm folded into the convolutions. Here each layer gets the mean
    and variance of its inputs, and the scale and bias that undo them: the outputs in evaluation
    mode stay the same, and training can continue.

    Args:
        net: in evaluation mode, each BatchNorm layer as `set_identity` leaves it; changed in place.
        batches: uint8 [N, H, W, 3], RGB, of training images.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    with _moments(layers) as moments, torch.inference_mode():
        for batch in batches:
            net(batch)
    for layer, (count, total, squares) in zip(layers, moments, strict=True):
        mean = total / count
        variance = (squares / count - mean**2).clamp(min=1e-6)
        layer.running_mean = mean.float()
        layer.running_var = variance.float()
        layer.weight.data.copy_((variance + layer.eps).sqrt())
        layer.bias.data.add_(mean)


def set_identity(layer: nn.BatchNorm2d, bias: Tensor) -> None:
    """Let a BatchNorm layer only add a bias in evaluation mode."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.zero_()
    layer.running_var.fill_(1 - layer.eps)
    layer.weight.data.fill_(1)
    layer.bias.data.copy_(bias)


@contextmanager
def _moments(layers: Sequence[nn.Module]) -> Iterator[list[tuple[float, Tensor, Tensor]]]:
    """Yield count, sum and sum of squares of each layer's inputs, by channel, as they come."""
    moments = [(0.0, torch.zeros(()), torch.zeros(()))] * len(layers)

    def add(place: int, value: Tensor) -> None:
        count, total, squares = moments[place]
        wide = value.double()
        moments[place] = (
            count + value.numel() / value.shape[1],
            total + wide.sum((0, 2, 3)),
            squares + (wide**2).sum((0, 2, 3)),
        )

    def hook(place: int) -> torch.utils.hooks.RemovableHandle:
        return layers[place].register_forward_pre_hook(lambda _, given: add(place, given[0]))

    handles = [hook(place) for place in range(len(layers))]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()

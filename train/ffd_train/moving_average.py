"""The exponential moving average of a network's weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .networks import FaceNet


class MovingAverage(nn.Module):
    """Exponential moving average of a network's parameters and buffers.

    After n updates the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    `ExponentialMovingAverage`, so that the average follows the first steps closely. An update does
    not synchronise with the device. The state dict has the names of
    `torch.optim.swa_utils.AveragedModel`, which earlier versions used.

    Args:
        net: network to average; copied.
        decay: maximum decay, 0 to 1.

    Attributes:
        module: the averaged network, without gradients.
    """

    n_averaged: Tensor

    def __init__(self, net: FaceNet, decay: float) -> None:
        super().__init__()
        self.module = deepcopy(net)
        self.decay = decay
        self.register_buffer("n_averaged", torch.tensor(0))
        # `n_averaged` as an int; None after a state dict was loaded.
        self._updates: int | None = 0
        self.register_load_state_dict_post_hook(_forget_updates)  # type: ignore[no-untyped-call]
        # DistributedDataParallel would wait for gradients of these parameters.
        self.requires_grad_(False)

    @torch.no_grad()
    def update(self, net: FaceNet) -> None:
        """Update the average with a network of the same architecture on the same device.

        Integer buffers, such as BatchNorm's counters, are copied.
        """
        if self._updates is None:
            self._updates = int(self.n_averaged)
        own = [*self.module.parameters(), *self.module.buffers()]
        now = [*net.parameters(), *net.buffers()]
        if self._updates:
            decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
            floats = [i for i, tensor in enumerate(own) if tensor.is_floating_point()]
            torch._foreach_lerp_([own[i] for i in floats], [now[i] for i in floats], 1 - decay)
            copied = [i for i, tensor in enumerate(own) if not tensor.is_floating_point()]
        else:
            copied = list(range(len(own)))
        if copied:
            torch._foreach_copy_([own[i] for i in copied], [now[i] for i in copied])
        self._updates += 1
        self.n_averaged.fill_(self._updates)


def _forget_updates(average: nn.Module, keys: Any) -> None:
    assert isinstance(average, MovingAverage)
    average._updates = None

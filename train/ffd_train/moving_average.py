"""The moving average of a network's weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .networks import FaceNet


class MovingAverage(nn.Module):
    """Exponential moving average of a network's parameters and buffers.

    After n updates the decay is at most (1 + n) / (10 + n), as in TensorFlow's
    `ExponentialMovingAverage`, so that the average follows closely at first. An update only queues
    work on the device: it never waits for a value. The state has the names of
    `torch.optim.swa_utils.AveragedModel`, in which earlier runs were saved.

    Args:
        net: what is averaged; copied.
        decay: upper limit of the decay, 0 to 1.

    Attributes:
        module: the average; it takes no gradients.
    """

    n_averaged: Tensor

    def __init__(self, net: FaceNet, decay: float) -> None:
        super().__init__()
        self.module = deepcopy(net)
        self.decay = decay
        self.register_buffer("n_averaged", torch.tensor(0))
        # `n_averaged` as a number; None after a state was loaded.
        self._updates: int | None = 0
        self.register_load_state_dict_post_hook(_forget_updates)  # type: ignore[no-untyped-call]
        # DistributedDataParallel waits for the gradient of each parameter that requires one.
        self.requires_grad_(False)

    @torch.no_grad()
    def update(self, net: FaceNet) -> None:
        """Move the average towards a network of the same shapes on the same device.

        Integer buffers (BatchNorm's counters) have no average: they are copied.
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

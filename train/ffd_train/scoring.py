"""Probabilities and heatmaps of a network, in PyTorch and for export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ffd_runtime.core.errors import BackendError
from ffd_runtime.core.text import first_line
from ffd_runtime.model.backends import Outputs, failure
from ffd_runtime.model.card import ModelCard

from .networks import FaceNet
from .tf32 import without_tf32


class ScoringGraph(nn.Module):
    """The graph of an exported model.

    The heatmap is the class activation map (Zhou et al., 2016) of generated minus that of
    groundtruth, including bias and temperature. Because the head averages the features, the mean
    of the heatmap is exactly the log-odds of P(generated). The network is set to evaluation mode.
    """

    def __init__(self, net: FaceNet, temperature: float) -> None:
        super().__init__()
        self.net = net.eval()
        weight = net.head.weight.detach() / temperature
        bias = net.head.bias.detach() / temperature
        self.register_buffer("evidence", (weight[0] - weight[1])[None, :, None, None].clone())
        self.register_buffer("evidence_bias", (bias[0] - bias[1])[None].clone())
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute probability [N, 2] and heatmap [N, H/32, W/32] of uint8 [N, H, W, 3] RGB."""
        features = self.net.features(image)
        logits = self.net.head(features.mean((2, 3)))
        heatmap = nn.functional.conv2d(
            features, self.get_buffer("evidence"), self.get_buffer("evidence_bias")
        )
        return torch.softmax(logits / self.temperature, 1), heatmap.squeeze(1)


class TorchBackend:
    """A backend of the runtime that runs a checkpoint in float32 on `cpu` or `cuda[:N]`.

    Raises:
        DeviceMemoryError: the network does not fit the device's memory.
        BackendError: the device does not start.
    """

    def __init__(self, net: FaceNet, card: ModelCard, device: str = "cpu") -> None:
        self.card = card
        self.description = f"PyTorch {torch.__version__}, {device}"
        self._device = torch.device(device)
        self._graph: ScoringGraph | None = ScoringGraph(net, card.temperature)
        with _quoting_pytorch():
            self._graph.to(self._device)

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch; see `ffd_runtime.model.backends.Backend.infer`."""
        if self._graph is None:
            raise BackendError("the model is closed")
        with _quoting_pytorch(), torch.inference_mode(), without_tf32():
            batch = torch.from_numpy(images).to(self._device)
            probability, heatmap = self._graph(batch)
            return Outputs(probability.cpu().numpy(), heatmap.cpu().numpy())

    def close(self) -> None:
        """Release the network."""
        self._graph = None


@contextmanager
def _quoting_pytorch() -> Iterator[None]:
    """Replace PyTorch's errors by those of the backend protocol."""
    try:
        yield
    except RuntimeError as error:
        # The other lines of CUDA's errors are for developers.
        raise failure(f"PyTorch: {first_line(error)}", str(error)) from error

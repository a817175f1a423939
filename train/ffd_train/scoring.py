"""From a network to the graph contract: probabilities and heatmaps, in PyTorch and for export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ffd_runtime.core.errors import BackendError
from ffd_runtime.model.backends import Outputs, failure
from ffd_runtime.model.card import ModelCard

from .networks import FaceNet
from .tf32 import without_tf32


class ScoringGraph(nn.Module):
    """What an exported file computes.

    The heatmap is the class activation map (Zhou et al., 2016) of generated less that of
    groundtruth, bias and temperature included: as the features are averaged, its mean is exactly
    the log-odds of P(generated).

    Args:
        net: in evaluation mode.
        temperature: of the card.
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
        """uint8 [N, H, W, 3] RGB to probability [N, 2] and heatmap [N, H/32, W/32]."""
        features = self.net.features(image)
        logits = self.net.head(features.mean((2, 3)))
        heatmap = nn.functional.conv2d(
            features, self.get_buffer("evidence"), self.get_buffer("evidence_bias")
        )
        return torch.softmax(logits / self.temperature, 1), heatmap.squeeze(1)


class TorchBackend:
    """A checkpoint behind the runtime's backend protocol, in full float32 precision.

    Args:
        net: the network.
        card: its card.
        device: `cpu` or `cuda[:N]`.

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
            raise BackendError("the model was closed")
        with _quoting_pytorch(), torch.inference_mode(), without_tf32():
            batch = torch.from_numpy(images).to(self._device)
            probability, heatmap = self._graph(batch)
            return Outputs(probability.cpu().numpy(), heatmap.cpu().numpy())

    def close(self) -> None:
        """Free the network."""
        self._graph = None


@contextmanager
def _quoting_pytorch() -> Iterator[None]:
    """Raise the backend protocol's errors in place of PyTorch's."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        # Further lines of CUDA's errors advise its developers.
        raise failure(f"PyTorch: {said.partition(chr(10))[0]}", said) from error

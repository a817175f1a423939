"""The network or networks that a student learns from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.card import PreprocessSpec

from .checkpoint import load_checkpoint
from .run_folder import BEST


class Teacher(nn.Module):
    """One or several networks, each of which teaches only the images that it classifies correctly.

    A network that was not trained on a generator may be certain that its images are photographs.
    The student would learn that against the label.

    Args:
        networks: at least one; a network that is given twice counts twice.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = list(networks)
        # A list that is not a ModuleList may repeat a network and compute it once.
        self._unique = nn.ModuleList(dict.fromkeys(self.networks))

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits to learn.

        Args:
            images: uint8 [N, H, W, 3], RGB.
            labels: int64 [N].

        Returns:
            The mean logits of the networks that are right, float32 [N, 2], and whether any network
            is right, bool [N]. The logits are 0 where none is.
        """
        by_network: dict[nn.Module, Tensor] = {net: net(images).float() for net in self._unique}
        logits = torch.stack([by_network[net] for net in self.networks])
        right = logits.argmax(2) == labels
        weights = right / right.sum(0).clamp(min=1)
        return (weights.unsqueeze(2) * logits).sum(0), right.any(0)


def load_teacher(paths: Sequence[str]) -> Teacher | None:
    """Load checkpoints or run folders as one teacher, in evaluation mode and without gradients.

    Raises:
        ModelError: a checkpoint cannot be read, or uses a different preprocessing.
    """
    if not paths:
        return None
    networks = {path: _load(Path(path)) for path in dict.fromkeys(paths)}
    teacher = Teacher(networks[path] for path in paths)
    return teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _load(path: Path) -> nn.Module:
    network, card = load_checkpoint(path / BEST if path.is_dir() else path)
    if card.preprocess != PreprocessSpec():
        raise ModelError(f"teacher {path} uses a different preprocessing: choose another --teacher")
    return network

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


class Ensemble(nn.Module):
    """The mean of several networks' logits.

    Args:
        networks: at least one; a network that is given twice counts twice.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = list(networks)
        # A list that is not a ModuleList may repeat a network and compute it once.
        self._unique = nn.ModuleList(dict.fromkeys(self.networks))

    def forward(self, images: Tensor) -> Tensor:
        """Compute the mean logits, [N, 2], of uint8 [N, H, W, 3] RGB."""
        logits: dict[nn.Module, Tensor] = {net: net(images).float() for net in self._unique}
        return torch.stack([logits[net] for net in self.networks]).mean(0)


def load_teacher(paths: Sequence[str]) -> nn.Module | None:
    """Load checkpoints or run folders as one teacher, in evaluation mode and without gradients.

    Raises:
        ModelError: a checkpoint cannot be read, or uses a different preprocessing.
    """
    if not paths:
        return None
    networks = {path: _load(Path(path)) for path in dict.fromkeys(paths)}
    chosen = [networks[path] for path in paths]
    teacher = chosen[0] if len(chosen) == 1 else Ensemble(chosen)
    return teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _load(path: Path) -> nn.Module:
    network, card = load_checkpoint(path / BEST if path.is_dir() else path)
    if card.preprocess != PreprocessSpec():
        raise ModelError(f"teacher {path} uses a different preprocessing: choose another --teacher")
    return network

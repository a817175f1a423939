"""A network of a few thousand parameters, and data that it learns in seconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from ffd_train.network_registry import NETWORKS
from ffd_train.networks import FaceNet

from .conftest import picture

# Such small networks are slower with several threads, above all on busy cores.
torch.set_num_threads(1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def build_tiny(network: str = "tiny", weights: str = "none") -> FaceNet:
    return FaceNet(
        _block(3, 4), _block(4, 4), _block(4, 8), _block(8, 8), _block(8, 16), 16, dropout=0.1
    )


NETWORKS.setdefault("tiny", build_tiny)


def build_plain(network: str = "plain", weights: str = "none") -> FaceNet:
    """Build a network without BatchNorm and dropout, which depend on how a batch is split."""

    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU())

    return FaceNet(block(3, 4), block(4, 4), block(4, 8), block(8, 8), block(8, 16), 16)


NETWORKS.setdefault("plain", build_plain)
NAMES = {"tiny", "plain"}


def make_faces(root: Path, splits: dict[str, int], *, sources: bool = False) -> Path:
    """Write red generated images and blue photographs: `splits[name]` of each class."""
    rows = ["path,label,split,source"]
    for number, (split, count) in enumerate(splits.items()):
        for label, colour in (("generated", "red"), ("groundtruth", "blue")):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                name = f"{colour}{i}.png"
                image = picture(colour, 64, 64, seed=1000 * number + i)
                cv2.imwrite(str(folder / name), np.ascontiguousarray(image))
                rows.append(f"{split}/{label}/{name},{label},{split},{colour}-{i % 2}")
    if sources:
        (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root

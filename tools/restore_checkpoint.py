"""Restore a checkpoint from an exported ONNX, so that training can continue from it.

Usage: python -m tools.restore_checkpoint MODEL.onnx DATA CHECKPOINT.safetensors

MODEL is an FP32 ONNX of `ffd-export` of a network that ffd trains, such as the embedded model. The
checkpoint has the same outputs. `ffd-train --weights CHECKPOINT` starts from it. DATA is a folder
of training images, from which the statistics of BatchNorm are measured.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tools.batch_norm import set_identity, unfold_statistics
from torch import Tensor, nn

from ffd_export.onnx_file import read_onnx
from ffd_runtime.cli.command import Command, say
from ffd_runtime.core.errors import ModelError
from ffd_train.checkpoint import save_checkpoint
from ffd_train.dataset import FaceDataset
from ffd_train.networks import FaceNet, build
from ffd_train.scanning import scan

BATCH = 32
# Statistics are also measured on crops of this side, since training sees crops.
CROP_PX = 160


@click.command(cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--images", type=click.IntRange(BATCH), default=96, show_default=True)
def main(model: Path, data: Path, checkpoint: Path, images: int) -> None:
    """Restore CHECKPOINT from MODEL, with statistics of images of DATA."""
    graph, card = read_onnx(model)
    face_data = scan(data, ("train",))
    training = face_data.split("train")
    samples = random.Random(0).sample(training, min(images, len(training)))
    dataset = FaceDataset(face_data, samples, card.preprocess)
    pixels = torch.stack([dataset[number][0] for number in range(len(dataset))])
    net = restore(graph, card.architecture, pixels)
    save_checkpoint(checkpoint, net, card)
    say(f"wrote {checkpoint}: statistics of {len(samples)} images")


def restore(graph: onnx.ModelProto, architecture: str, pixels: Tensor) -> FaceNet:
    """Build the network of an exported graph.

    Args:
        graph: FP32, of `ffd-export`.
        architecture: key of `ffd_train.networks.NETWORKS`.
        pixels: uint8 [N, H, W, 3], RGB, of training images.

    Returns:
        The network in evaluation mode.

    Raises:
        ModelError: the graph lacks a weight of the network.
    """
    tensors = {
        one.name: torch.from_numpy(np.array(numpy_helper.to_array(one)))
        for one in graph.graph.initializer
    }

    def tensor(*names: str) -> Tensor:
        for name in names:
            if name in tensors:
                return tensors[name]
        raise ModelError(f"the ONNX has no {names[0]}: give an FP32 ONNX of ffd-export")

    net = build(architecture).eval()
    for (name, convolution), norm in _pairs(net):
        convolution.weight.data.copy_(tensor(f"net.{name}.weight"))
        set_identity(norm, tensor(f"net.{name}.weight_bias", f"net.{name}.bias"))
    net.head.weight.data.copy_(tensor("net.head.weight"))
    net.head.bias.data.copy_(tensor("net.head.bias"))
    batches = [pixels[at : at + BATCH] for at in range(0, len(pixels), BATCH)]
    unfold_statistics(net, batches + [batch[:, :CROP_PX, :CROP_PX] for batch in batches])
    return net


def _pairs(net: FaceNet) -> Iterator[tuple[tuple[str, nn.Conv2d], nn.BatchNorm2d]]:
    """Yield each convolution, with its name, and the BatchNorm layer that follows it."""
    order: list[tuple[str, nn.Module]] = []
    handles = [
        module.register_forward_hook(lambda module, *_, name=name: order.append((name, module)))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    with torch.inference_mode():
        net(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    for handle in handles:
        handle.remove()
    for (name, convolution), (_, norm) in zip(order[::2], order[1::2], strict=True):
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise ModelError(f"{name} is not followed by BatchNorm: the network is not supported")
        yield (name, convolution), norm


if __name__ == "__main__":
    main()

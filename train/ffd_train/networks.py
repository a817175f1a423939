"""The networks that ffd trains, divided into the parts that a stage freezes or trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from ffd_runtime.core.errors import ModelError
from ffd_runtime.core.file_hash import hash_file
from ffd_runtime.core.text import first_line

from .network_registry import NETWORKS
from .stage import PARTS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FaceNet(nn.Module):
    """A backbone in five parts, and a linear head on globally averaged features.

    The parts are named as in a ResNet for every network: `layer1` to `layer4` end at strides 4, 8,
    16 and 32.

    Args:
        stem, layer1, layer2, layer3, layer4: the parts, in order.
        channels: channels of `layer4`'s features.
        dropout: dropout rate before the head.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stem: nn.Module,
        layer1: nn.Module,
        layer2: nn.Module,
        layer3: nn.Module,
        layer4: nn.Module,
        channels: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.layer1 = layer1
        self.layer2 = layer2
        self.layer3 = layer3
        self.layer4 = layer4
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, 2)
        self.frozen: tuple[str, ...] = ()
        # By channel, [3, 1, 1].
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            tensor = torch.tensor(values).mul(255).reshape(3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def scale(self, image: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] RGB to the backbone's float32 [N, 3, H, W].

        The exported graph repeats the order of these operations. The cast comes first because
        TensorRT refuses to transpose uint8. The transposition comes second because onnxruntime then
        normalises planes of one channel, which takes less time.
        """
        planes = image.to(torch.float32).permute(0, 3, 1, 2)
        return (planes - self.mean) / self.std

    def features(self, image: Tensor) -> Tensor:
        """Compute the last feature map, [N, C, H/32, W/32], of uint8 [N, H, W, 3] RGB."""
        x: Tensor = self.stem(self.scale(image))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits, [N, 2], of uint8 [N, H, W, 3] RGB."""
        logits: Tensor = self.head(self.dropout(self.features(image).mean((2, 3))))
        return logits

    def train_from(self, part: str) -> None:
        """Freeze all parts before `part`: no gradients, and constant BatchNorm statistics.

        Args:
            part: one of `PARTS`, or `all`.
        """
        first = 0 if part == "all" else PARTS.index(part)
        self.frozen = PARTS[:first]
        for name in PARTS:
            self.get_submodule(name).requires_grad_(name not in self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> FaceNet:
        """Like `nn.Module.train`, but frozen parts stay in evaluation mode.

        Trainers call this in every epoch.
        """
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self


def build(network: str, weights: str = "none") -> FaceNet:
    """Build a network.

    Args:
        network: key of `network_registry.NETWORKS`.
        weights: `none`, `imagenet` (torchvision or timm download them once), or a file: a
            checkpoint of ffd-train, or ImageNet weights of the same network.

    Raises:
        ModelError: the network is unknown, or the weights cannot be downloaded, read or loaded.
    """
    if network not in NETWORKS:
        raise ModelError(f"unknown network {network!r}: use one of {', '.join(NETWORKS)}")
    builder = NETWORKS[network]
    if isinstance(builder, str):
        builder = resolve_name(builder)
    net: FaceNet = builder(network, weights)
    return net


def describe_weights(weights: str) -> str:
    """Return `weights` for the model card; a file is recorded by its name and sha256.

    Raises:
        ModelError: the file does not exist.
    """
    if weights in ("none", "imagenet"):
        return weights
    path = _require_file(weights)
    return f"{path.name} sha256 {hash_file(path)}"


def torchvision_resnext(network: str, weights: str) -> FaceNet:
    """Build a ResNeXt of torchvision; see `build`."""
    from torchvision import models

    pretrained = models.get_model_weights(network).DEFAULT if weights == "imagenet" else None
    with _fetching(weights):
        model: Any = models.get_model(network, weights=pretrained)
    net = FaceNet(
        nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool),
        model.layer1,
        model.layer2,
        model.layer3,
        model.layer4,
        channels=model.fc.in_features,
    )
    _load_file(net, model, "fc.", weights)
    return net


def timm_efficientnet_lite(network: str, weights: str) -> FaceNet:
    """Build an EfficientNet-Lite of timm; see `build`."""
    import timm

    with _fetching(weights):
        model: Any = timm.create_model(network, pretrained=weights == "imagenet")
    blocks = model.blocks
    net = FaceNet(
        nn.Sequential(model.conv_stem, model.bn1),
        blocks[0:2],
        blocks[2],
        blocks[3:5],
        nn.Sequential(*blocks[5:], model.conv_head, model.bn2),
        channels=model.num_features,
        dropout=0.2,
    )
    _load_file(net, model, "classifier.", weights)
    return net


def synchronise(net: FaceNet) -> FaceNet:
    """Synchronise BatchNorm over all processes; timm's function keeps fused activations."""
    from timm.layers.norm_act import convert_sync_batchnorm

    convert: Callable[[nn.Module], nn.Module] = convert_sync_batchnorm
    synchronised = convert(net)
    assert isinstance(synchronised, FaceNet)
    return synchronised


@contextmanager
def _fetching(weights: str) -> Iterator[None]:
    """Replace an error of the download by one line."""
    try:
        yield
    except Exception as error:
        if weights != "imagenet":
            raise
        raise ModelError(
            f"the ImageNet weights could not be downloaded ({type(error).__name__}): give a "
            "file with --weights FILE, or train from scratch with --weights none"
        ) from error


def _load_file(net: FaceNet, model: nn.Module, classifier: str, weights: str) -> None:
    """Load the file `weights`: a checkpoint into `net`, other weights into its source `model`.

    The classifier of ImageNet weights is skipped. If the names differ, as in another library's
    port of the network, tensors are matched by order, and all shapes must agree.
    """
    if weights in ("none", "imagenet"):
        return
    tensors = _read_tensors(_require_file(weights))
    if "head.weight" in tensors and "stem.0.weight" in tensors:
        _fit(net, tensors, weights)
        return
    own = model.state_dict()
    if tensors.keys() != own.keys():
        names, values = list(own), list(tensors.values())
        if len(names) != len(values):
            raise ModelError(
                f"{weights} has {len(values)} tensors, and the network has {len(names)}: use "
                "weights of the same network"
            )
        tensors = dict(zip(names, values, strict=True))
    kept = {name: value for name, value in tensors.items() if not name.startswith(classifier)}
    head = {name: value for name, value in own.items() if name.startswith(classifier)}
    _fit(model, {**kept, **head}, weights)


def _fit(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ModelError(f"{origin} does not fit this network: {first[0].strip()}") from None


def _require_file(weights: str) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise ModelError(f"weights {path}: no such file (use imagenet, none or a file)")
    return path


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # weights_only refuses files that would run code.
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"weights {path} cannot be read as plain tensors: {first_line(error)}"
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ModelError(f"weights {path} are not a plain mapping of tensors (a state dict)")
    return tensors

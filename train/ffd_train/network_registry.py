"""The registry of networks, which does not import PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .networks import FaceNet

# Called with the name of the network and its initial weights; see `networks.build`.
Builder = Callable[[str, str], "FaceNet"]

_RESNEXT = "ffd_train.networks:torchvision_resnext"
_EFFICIENTNET_LITE = "ffd_train.networks:timm_efficientnet_lite"
# The builder of each network as `MODULE:FUNCTION`, or the function. The first is the default.
NETWORKS: dict[str, str | Builder] = {
    "resnext101_32x8d": _RESNEXT,
    "resnext101_64x4d": _RESNEXT,
    "resnext50_32x4d": _RESNEXT,
    "tf_efficientnet_lite0": _EFFICIENTNET_LITE,
    "tf_efficientnet_lite1": _EFFICIENTNET_LITE,
    "tf_efficientnet_lite2": _EFFICIENTNET_LITE,
}

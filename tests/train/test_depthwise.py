"""Depthwise convolutions with fast gradients agree with PyTorch's own."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ffd_train.depthwise import use_fast_depthwise
from ffd_train.networks import build


def gradients(layer: nn.Module, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the gradients of image and weight for fixed output gradients."""
    layer.zero_grad()
    image = image.clone().requires_grad_()
    output = layer(image)
    output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output))
    weight = next(layer.parameters()).grad
    assert image.grad is not None
    assert weight is not None
    return output.detach(), image.grad, weight


@given(
    size=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    padding=st.integers(0, 2),
    channels=st.integers(2, 5),
    height=st.integers(5, 14),
    width=st.integers(5, 14),
    batch=st.integers(1, 3),
)
def test_outputs_and_gradients_agree(
    size: int, stride: int, padding: int, channels: int, height: int, width: int, batch: int
) -> None:
    plain = nn.Conv2d(
        channels, channels, size, stride, padding, groups=channels, bias=False, dtype=torch.float64
    )
    fast = deepcopy(plain)
    assert use_fast_depthwise(nn.Sequential(fast)) == 1
    image = torch.randn(batch, channels, height, width, dtype=torch.float64)
    for expected, actual in zip(gradients(plain, image), gradients(fast, image), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("side", [64, 75])
def test_a_whole_network_has_the_same_gradients(side: int) -> None:
    torch.manual_seed(0)
    plain = build("tf_efficientnet_lite0").eval()
    fast = deepcopy(plain)
    assert use_fast_depthwise(fast) == 16
    assert fast.state_dict().keys() == plain.state_dict().keys()
    image = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8)
    for network in (plain, fast):
        network(image).square().sum().backward()
    for expected, actual in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-3, atol=1e-4)


def test_autocast_computes_in_bfloat16() -> None:
    layer = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
    image = torch.randn(2, 8, 12, 12)
    _, of_image, of_weight = gradients(layer, image)
    use_fast_depthwise(nn.Sequential(layer))
    with torch.autocast("cpu", torch.bfloat16):
        output, fast_of_image, fast_of_weight = gradients(layer, image)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(fast_of_image, of_image, rtol=0.05, atol=0.05)
    torch.testing.assert_close(fast_of_weight, of_weight, rtol=0.05, atol=0.2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        nn.Conv2d(4, 4, 7, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, groups=4, bias=False, dilation=2),
        nn.Conv2d(4, 4, 3, bias=False),
    ],
    ids=str,
)
def test_other_layers_stay(layer: nn.Conv2d) -> None:
    assert use_fast_depthwise(nn.Sequential(layer)) == 0
    assert type(layer) is nn.Conv2d

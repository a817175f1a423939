"""Faster gradients of depthwise convolutions on a CPU.

In bfloat16, PyTorch has slow kernels for two gradients of a depthwise convolution: the gradient of
the input at stride 2, and the gradient of a 5 x 5 kernel. This module computes both with the fast
kernels for stride 1 and for 3 x 3. Results agree up to rounding. `benchmarks/depthwise.py` measures
both.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


def use_fast_depthwise(network: nn.Module) -> int:
    """Replace the gradient computation of `network`'s depthwise convolutions, in place.

    Parameters, their names and the outputs do not change. Layers need one filter per channel, a
    kernel of 3 x 3 or 5 x 5, stride 1 or 2, no dilation and no bias; others are left as they are.

    Returns:
        The number of replaced layers.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    suitable = [layer for layer in layers if _is_suitable(layer)]
    for layer in suitable:
        # timm's Conv2dSame pads in its own `forward`.
        same = layer.padding == "same" or type(layer).__name__ == "Conv2dSame"
        layer.__class__ = DepthwiseConv2d
        cast(DepthwiseConv2d, layer).pads_as_needed = same
    return len(suitable)


def _is_suitable(layer: nn.Conv2d) -> bool:
    return (
        1 < layer.groups == layer.in_channels == layer.out_channels
        and layer.kernel_size in ((3, 3), (5, 5))
        and layer.stride in ((1, 1), (2, 2))
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.bias is None
        and not isinstance(layer, DepthwiseConv2d)
    )


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution without bias and with fast gradients.

    Attributes:
        pads_as_needed: pad as TensorFlow's "same" does, instead of `padding` pixels on each side.
    """

    pads_as_needed: bool

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [N, C, H, W] to [N, C, H', W']."""
        size, stride = self.kernel_size[0], self.stride[0]
        if self.pads_as_needed:
            top, bottom = _pad_as_needed(input.shape[2], size, stride)
            left, right = _pad_as_needed(input.shape[3], size, stride)
        else:
            top, left = bottom, right = cast("tuple[int, int]", self.padding)
        image = functional.pad(input, (left, right, top, bottom))
        weight = self.weight
        device = input.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            image, weight = image.to(dtype), weight.to(dtype)
        return cast(Tensor, _Depthwise.apply(image, weight, stride))


def _pad_as_needed(side: int, size: int, stride: int) -> tuple[int, int]:
    total = max((math.ceil(side / stride) - 1) * stride + size - side, 0)
    return total // 2, total - total // 2


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(image, weight)
        ctx.stride = stride
        return functional.conv2d(image, weight, stride=stride, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        image, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_image = of_weight = None
        if ctx.needs_input_grad[0]:
            of_image = _differentiate_by_image(gradient, image, weight, ctx.stride)
        if ctx.needs_input_grad[1]:
            of_weight = _differentiate_by_weight(gradient, image, weight, ctx.stride)
        return of_image, of_weight, None


def _differentiate_by_image(gradient: Tensor, image: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Compute the image's gradient at stride 1, with zeros between the rows of `gradient`."""
    if stride > 1:
        height, width = (side - weight.shape[2] + 1 for side in image.shape[2:])
        spread = torch.empty(
            (*gradient.shape[:2], height, width),
            dtype=gradient.dtype,
            device=gradient.device,
            memory_format=torch.channels_last,
        )
        spread.zero_()[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return _convolution_backward(gradient, image, weight, 1, [True, False, False])[0]


def _differentiate_by_weight(
    gradient: Tensor, image: Tensor, weight: Tensor, stride: int
) -> Tensor:
    """Compute the gradient of a 5 x 5 kernel as those of its four 3 x 3 corners."""
    wanted = [False, True, False]
    if weight.shape[2] == 3:
        return _convolution_backward(gradient, image, weight, stride, wanted)[1]
    result = torch.empty_like(weight)
    corner = torch.empty_like(weight[:, :, :3, :3])
    height, width = (stride * (side - 1) + 3 for side in gradient.shape[2:])
    for row in (0, 2):
        for column in (0, 2):
            seen = image[:, :, row : row + height, column : column + width]
            seen = seen.contiguous(memory_format=torch.channels_last)
            found = _convolution_backward(gradient, seen, corner, stride, wanted)[1]
            result[:, :, row : row + 3, column : column + 3] = found
    return result


def _convolution_backward(
    gradient: Tensor, image: Tensor, weight: Tensor, stride: int, wanted: list[bool]
) -> list[Tensor]:
    """Return the gradients of the image, the weight and the bias, None where not `wanted`."""
    return cast(
        "list[Tensor]",
        torch.ops.aten.convolution_backward(
            gradient,
            image,
            weight,
            None,
            [stride, stride],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            len(weight),
            wanted,
        ),
    )

"""Pseudo-fakes: photographs with the traces that a generator's upsampling leaves.

A detector that learns these traces needs no pictures of the generator. A photograph is taken apart
into a Laplacian pyramid (Burt and Adelson, 1983) and put together as a generator would: each
doubling is by nearest neighbour, bilinear, or a transposed convolution of uneven kernel (Odena et
al., 2016), and a small random convolution with a nonlinearity follows. The idea is that of AutoGAN
(Zhang et al., 2019), without a network to train. SPSL (Liu et al., 2021) and NPR (Tan et al., 2024)
show that detectors of such traces hold on unknown generators.
"""

from __future__ import annotations

from math import log2

import cv2
import numpy as np
import numpy.typing as npt

from ffd_runtime.image.decode import Image

Range = tuple[float, float]
Floats = npt.NDArray[np.float32]

# Standard deviation of a transposed convolution's weights around the bilinear kernel's, relative.
UNEVENNESS = (0.005, 0.05)
# Standard deviation of what the random convolution adds, in levels of 255.
TEXTURE = (0.5, 3.0)
# Share of the upsampling's deviation from a smooth one that is left in the finest doubling. It is
# halved at each coarser one, since a generator's later convolutions smooth what is coarse.
TRACE = (0.1, 1.0)


def imitate_generator(
    image: Image, rng: np.random.Generator, stride: Range, detail: Range
) -> Image:
    """Make a pseudo-fake of a photograph.

    Args:
        image: uint8 [H, W, 3], BGR; not changed.
        rng: the only source of chance.
        stride: from which the total factor of upsampling is drawn, evenly in its logarithm, and
            rounded to a power of two.
        detail: from which the share of each octave's detail is drawn that is kept, 0 to 1.

    Returns:
        uint8 [H, W, 3], BGR.
    """
    doublings = max(1, round(rng.uniform(log2(stride[0]), log2(stride[1]))))
    levels = [image.astype(np.float32)]
    for _ in range(doublings):
        levels.append(_halve(levels[-1]))
    kind = UPSAMPLERS[int(rng.integers(len(UPSAMPLERS)))]
    made = levels[-1]
    for depth in reversed(range(doublings)):
        finer, coarser = levels[depth], levels[depth + 1]
        height, width = finer.shape[:2]
        lost = finer - _bilinear(coarser, rng)[:height, :width]
        even = _bilinear(made, rng)
        trace = (kind(made, rng) - even) * np.float32(rng.uniform(*TRACE) / 2**depth)
        made = (even + trace)[:height, :width] + np.float32(rng.uniform(*detail)) * lost
        made += _texture(made, rng)
    return np.clip(np.rint(made), 0, 255).astype(np.uint8)


def _halve(image: Floats) -> Floats:
    height, width = image.shape[:2]
    even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    half = ((width + 1) // 2, (height + 1) // 2)
    return np.asarray(cv2.resize(even, half, interpolation=cv2.INTER_AREA), np.float32)


def _nearest(image: Floats, rng: np.random.Generator) -> Floats:
    return image.repeat(2, 0).repeat(2, 1)


def _bilinear(image: Floats, rng: np.random.Generator) -> Floats:
    size = (2 * image.shape[1], 2 * image.shape[0])
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.float32)


def _transposed(image: Floats, rng: np.random.Generator) -> Floats:
    """A transposed convolution of stride 2; its kernel of 3 or 4 pixels is nearly bilinear."""
    ramp = np.array([1, 2, 1] if rng.random() < 0.5 else [1, 3, 3, 1], np.float32)
    kernel = np.outer(ramp, ramp)
    kernel *= 1 + _log_uniform(rng, UNEVENNESS) * rng.standard_normal(kernel.shape)
    # A pixel in four is not zero.
    kernel *= 4 / kernel.sum()
    spread = np.zeros((2 * image.shape[0], 2 * image.shape[1], 3), np.float32)
    spread[::2, ::2] = image
    border = cv2.BORDER_REFLECT_101
    return np.asarray(cv2.filter2D(spread, -1, kernel, borderType=border), np.float32)


# What a generator doubles its features by, one of them throughout.
UPSAMPLERS = (_nearest, _bilinear, _transposed)


def _texture(image: Floats, rng: np.random.Generator) -> Floats:
    """What a small random network with a leaky ReLU adds: [H, W, 3], of mean 0."""
    kernel = rng.standard_normal((3, 3))
    mixing = rng.standard_normal((3, 3))
    hidden = cv2.filter2D(image, -1, kernel - kernel.mean())
    added = cv2.transform(cv2.max(hidden, 0.2 * hidden), mixing)
    means, deviations = cv2.meanStdDev(added)
    strength = _log_uniform(rng, TEXTURE)
    # A picture of one colour has none.
    scale = strength / max(float(deviations.mean()), 1e-3)
    return np.asarray((added - means[:, 0].astype(np.float32)) * np.float32(scale), np.float32)


def _log_uniform(rng: np.random.Generator, ends: Range) -> float:
    return float(np.exp(rng.uniform(*np.log(ends))))

"""Pseudo-fakes: photographs with the artefacts of a generator's upsampling.

A detector of these artefacts needs no images of the generator. A photograph is decomposed into a
Laplacian pyramid (Burt and Adelson, 1983) and reconstructed like a generator would: each doubling
is nearest-neighbour, bilinear, or a transposed convolution with an uneven kernel (Odena et al.,
2016), followed by a small random convolution with a nonlinearity. The idea is from AutoGAN (Zhang
et al., 2019), without a network to train. SPSL (Liu et al., 2021) and NPR (Tan et al., 2024) show
that detectors of such artefacts generalise to unknown generators.
"""

from __future__ import annotations

from math import log2
from typing import Annotated

import cv2
import numpy as np
import numpy.typing as npt

from ffd_runtime.image.decode import Image

Range = tuple[float, float]
Floats = npt.NDArray[np.float32]

# Relative standard deviation of a transposed convolution's weights from the bilinear kernel's.
UNEVENNESS = (0.005, 0.05)
# Standard deviation of the random convolution's output, in levels of 255.
TEXTURE = (0.5, 3.0)
# Strength of the upsampling artefacts in the finest doubling. Each coarser doubling has half of
# it, because a generator's later convolutions smooth coarse artefacts.
TRACE = (0.1, 1.0)


def imitate_generator(
    image: Image,
    rng: np.random.Generator,
    stride: Annotated[Range, 2, 32],
    detail: Annotated[Range, 0, 1],
) -> Image:
    """Make a pseudo-fake of a photograph.

    Args:
        image: uint8 [H, W, 3], BGR; not modified.
        rng: source of all random numbers.
        stride: range of the total upsampling factor, which is drawn log-uniformly and rounded to a
            power of two.
        detail: range of the share of each octave's detail to keep, 0 to 1.

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
    """Upsample with a transposed convolution of stride 2 and a nearly bilinear kernel."""
    ramp = np.array([1, 2, 1] if rng.random() < 0.5 else [1, 3, 3, 1], np.float32)
    kernel = np.outer(ramp, ramp)
    kernel *= 1 + _log_uniform(rng, UNEVENNESS) * rng.standard_normal(kernel.shape)
    # One pixel in four is not zero.
    kernel *= 4 / kernel.sum()
    spread = np.zeros((2 * image.shape[0], 2 * image.shape[1], 3), np.float32)
    spread[::2, ::2] = image
    border = cv2.BORDER_REFLECT_101
    return np.asarray(cv2.filter2D(spread, -1, kernel, borderType=border), np.float32)


# Upsampling methods; a pseudo-fake uses one of them for all doublings.
UPSAMPLERS = (_nearest, _bilinear, _transposed)


def _texture(image: Floats, rng: np.random.Generator) -> Floats:
    """Return the output of a small random network with a leaky ReLU: [H, W, 3], mean 0."""
    kernel = rng.standard_normal((3, 3))
    mixing = rng.standard_normal((3, 3))
    hidden = cv2.filter2D(image, -1, kernel - kernel.mean())
    added = cv2.transform(cv2.max(hidden, 0.2 * hidden), mixing)
    means, deviations = cv2.meanStdDev(added)
    strength = _log_uniform(rng, TEXTURE)
    # The lower limit is for images of one colour.
    scale = strength / max(float(deviations.mean()), 1e-3)
    return np.asarray((added - means[:, 0].astype(np.float32)) * np.float32(scale), np.float32)


def _log_uniform(rng: np.random.Generator, ends: Range) -> float:
    return float(np.exp(rng.uniform(*np.log(ends))))

"""Synthetic images, and their preprocessed form when the golden file was written.

Write it anew, after a deliberate change of the preprocessing only:
python -m tests.runtime.golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.model.card import PreprocessSpec

FILE = Path(__file__).with_name("golden.npz")


def synthetic() -> dict[str, npt.NDArray[np.uint8]]:
    """Make images by integer arithmetic, so that they are equal on all machines."""
    return {
        "up": _waves(200, 240),
        "same": _waves(299, 299),
        "down": _waves(450, 380),
        "flat": np.full((120, 90, 3), (60, 110, 130), np.uint8),
        "dark": (_waves(310, 310) // 8).astype(np.uint8),
    }


def _waves(height: int, width: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    layers = [(x * x // 37 + y * 3 + x * y // 101 + c * 40) % 256 for c in range(3)]
    triangle = np.abs(np.stack(layers, -1) - 128) * 2
    return np.asarray(np.clip(triangle, 0, 255), np.uint8)


def main() -> None:
    """Write the golden file."""
    images = {name: preprocess(image, PreprocessSpec()) for name, image in synthetic().items()}
    np.savez_compressed(FILE, allow_pickle=False, **images)


if __name__ == "__main__":
    main()

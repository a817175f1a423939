"""Fixtures for every room: synthetic pictures, a model whose verdicts are known, real faces."""

from __future__ import annotations

import os
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, settings

from ffd_runtime.core import cores
from ffd_runtime.model import devices

Image = npt.NDArray[np.uint8]

# What `models.save_colour_model` writes, so that a test does not need onnx.
COLOUR_MODEL = Path(__file__).parent / "colour.onnx"

# A busy machine is slow at times; how long an example takes is no property of the code.
settings.register_profile("ffd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ffd")

# A shell that starts the tests in the background has Ctrl-C ignored, which commands would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` need one."""
    if item.get_closest_marker("gpu") and not devices.count_gpus():
        pytest.skip("needs a GPU, and NVIDIA's driver offers none")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test leaves in the process, the next one does not find."""
    yield
    # A cluster's actor takes no more of its process's cores than its own.
    cores._max_cores = None
    # urlopen keeps the proxies that it found when it was used first.
    vars(urllib.request)["_opener"] = None


def picture(colour: str = "red", height: int = 120, width: int = 100, seed: int = 0) -> Image:
    """A textured BGR picture that the colour model calls generated (red) or groundtruth (blue)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 160, (height, width, 3))
    image[..., 2 if colour == "red" else 0] += 80
    return image.clip(0, 255).astype(np.uint8)


def load(path: Path, side: int = 300) -> Image:
    """A square picture in a size: uint8 [side, side, 3], BGR."""
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(cv2.resize(image, (side, side)), np.uint8)


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX that keeps the graph contract: P(generated) is how much redder than blue."""
    return Path(shutil.copy(COLOUR_MODEL, tmp_path_factory.mktemp("model")))


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    """A folder of three good pictures: two red, one blue."""
    folder = tmp_path / "portraits"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue", "red")):
        cv2.imwrite(str(folder / f"{number}-{colour}.png"), picture(colour, seed=number))
    return folder


@pytest.fixture(scope="session")
def faces() -> Path:
    """The real faces, where a machine has them."""
    folder = os.environ.get("FFD_FACES")
    if not folder:
        pytest.skip("FFD_FACES does not name a folder of real faces")
    return Path(folder)


@pytest.fixture(scope="session")
def face_model() -> Path:
    """The face detector's model, where a machine has it."""
    path = os.environ.get("FFD_FACE_MODEL")
    if not path:
        pytest.skip("FFD_FACE_MODEL does not name a YuNet model")
    return Path(path)

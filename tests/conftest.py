"""Fixtures of all tests: synthetic images, a model with known verdicts, real faces."""

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

from .nightly import IS_NIGHTLY, examples

Image = npt.NDArray[np.uint8]

# Written by `models.save_colour_model`, so that tests do not need onnx.
COLOUR_MODEL = Path(__file__).parent / "colour.onnx"

# Examples have no time limit, as a busy machine is slow. Every run by day has the same examples, so
# that a change fails by its own fault. The nightly run searches for new ones.
settings.register_profile(
    "ffd",
    deadline=None,
    derandomize=not IS_NIGHTLY,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ffd")

# A shell ignores Ctrl-C in background processes, and commands would inherit this setting.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the runtime's tests last: their files are short, so parallel processes end together."""
    items.sort(key=lambda item: item.path.parent.name == "runtime")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` on a machine without one."""
    if item.get_closest_marker("gpu") and not devices.count_gpus():
        pytest.skip("needs a GPU, and NVIDIA's driver offers none")


@pytest.fixture(autouse=True)
def restore_globals() -> Iterator[None]:
    """Reset global state that a test may have changed."""
    yield
    # A cluster's actor limits the cores of its process.
    cores._max_cores = None
    # urlopen keeps the proxies of its first call.
    vars(urllib.request)["_opener"] = None


def picture(colour: str = "red", height: int = 120, width: int = 100, seed: int = 0) -> Image:
    """Draw a textured BGR image: generated (red) or groundtruth (blue) for the colour model."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 160, (height, width, 3))
    image[..., 2 if colour == "red" else 0] += 80
    return image.clip(0, 255).astype(np.uint8)


def load(path: Path, side: int = 300) -> Image:
    """Read an image and resize it: uint8 [side, side, 3], BGR."""
    image = cv2.imread(str(path))
    assert image is not None
    return np.asarray(cv2.resize(image, (side, side)), np.uint8)


@pytest.fixture(scope="session")
def colour_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX of the graph contract: P(generated) grows with the excess of red over blue."""
    return Path(shutil.copy(COLOUR_MODEL, tmp_path_factory.mktemp("model")))


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    """Write three valid images, two red and one blue, to a folder."""
    folder = tmp_path / "portraits"
    folder.mkdir()
    for number, colour in enumerate(("red", "blue", "red")):
        cv2.imwrite(str(folder / f"{number}-{colour}.png"), picture(colour, seed=number))
    return folder


@pytest.fixture(scope="session")
def faces() -> Path:
    """The folder of real faces that FFD_FACES names."""
    folder = os.environ.get("FFD_FACES")
    if not folder:
        pytest.skip("FFD_FACES does not name a folder of real faces")
    return Path(folder)


@pytest.fixture(scope="session")
def face_model() -> Path:
    """The model of the face detector that FFD_FACE_MODEL names."""
    path = os.environ.get("FFD_FACE_MODEL")
    if not path:
        pytest.skip("FFD_FACE_MODEL does not name a YuNet model")
    return Path(path)

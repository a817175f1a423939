"""Models, images and calibration ranges that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest
from click.testing import CliRunner, Result

from ffd_export.calibration import calibrate
from ffd_export.cli.export import main
from ffd_export.int8 import OPERATORS, quantise
from ffd_export.onnx_file import read_onnx
from ffd_export.sample_images import SampleImages, find_images, prepare_images
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.card import ModelCard, PreprocessSpec

from ..conftest import picture
from ..one_core import one_core

__all__ = ["one_core"]


def run(*arguments: object) -> Result:
    """Run ffd-export in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="ffd-export")


def error_of(*arguments: object) -> str:
    """Run ffd-export, which must fail, and return its error: the last line of stderr."""
    outcome = run(*arguments)
    assert outcome.exit_code == 1, outcome.output
    assert "Traceback" not in outcome.output
    last = outcome.stderr.splitlines()[-1]
    assert last.startswith("ffd-export: error: ")
    return last


@contextmanager
def coarse_histograms(bins: int = 256) -> Iterator[None]:
    """Reduce the number of bins, so that the search for the least entropy is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ffd_export.calibration.MAX_BINS", bins)
        patch.setattr("ffd_export.calibration.QUANTIZED_BINS", bins // 2)
        yield


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the embedded model as FP16 and as INT8 for TensorRT, calibrated on noise."""
    folder = tmp_path_factory.mktemp("exports")
    images = folder / "images"
    images.mkdir()
    for number in range(8):
        colour = "red" if number % 2 else "blue"
        cv2.imwrite(str(images / f"{number}.png"), picture(colour, seed=number))
    given = [str(EMBEDDED), "--verify", "none", "--engine", "none", "--output", str(folder)]
    int8 = ["--int8", "--target", "tensorrt", "--calibrate", str(images)]
    for arguments in (["--fp16"], [*int8, "--calibration", "percentile"]):
        outcome = CliRunner().invoke(main, [*given, *arguments])
        assert outcome.exit_code == 0, outcome.output
    return folder


@pytest.fixture(scope="session")
def model() -> onnx.ModelProto:
    """Return the embedded model. Tests must not change it."""
    return read_onnx(EMBEDDED)[0]


@pytest.fixture(scope="session")
def card() -> ModelCard:
    return read_onnx(EMBEDDED)[1]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write eight images into folders named after the classes."""
    root = tmp_path_factory.mktemp("labelled")
    for label, colour in (("generated", "red"), ("groundtruth", "blue")):
        (root / label).mkdir()
        for number in range(4):
            cv2.imwrite(str(root / label / f"{number}.png"), picture(colour, seed=number))
    return root


@pytest.fixture(scope="session")
def images(labelled: Path) -> SampleImages:
    return prepare_images(find_images(labelled, 8), PreprocessSpec())


@pytest.fixture(scope="session")
def ranges(model: onnx.ModelProto, images: SampleImages) -> dict[str, Any]:
    """Calibration ranges of every tensor that either target quantises, by percentile."""
    return calibrate(model, OPERATORS["cpu"], images.spread(4), ["percentile"])


@pytest.fixture(scope="session")
def quantised(model: onnx.ModelProto, ranges: dict[str, Any]) -> onnx.ModelProto:
    """Return the embedded model as INT8 for the CPU. Tests must not change it."""
    return quantise(model, "cpu", ranges["percentile"])

"""What several files of this room look at, made once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner

from ffd_export.commands.export import main
from ffd_runtime.model.backends import EMBEDDED

from ..conftest import picture


@contextmanager
def coarse_histograms() -> Iterator[None]:
    """Half of the bins: the search for the least entropy, most of calibration's time, is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ffd_export.ranges.BINS", 256)
        yield


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as FP16 and as TensorRT's INT8, calibrated on noise."""
    folder = tmp_path_factory.mktemp("exports")
    images = folder / "images"
    images.mkdir()
    for number in range(8):
        colour = "red" if number % 2 else "blue"
        cv2.imwrite(str(images / f"{number}.png"), picture(colour, seed=number))
    given = [str(EMBEDDED), "--verify", "none", "--engine", "none", "--output", str(folder)]
    int8 = ["--int8", "--target", "tensorrt", "--calibrate", str(images)]
    for arguments in (["--fp16"], [*int8, "--calibration", "percentile"]):
        with coarse_histograms():
            outcome = CliRunner().invoke(main, [*given, *arguments])
        assert outcome.exit_code == 0, outcome.output
    return folder

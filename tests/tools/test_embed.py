"""tools/embed.py writes both embedded files or reports why it cannot."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result
from tools import embed

from ffd_export.exported_model import ExportedModel
from ffd_export.onnx_file import read_onnx
from ffd_export.source_model import open_source
from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.backends.embedded import explain_rejection

from ..conftest import picture
from ..export.conftest import coarse_histograms


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    root = tmp_path / "faces"
    for label, colour in (("generated", "red"), ("groundtruth", "blue")):
        (root / label).mkdir(parents=True)
        for number in range(4):
            cv2.imwrite(str(root / label / f"{number}.png"), picture(colour, seed=number))
    return root


def run(*arguments: object) -> Result:
    return CliRunner().invoke(embed.main, list(map(str, arguments)))


def test_both_files_are_written(labelled: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with coarse_histograms():
        outcome = run(
            EMBEDDED, "--calibrate", labelled, "--verify", labelled, "--calibration-images", 8,
            "--output", output,
        )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    assert (output / "embedded.onnx").read_bytes() == EMBEDDED.read_bytes()
    _, fp32 = read_onnx(output / "embedded.onnx")
    _, int8 = read_onnx(output / "embedded.int8.onnx")
    parity = int8.metrics["parity"]
    assert parity["images"] == 8
    assert {"accuracy", "accuracy_reference", "roc_auc", "roc_auc_reference"} <= set(parity)
    last = outcome.stderr.splitlines()[-1]
    assert (last == "a CPU runs INT8") == (explain_rejection(int8, fp32) is None)


def test_unlabelled_images_and_large_files_fail(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare").mkdir()
    (labelled / "generated/0.png").rename(tmp_path / "bare/0.png")
    outcome = run(EMBEDDED, "--calibrate", labelled, "--verify", tmp_path / "bare")
    assert outcome.exit_code == 1
    assert "needs images below generated/ and groundtruth/" in outcome.stderr.splitlines()[-1]
    monkeypatch.setattr(embed, "MAX_BYTES", 20_000_000)
    exported = ExportedModel.unchanged(open_source(EMBEDDED))
    with pytest.raises(ModelError, match=r"the two files take 26.9 MB, limit 20 MB"):
        embed.write_both(exported, exported, tmp_path / "out")
    assert not (tmp_path / "out").exists()

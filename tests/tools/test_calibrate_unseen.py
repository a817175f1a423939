"""tools/calibrate_unseen.py fits the card of a run on the sources that the run left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from scipy.special import expit, logit
from tools import calibrate_unseen

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.model.card import ModelCard
from ffd_train.checkpoint import load_card, save_checkpoint
from ffd_train.settings import Settings

from ..conftest import picture
from ..models import CARD, save_colour_model
from ..tiny import build_tiny, make_faces


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_faces(tmp_path / "faces", {"train": 2, "val": 6, "test": 2}, sources=True)


@pytest.fixture
def trained(tmp_path: Path, data: Path) -> Path:
    """A run that left red-1 and blue-1 out, of a random network that scores red images higher."""
    torch.manual_seed(0)
    net = build_tiny().eval()
    colours = np.stack([picture("red", 299, 299), picture("blue", 299, 299)])[..., ::-1]
    with torch.inference_mode():
        red, blue = net(torch.from_numpy(colours.copy()))
        net.head.weight *= torch.sign(red[0] - red[1] - blue[0] + blue[1])
    folder = tmp_path / "run"
    folder.mkdir()
    settings = Settings(str(data), "tiny", leave_out=("red-1", "blue-1"))
    (folder / "settings.json").write_text(settings.to_json())
    save_checkpoint(folder / "best.safetensors", net, CARD.replace(architecture="tiny"))
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(calibrate_unseen.main, list(map(str, arguments)))


def fitted(folder: Path) -> ModelCard:
    card = ModelCard.from_json((folder / "card.json").read_text())
    assert card == load_card(folder / "best.safetensors")
    return card


def test_threshold_and_band_hold_for_both_files(trained: Path, data: Path, tmp_path: Path) -> None:
    other = save_colour_model(tmp_path / "other.onnx")
    model = onnx.load(other)
    weight = next(one for one in model.graph.initializer if one.name == "weight")
    weight.raw_data = (-onnx.numpy_helper.to_array(weight)).tobytes()
    onnx.save(model, other)

    outcome = run(trained, data)
    assert outcome.exit_code == 0, outcome.output
    alone = fitted(trained)
    assert "16 images: temperature" in outcome.stderr
    assert run(trained, data, "--int8", other).exit_code == 0
    both = fitted(trained)

    with Classifier.open(other, device="cpu") as classifier:
        found = classifier.classify_many(sorted(data.glob("val/groundtruth/*")))
        scores = np.array([result.score for result in found])
    margins = logit(scores.clip(1e-7, 1 - 1e-7))
    assert (expit(margins / alone.temperature) >= alone.threshold).all()
    assert (expit(margins / both.temperature) < both.threshold).all()


def test_a_run_that_left_nothing_out_is_an_error(trained: Path, data: Path) -> None:
    (trained / "settings.json").write_text(Settings(str(data), "tiny").to_json())
    outcome = run(trained, data)
    assert outcome.exit_code == 1
    assert "left no source out of training" in outcome.stderr

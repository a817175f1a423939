from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner

from ffd_runtime.core.errors import DataError
from ffd_train.augmentation import AUGMENTATIONS, AugmentationPipeline
from ffd_train.checkpoint import load_card
from ffd_train.network_registry import NETWORKS

from ..conftest import picture
from ..tiny import make_faces

NETWORK = """
from ffd_train.network_registry import NETWORKS

NETWORKS["dummy"] = f"{__name__}:build"


def build(network, weights):
    from torch import nn
    from ffd_train.networks import FaceNet

    blocks = [nn.Conv2d(size, 4, 3, 2, 1) for size in (3, 4, 4, 4, 4)]
    return FaceNet(*blocks, channels=4)
"""
AUGMENTATION = """
from typing import Annotated
from ffd_train.augmentation import AUGMENTATIONS, Range


def posterise(image, rng, levels: Annotated[Range, 2, 256]):
    step = 256 // round(rng.uniform(*levels))
    return image // step * step


AUGMENTATIONS["posterise"] = posterise
"""
RECIPE = "[posterise]\nprobability = 1.0\nlevels = [4, 4]\n"


def test_a_new_augmentation_is_one_module_and_one_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffd_train.augmentation.AUGMENTATIONS", dict(AUGMENTATIONS))
    exec(AUGMENTATION, {"__name__": "dummy_augmentation"})
    recipe = AugmentationPipeline.parse(RECIPE)
    made = recipe(picture("red", 32, 32), np.random.default_rng(0))
    assert set(np.unique(made)) <= {0, 64, 128, 192}
    assert AugmentationPipeline.from_tables(recipe.to_tables()) == recipe
    with pytest.raises(DataError, match="levels must be .low, high. within 2 and 256"):
        AugmentationPipeline.parse(RECIPE.replace("[4, 4]", "[1, 4]"))


@patch.dict(NETWORKS)
@patch.dict(AUGMENTATIONS)
def test_a_new_network_is_one_module_and_one_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command trains it, with a new augmentation in the recipe."""
    (tmp_path / "dummy_network.py").write_text(NETWORK)
    (tmp_path / "dummy_augmentation.py").write_text(AUGMENTATION)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    make_faces(tmp_path / "faces", {"train": 2, "val": 2})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    # The command reads the registry when its module is imported.
    monkeypatch.delitem(sys.modules, "ffd_train.cli.train", raising=False)
    monkeypatch.delattr("ffd_train.cli.train", raising=False)
    for name in ("dummy_network", "dummy_augmentation"):
        importlib.import_module(name)
    command = importlib.import_module("ffd_train.cli.train").main
    options = "--network dummy --weights none --stage all:1:1e-3 --batch 4 --workers 0 --name run"
    outcome = CliRunner().invoke(command, ["faces", *options.split(), "--recipe", "recipe.toml"])
    assert outcome.exit_code == 0, outcome.output
    assert load_card(tmp_path / "runs/run/best.safetensors").architecture == "dummy"
    settings = json.loads((tmp_path / "runs/run/settings.json").read_text())
    assert settings["recipe"]["posterise"] == {"probability": 1.0, "levels": [4.0, 4.0]}

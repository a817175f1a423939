"""tools/pair.py joins two networks as one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tools import pair

from ffd_runtime.model.card import ModelCard, Provenance
from ffd_train.checkpoint import load_checkpoint, save_checkpoint
from ffd_train.networks import build
from ffd_train.settings import Settings

LITE = "tf_efficientnet_lite0"
CARD = ModelCard("one", LITE, Provenance("0"), threshold=0.6, unsure=(0.2, 0.7))
IMAGES = torch.randint(0, 256, (2, 96, 96, 3), dtype=torch.uint8)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(pair.main, list(map(str, arguments)))


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and a run folder with settings and a manifest."""
    second = tmp_path / "second"
    second.mkdir()
    save_checkpoint(tmp_path / "first.safetensors", build(LITE), CARD)
    save_checkpoint(second / "best.safetensors", build(LITE), CARD)
    settings = Settings(data="faces", network=LITE, leave_out=("sd",))
    (second / "settings.json").write_text(settings.to_json())
    (second / "manifest.csv").write_text("path,label\n")
    return tmp_path / "first.safetensors", second


def test_a_pair_is_a_run_that_computes_the_mean(inputs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = inputs
    outcome = run(first, second, tmp_path / "pair", "--share", 0.25)
    assert outcome.exit_code == 0, outcome.output
    joined, card = load_checkpoint(tmp_path / "pair/best.safetensors")
    one, _ = load_checkpoint(first)
    other, _ = load_checkpoint(second / "best.safetensors")
    with torch.inference_mode():
        expected = 0.25 * one(IMAGES) + 0.75 * other(IMAGES)
        torch.testing.assert_close(joined(IMAGES), expected, rtol=5e-3, atol=5e-3)
    assert all(
        torch.equal(layer.weight, layer.weight.half().float())
        for layer in joined.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    )
    assert (card.name, card.architecture, card.threshold) == ("pair", f"{LITE}_pair", 0.6)
    assert str(card.provenance.weights).count("sha256") == 2
    settings = Settings.from_json((tmp_path / "pair/settings.json").read_text())
    assert (settings.network, settings.leave_out) == (card.architecture, ("sd",))
    assert (tmp_path / "pair/manifest.csv").read_text() == "path,label\n"


def test_other_networks_and_existing_folders_fail(
    inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    first, second = inputs
    outcome = run(first, second, second)
    assert outcome.exit_code == 1
    assert "exists: name a new folder" in outcome.stderr
    save_checkpoint(first, build(f"{LITE}_pair"), CARD.replace(architecture=f"{LITE}_pair"))
    outcome = run(first, second, tmp_path / "pair")
    assert outcome.exit_code == 1
    assert f"give two {LITE}" in outcome.stderr
    assert not (tmp_path / "pair").exists()

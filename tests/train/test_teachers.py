"""Teachers of one or several networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.card import ModelCard, Provenance
from ffd_train.checkpoint import save_checkpoint
from ffd_train.settings import Settings
from ffd_train.stage import Stage
from ffd_train.staged_training import StagedTraining
from ffd_train.teachers import load_teacher

from .. import tiny

IMAGES = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Two checkpoints with different weights."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.safetensors"
        save_checkpoint(path, tiny.build_tiny(), ModelCard("tiny", "tiny", Provenance("0.1.0")))
        found.append(str(path))
    return found


def test_without_paths_there_is_no_teacher() -> None:
    assert load_teacher(()) is None


def test_the_logits_of_several_teachers_are_averaged(paths: list[str]) -> None:
    chosen = ([paths[0]], [paths[1]], paths, [paths[0], *paths])
    first, second, both, uneven = filter(None, map(load_teacher, chosen))
    with torch.no_grad():
        one, other = first(IMAGES), second(IMAGES)
        torch.testing.assert_close(both(IMAGES), (one + other) / 2)
        torch.testing.assert_close(uneven(IMAGES), (2 * one + other) / 3)
    assert not torch.allclose(one, other)
    assert not any(weight.requires_grad for weight in both.parameters())


def test_a_run_resumes_only_with_its_teacher(paths: list[str]) -> None:
    def training(path: str) -> StagedTraining:
        return StagedTraining(
            tiny.build_tiny(), Settings(), Stage("all", 1, 1e-3), 0, load_teacher([path])
        )

    checkpoint: dict[str, Any] = {}
    training(paths[0]).on_save_checkpoint(checkpoint)
    training(paths[0]).on_load_checkpoint(checkpoint)
    with pytest.raises(ModelError, match="--teacher has changed"):
        training(paths[1]).on_load_checkpoint(checkpoint)


def test_a_missing_teacher_is_an_error(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load_teacher([*paths, str(tmp_path / "absent")])


@pytest.mark.parametrize(
    ("written", "read"), [('""', ()), ('"a"', ("a",)), ('["a", "b"]', ("a", "b"))]
)
def test_settings_of_earlier_runs_name_one_teacher(written: str, read: tuple[str, ...]) -> None:
    text = Settings().to_json().replace('"teacher": []', f'"teacher": {written}')
    assert Settings.from_json(text).teacher == read

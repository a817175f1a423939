"""Teachers of one or several networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.card import ModelCard, Provenance
from ffd_train.checkpoint import save_checkpoint
from ffd_train.settings import Settings
from ffd_train.stage import Stage
from ffd_train.staged_training import StagedTraining
from ffd_train.teachers import Teacher, load_teacher

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


def test_a_network_that_is_given_twice_counts_twice(paths: list[str]) -> None:
    chosen = ([paths[0]], [paths[1]], [paths[0], *paths])
    first, second, uneven = filter(None, map(load_teacher, chosen))
    one, other = (teacher.networks[0](IMAGES) for teacher in (first, second))
    assert not torch.allclose(one, other)
    assert not any(weight.requires_grad for weight in uneven.parameters())
    agreed = one.argmax(1) == other.argmax(1)
    logits, is_right = uneven(IMAGES, one.argmax(1))
    expected = torch.where(agreed.unsqueeze(1), (2 * one + other) / 3, one)
    torch.testing.assert_close(logits, expected)
    assert is_right.all()


class Fixed(nn.Module):
    """A network with the same logits for all data."""

    def __init__(self, *logits: tuple[float, float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_only_the_networks_that_are_right_teach_an_image() -> None:
    # By image: both are right, only the first, only the second, none.
    first = Fixed((3.0, 1.0), (2.0, 0.0), (4.0, 0.0), (0.0, 9.0))
    second = Fixed((5.0, -1.0), (0.0, 8.0), (0.0, 6.0), (1.0, 2.0))
    logits, is_right = Teacher([first, second])(IMAGES, torch.tensor([0, 0, 1, 0]))
    assert logits.tolist() == [[4.0, 0.0], [2.0, 0.0], [0.0, 6.0], [0.0, 0.0]]
    assert is_right.tolist() == [True, True, True, False]


def test_where_every_teacher_is_wrong_the_label_alone_is_learned() -> None:
    images, labels = IMAGES, torch.tensor([0, 1])
    net = tiny.build_tiny()
    settings = Settings(teacher_weight=1.0)

    def loss(teacher: Teacher | None) -> float:
        training = StagedTraining(net, settings, Stage("all", 1, 1e-3), 0, teacher)
        training.log = lambda *_, **__: None  # type: ignore[method-assign]
        # Without dropout, equal steps have equal losses.
        return training.eval().training_step((images, labels)).item()

    wrong = Teacher([Fixed((-9.0, 9.0), (9.0, -9.0))])
    right = Teacher([Fixed((9.0, -9.0), (-9.0, 9.0))])
    assert loss(wrong) == loss(None)
    assert loss(right) != pytest.approx(loss(None), rel=0.1)


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

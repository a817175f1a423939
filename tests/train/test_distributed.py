from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ffd_runtime.core.errors import DataError
from ffd_train.cli.train import main as ffd_train
from ffd_train.settings import Settings
from ffd_train.world import World


def test_an_indivisible_batch_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*options: object) -> str:
        outcome = CliRunner().invoke(ffd_train, [str(tmp_path), *map(str, options)])
        assert outcome.exit_code == 2
        return outcome.stderr.splitlines()[-1]

    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.json").write_text(Settings(batch=20, accumulate=8).to_json())
    shared = "1 x 8 micro-batches (processes x accumulation steps) of two images or more: use "
    assert f"{shared}--accumulate 10" in error("--resume", run)
    assert "use --accumulate 10" in error("--resume", run, "--accumulate", 16)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "3"), ("LOCAL_WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    whole = "micro-batches (processes x accumulation steps) of two images or more: use --batch"
    assert f"a batch of 32 images cannot be divided evenly into 3 x 1 {whole} 33" in error()
    assert f"into 3 x 4 {whole} 36" in error("--batch", 32, "--accumulate", 4)
    assert f"into 3 x 1 {whole} 6" in error("--batch", 4)
    assert "start another number of processes" in error("--resume", run)


def test_the_world_is_read_from_torchruns_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World.from_environment() == World()
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    own = World.from_environment()
    assert (own.rank, own.size, own.nodes, own.is_main) == (5, 8, 2, False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(DataError, match="the same --nproc-per-node on every machine"):
        World.from_environment()

"""The overhead of a training step: synchronisation, averaging, kernels, compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.card import PreprocessSpec
from ffd_train.checkpoint import load_checkpoint
from ffd_train.dataset import FaceDataset
from ffd_train.face_data import FaceData
from ffd_train.loading import TimedLoader
from ffd_train.moving_average import MovingAverage
from ffd_train.scanning import scan
from ffd_train.settings import Settings
from ffd_train.stage import Stage
from ffd_train.staged_training import FaceDataModule, StagedTraining
from ffd_train.training import train
from ffd_train.world import World

from .. import tiny

STAGE = Stage("all", 1, 1e-2)
SETTINGS = Settings(
    network="tiny", weights="none", stages=(STAGE,), batch=8, crop=64, recipe=None, workers=0
)
COMPILE = torch.compile
aten = torch.ops.aten


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FaceData:
    root = tmp_path_factory.mktemp("data")
    return scan(tiny.make_faces(root / "faces", {"train": 12, "val": 4}), ("train", "val"))


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators that synchronise with the host."""

    WAITED_FOR = frozenset(
        {
            aten._local_scalar_dense,  # float(), int(), bool() and item() of a tensor.
            aten._unique2,
            aten.equal,
            aten.is_nonzero,
            aten.masked_select,
            aten.nonzero,
            aten.unique_consecutive,
            aten.unique_dim,
        }
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.waited_for: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        if func.overloadpacket in self.WAITED_FOR:
            self.waited_for.append(str(func))
        return func(*args, **(kwargs or {}))


class Watched(StagedTraining):
    """A stage that is watched from the arrival of the batch to the end of averaging."""

    waits: Waits

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.waits.__exit__(None, None, None)  # type: ignore[no-untyped-call]


class Begin(Callback):
    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, Watched)
        module.waits.__enter__()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("taught", [False, True])
def test_a_step_never_waits_for_the_device(data: FaceData, taught: bool) -> None:
    teacher = tiny.build_tiny().eval() if taught else None
    module = Watched(tiny.build_tiny(), SETTINGS, STAGE, 0, teacher)
    module.waits = Waits()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Begin()],
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=FaceDataModule(data, SETTINGS, 0, World()))
    assert trainer.global_step == 3
    assert module.waits.count > 300
    assert module.waits.waited_for == []


def random_net() -> Any:
    net = tiny.build_tiny()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor))
        else:
            tensor.copy_(torch.randint(1, 1000, tensor.shape))
    return net


def test_the_average_follows_weights_and_copies_counters() -> None:
    torch.manual_seed(0)
    average = MovingAverage(tiny.build_tiny(), 0.3)
    nets = [random_net() for _ in range(5)]
    expected = dict(nets[0].state_dict())
    average.update(nets[0])
    for name, tensor in average.module.state_dict().items():
        assert torch.equal(tensor, expected[name])
    for seen, net in enumerate(nets[1:], 1):
        decay = min(0.3, (1 + seen) / (10 + seen))
        average.update(net)
        for name, tensor in net.state_dict().items():
            old = expected[name]
            kept = decay * old + (1 - decay) * tensor
            expected[name] = kept if tensor.is_floating_point() else tensor
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert int(average.n_averaged) == 5


def test_a_state_of_an_earlier_version_can_be_resumed() -> None:
    torch.manual_seed(0)
    earlier = AveragedModel(tiny.build_tiny(), use_buffers=True)
    begun, other = MovingAverage(tiny.build_tiny(), 0.9), MovingAverage(tiny.build_tiny(), 0.9)
    assert set(begun.state_dict()) == set(earlier.state_dict())
    first, second = random_net(), random_net()
    begun.update(first)
    # In the parent process, like Lightning.
    nn.ModuleDict({"average": other}).load_state_dict(
        {f"average.{name}": value for name, value in begun.state_dict().items()}
    )
    for average in (begun, other):
        average.update(second)
    for name, tensor in begun.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_kernels_are_timed_while_training_only(data: FaceData, tmp_path: Path) -> None:
    during: list[bool] = []
    assert not torch.backends.cudnn.benchmark
    train(
        data,
        SETTINGS,
        tmp_path / "run",
        say=lambda line: during.append(torch.backends.cudnn.benchmark),
    )
    # The last entry is calibration, with one batch of another shape.
    assert during[0]
    assert not torch.backends.cudnn.benchmark


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Record the compiled networks; they are traced, but without slow C++ compilation."""
    found: list[nn.Module] = []

    def compile_quickly(net: nn.Module, **options: Any) -> Any:
        found.append(net)
        return COMPILE(net, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_quickly)
    return found


def test_a_compiled_run_is_the_same_run(
    data: FaceData, tmp_path: Path, compiled: list[nn.Module]
) -> None:
    from torch._dynamo.utils import counters

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    settings = replace(SETTINGS, stages=(Stage("all", 2, 1e-2),), network="plain")
    train(data, settings, tmp_path / "plain")
    assert not compiled
    counters.clear()
    # Compiled and resumed without compilation: state and checkpoint have the plain names.
    with pytest.raises(KeyboardInterrupt):
        train(data, replace(settings, compile=True), tmp_path / "compiled", say=stop)
    assert len(compiled) == 1
    assert counters["stats"]["unique_graphs"] == 1
    states = [
        torch.load(tmp_path / name / "resume.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "compiled")
    ]
    assert list(states[0]) == list(states[1])
    train(data, settings, tmp_path / "compiled", resume=True)
    first, _ = load_checkpoint(tmp_path / "plain" / "best.safetensors")
    second, _ = load_checkpoint(tmp_path / "compiled" / "best.safetensors")
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    text = (tmp_path / "plain" / "settings.json").read_text()
    assert not Settings.from_json(text.replace('"compile": false', '"seed": 0')).compile


def test_a_teacher_is_compiled_too(compiled: list[nn.Module]) -> None:
    net, teacher = tiny.build_tiny(), tiny.build_tiny()
    StagedTraining(net, replace(SETTINGS, compile=True), STAGE, 0, teacher)
    assert compiled == [net, teacher]


def test_a_failed_compilation_is_a_one_line_error(
    data: FaceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: Any) -> Callable[..., Any]:
        raise RuntimeError("Failed to find C compiler.\nSee the documentation")

    monkeypatch.setattr(torch, "compile", partial(COMPILE, backend=lack))
    with pytest.raises(ModelError, match="--compile: .*Failed to find C compiler.*--no") as caught:
        train(data, replace(SETTINGS, compile=True), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_loader_has_one_worker_per_core(data: FaceData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ffd_train.loading.count_cores", lambda: 48)
    samples = data.split("train") * 100
    dataset = FaceDataset(data, samples, PreprocessSpec())
    assert TimedLoader(dataset, batch_size=8).num_workers == 48
    assert TimedLoader(dataset, 3, batch_size=8).num_workers == 3
    # At most one worker per batch; the last batch is incomplete.
    few = FaceDataset(data, samples[:17], PreprocessSpec())
    assert TimedLoader(few, batch_size=8).num_workers == 3
    assert TimedLoader(few, batch_sampler=[[0, 1], [2, 3]]).num_workers == 2
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert TimedLoader(dataset, batch_size=8).num_workers == 12

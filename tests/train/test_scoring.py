"""A checkpoint in PyTorch computes and fails like the exported file."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.errors import BackendError, DeviceMemoryError
from ffd_runtime.model.card import PreprocessSpec
from ffd_train.evaluation import evaluate
from ffd_train.face_data import FaceData
from ffd_train.predict import is_out_of_memory, predict_logits
from ffd_train.scanning import find_labelled
from ffd_train.scoring import TorchBackend
from ffd_train.tf32 import without_tf32

from .. import tiny
from ..models import CARD

IMAGES = np.zeros((3, 299, 299, 3), np.uint8)
# Messages of PyTorch, cuDNN, cuBLAS, the driver and the CPU's allocator.
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 1 bytes. Error code 12 (Cannot allocate memory)"
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> FaceData:
    root = tmp_path_factory.mktemp("data")
    return find_labelled(tiny.make_faces(root / "faces", {"test": 4}))


class Spy(nn.Module):
    """Calls a function within the network."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.call(image)
        return image


def net_with(call: Any) -> Any:
    torch.manual_seed(0)
    net = tiny.build_plain()
    net.layer4.append(Spy(call))  # type: ignore[operator]
    return net


def settings() -> tuple[str, str]:
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return str(backends.cudnn.allow_tf32), str(backends.cuda.matmul.allow_tf32)
    return backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision


EXACT = ("ieee", "ieee") if hasattr(torch.backends.cudnn, "conv") else ("False", "False")


def test_a_checkpoint_is_calibrated_and_evaluated_without_tf32(data: FaceData) -> None:
    before = settings()
    assert before != EXACT
    seen = []
    net = net_with(lambda image: seen.append(settings()))
    predict_logits(net, data, data.samples, PreprocessSpec())
    backend = TorchBackend(net, CARD)
    backend.infer(IMAGES)
    assert seen == [EXACT] * 2
    assert settings() == before


def test_tf32_is_restored_when_the_last_thread_leaves() -> None:
    before = settings()
    first, second = Barrier(2), Barrier(2)
    seen = []

    def leave_first() -> None:
        with without_tf32():
            first.wait()
        second.wait()

    thread = Thread(target=leave_first)
    thread.start()
    with without_tf32():
        first.wait()
        second.wait()
        seen.append(settings())
        with pytest.raises(ZeroDivisionError), without_tf32():
            _ = 1 / 0
        seen.append(settings())
    thread.join()
    assert seen == [EXACT] * 2
    assert settings() == before
    # The caller's settings, new and old, are restored.
    torch.set_float32_matmul_precision("high")
    try:
        with without_tf32():
            assert settings() == EXACT
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_tf32_is_disabled_in_an_older_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, matmul = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    monkeypatch.setattr(torch.backends.cuda, "matmul", matmul)
    with without_tf32():
        assert not cudnn.allow_tf32
        assert not matmul.allow_tf32
    assert cudnn.allow_tf32
    assert matmul.allow_tf32


@pytest.mark.parametrize("error", FULL)
def test_a_batch_too_large_for_the_memory_is_halved(data: FaceData, error: RuntimeError) -> None:
    sizes = []

    def hold_three(image: torch.Tensor) -> None:
        sizes.append(len(image))
        if len(image) > 3:
            raise error

    def score(call: Any) -> list[float | None]:
        classifier = Classifier(TorchBackend(net_with(call), CARD), batch=8, workers=1)
        with classifier:
            return [row.score for row in evaluate(classifier, data).rows]

    expected = score(lambda image: None)
    assert score(hold_three) == pytest.approx(expected, rel=1e-5)
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2


def test_an_image_too_large_and_other_failures_are_errors_of_the_backend() -> None:
    def fail(error: RuntimeError) -> BackendError:
        def call(image: torch.Tensor) -> None:
            raise error

        with pytest.raises(BackendError) as caught:
            TorchBackend(net_with(call), CARD).infer(IMAGES)
        assert "\n" not in str(caught.value)
        return caught.value

    assert all(type(fail(error)) is DeviceMemoryError for error in FULL)
    other = fail(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED\nadvice"))
    assert type(other) is BackendError
    assert str(other) == "PyTorch: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"


def test_out_of_memory_errors_are_recognised(data: FaceData) -> None:
    assert [is_out_of_memory(error) for error in FULL] == [True] * 4 + [False]
    assert not is_out_of_memory(RuntimeError("unable to mmap: Cannot allocate memory (12)"))

    def hold_three(image: torch.Tensor) -> None:
        if len(image) > 3:
            raise FULL[1]

    expected = predict_logits(net_with(lambda image: None), data, data.samples, PreprocessSpec())
    logits = predict_logits(net_with(hold_three), data, data.samples, PreprocessSpec())
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_a_network_that_does_not_fit_the_device_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: nn.Module, *_: Any) -> nn.Module:
        raise FULL[0]

    monkeypatch.setattr(nn.Module, "to", refuse)
    with pytest.raises(DeviceMemoryError, match="PyTorch: CUDA out of memory"):
        TorchBackend(tiny.build_plain(), CARD)

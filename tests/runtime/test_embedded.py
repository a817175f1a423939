"""The choice between the embedded files, by device and by the card of the INT8 file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime import Classifier
from ffd_runtime.core.errors import DeviceError
from ffd_runtime.core.results import Label
from ffd_runtime.image.decode import decode
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.model import backends
from ffd_runtime.model.backends import (
    embedded,
    find_embedded,
    find_embedded_by,
    find_model,
    onnxruntime,
    open_backend,
)
from ffd_runtime.model.backends.embedded import EMBEDDED, EMBEDDED_INT8, explain_rejection
from ffd_runtime.model.backends.onnx_metadata import read_metadata
from ffd_runtime.model.card import CARD_KEY, ModelCard

from ..conftest import picture
from ..models import CARD, save_colour_model

GOOD = {
    "accuracy": 0.979,
    "accuracy_reference": 0.981,
    "roc_auc": 0.998,
    "roc_auc_reference": 0.999,
}


def int8_card(**changes: Any) -> ModelCard:
    return CARD.replace(precision="int8", metrics={"parity": {**GOOD, **changes}})


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Small files in place of the embedded ones; the INT8 one is within the limits."""
    fp32 = save_colour_model(tmp_path / "fp32.onnx")
    int8 = save_colour_model(tmp_path / "int8.onnx", card=int8_card().to_json())
    monkeypatch.setattr(embedded, "EMBEDDED", fp32)
    monkeypatch.setattr(embedded, "EMBEDDED_INT8", int8)
    monkeypatch.setattr(embedded, "count_gpus", lambda: 0)
    return fp32, int8


def set_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for module in (embedded, onnxruntime):
        monkeypatch.setattr(module, "count_gpus", lambda: count)


def test_a_cpu_uses_int8_and_a_gpu_fp32(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fp32, int8 = pair
    assert find_embedded("cpu") == find_embedded("auto") == find_model() == int8
    assert find_embedded("cuda") == find_embedded("cuda:1") == fp32
    set_gpus(monkeypatch, 1)
    assert find_embedded("auto") == find_model(device="auto") == fp32
    assert find_embedded("cpu") == int8
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        find_embedded("tpu")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"accuracy": 0.978}, None),
        ({"accuracy": 0.9779}, "accuracy 0.9779 is 0.0031 below FP32, limit 0.003"),
        ({"roc_auc": 0.997}, None),
        ({"roc_auc": 0.9969}, "roc_auc 0.9969 is 0.0021 below FP32, limit 0.002"),
        ({"accuracy": 1.0, "roc_auc": 1.0}, None),
        ({"accuracy": None}, "its card has no metrics.parity.accuracy"),
        ({"roc_auc_reference": "0.99"}, "its card has no metrics.parity.roc_auc_reference"),
    ],
)
def test_the_int8_file_is_used_if_its_card_is_within_the_limits(
    pair: tuple[Path, Path], changes: dict[str, Any], reason: str | None
) -> None:
    fp32, _ = pair
    card = int8_card(**changes)
    assert explain_rejection(card, CARD) == reason
    other = save_colour_model(fp32.with_name("other.onnx"), card=card.to_json())
    assert embedded._choose_for_cpu(fp32, other) == (fp32 if reason else other)


@given(lost=st.floats(-0.5, 0.5), ranking=st.floats(-0.5, 0.5))
def test_both_limits_must_be_met(lost: float, ranking: float) -> None:
    card = int8_card(
        accuracy=0.5 - lost, accuracy_reference=0.5, roc_auc=0.5 - ranking, roc_auc_reference=0.5
    )
    taken = explain_rejection(card, CARD) is None
    assert taken == (lost <= 0.003 + 1e-9 and ranking <= 0.002 + 1e-9)


@pytest.mark.parametrize(
    "card",
    [
        int8_card().replace(precision="fp16"),
        int8_card().replace(threshold=0.6),
        int8_card().replace(name="another"),
        int8_card().replace(metrics={}),
    ],
)
def test_a_card_of_another_model_is_rejected(card: ModelCard) -> None:
    assert explain_rejection(card, CARD)


@pytest.mark.parametrize("content", [None, b"", b"not an ONNX"])
def test_without_an_int8_file_a_cpu_uses_fp32(
    pair: tuple[Path, Path], content: bytes | None
) -> None:
    fp32, int8 = pair
    int8.unlink()
    if content is not None:
        int8.write_bytes(content)
    assert find_embedded("cpu") == fp32


def test_a_named_model_runs_unchanged(pair: tuple[Path, Path]) -> None:
    fp32, int8 = pair
    ways: tuple[Callable[[Path | None], Classifier], ...] = (
        lambda model: Classifier.open(model, device="cpu"),
        lambda model: Classifier.open(model, device="cpu", backend="onnxruntime"),
        lambda model: Classifier(open_backend(model)),
    )
    for open_it in ways:
        with open_it(None) as classifier:
            assert classifier.card.precision == "int8"
            assert ", int8), onnxruntime" in classifier.description
        with open_it(fp32) as classifier:
            assert classifier.card.precision == "fp32"
        with open_it(int8) as classifier:
            assert classifier.card.precision == "int8"


def test_a_gpu_that_cannot_be_used_is_replaced_by_the_cpu(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_gpus(monkeypatch, 1)
    monkeypatch.setattr(onnxruntime, "_open_cuda", lambda *arguments: (None, "no CUDA"))
    with caplog.at_level(logging.WARNING):
        opened = open_backend()
    assert opened.card.precision == "int8"
    assert "GPU" not in opened.description
    assert [record.message for record in caplog.records] == [
        "there is a GPU, but onnxruntime cannot use it: no CUDA; running on the CPU"
    ]


def test_both_files_contain_one_model_and_fit_the_package() -> None:
    int8, fp32 = (
        ModelCard.from_json(read_metadata(path)[CARD_KEY]) for path in (EMBEDDED_INT8, EMBEDDED)
    )
    assert EMBEDDED.stat().st_size + EMBEDDED_INT8.stat().st_size <= 25e6
    assert {path.name for path in EMBEDDED.parent.iterdir()} >= {EMBEDDED.name, EMBEDDED_INT8.name}
    assert (int8.precision, fp32.precision) == ("int8", "fp32")
    assert int8.provenance == fp32.provenance
    # The runtime follows the card.
    expected = EMBEDDED if explain_rejection(int8, fp32) else EMBEDDED_INT8
    assert backends.find_embedded("cpu") == expected
    assert find_embedded_by(int8) == EMBEDDED_INT8
    assert find_embedded_by(fp32) == EMBEDDED


def both(images: list[Any]) -> tuple[list[Label], list[Label]]:
    """Return the verdicts of FP32 and of INT8."""
    opened = [open_backend(path, "onnxruntime", "cpu") for path in (EMBEDDED, EMBEDDED_INT8)]
    card = opened[0].card
    batch = np.stack([preprocess(image, card.preprocess) for image in images])
    scores = [backend.infer(batch).probability[:, 0] for backend in opened]
    fp32, int8 = ([card.verdict(float(score)) for score in each] for each in scores)
    return fp32, int8


def test_verdicts_agree_on_synthetic_pictures() -> None:
    images: list[Any] = [picture(("red", "blue")[n % 2], 200, 250, seed=n) for n in range(4)]
    images += [np.full((40, 400, 3), value, np.uint8) for value in (0, 128, 255)]
    fp32, int8 = both(images)
    assert "generated" not in {a for a, b in zip(fp32, int8, strict=True) if b == "groundtruth"}
    assert sum(a != b for a, b in zip(fp32, int8, strict=True)) <= 1


@pytest.mark.no_cover
def test_verdicts_agree_on_real_faces(faces: Path) -> None:
    paths = [
        path
        for name in ("generated", "groundtruth")
        for path in sorted((faces / "val" / name).iterdir())[:20]
    ]
    fp32, int8 = both([decode(path.read_bytes()) for path in paths])
    pairs = list(zip(fp32, int8, strict=True))
    # A score may cross one edge of the unsure band, but not both.
    assert not [pair for pair in pairs if set(pair) == {"generated", "groundtruth"}]
    assert sum(a != b for a, b in pairs) <= 2

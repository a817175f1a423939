"""Quantisation to INT8 for both targets."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from ffd_export import int8
from ffd_export.baseline import Baseline, classify_candidate, open_candidate
from ffd_export.calibration import MAX_BINS, _coarsen
from ffd_export.conversion import convert
from ffd_export.export_options import ExportOptions
from ffd_export.int8 import choose_layers_to_keep, merge_groups, quantise
from ffd_export.layers import layer_types, require_layers
from ffd_export.onnx_file import read_onnx, to_bytes
from ffd_export.parity import classify
from ffd_export.reporter import Advance, Reporter
from ffd_export.sample_images import SampleImages, find_images
from ffd_export.source_model import open_source
from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.card import ModelCard

from ..nightly import examples, repeat
from .conftest import coarse_histograms, run

IMAGES = repeat(48, 96)


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_int8_quantises_for_its_target(
    images: SampleImages,
    card: ModelCard,
    quantised: onnx.ModelProto,
    exports: Path,
    target: str,
) -> None:
    if target == "tensorrt":
        quantised, card = read_onnx(exports / "embedded.int8-tensorrt.onnx")
    layers = layer_types(quantised)
    floats = ["head"] if target == "cpu" else ["stem.0", "head"]
    assert layers.counts() == {"int8": 51 - len(floats), "float": len(floats)}
    assert layers.of_other_type("int8") == floats
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    kinds = set()
    nodes = {output: node for node in quantised.graph.node for output in node.output}
    for node in quantised.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = stored[node.input[2]]
            kinds.add(zero.data_type)
            if target == "tensorrt":
                assert not numpy_helper.to_array(zero).any()
        if node.op_type == "Conv" and layers.types[node.name] == "int8":
            weight = nodes[node.input[1]]
            scales = numpy_helper.to_array(stored[weight.input[1]])
            assert scales.shape == numpy_helper.to_array(stored[weight.input[0]]).shape[:1]
            # TensorRT requires FP32 biases. On the CPU, they are quantised.
            assert (node.input[2] in nodes) == (target == "cpu")
    assert kinds == {TensorProto.UINT8 if target == "cpu" else TensorProto.INT8}
    with open_candidate(to_bytes(quantised, card)) as backend:
        assert len(classify(backend, images)) == 8


class Steps(Reporter):
    """Records the titles of all steps."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Advance]:
        self.titles.append(title)
        yield lambda count: None


def test_a_chosen_calibration_does_not_need_the_fp32_model(images: SampleImages) -> None:
    options = ExportOptions(EMBEDDED, int8=True, calibration="percentile")
    steps = Steps()
    exported = convert(open_source(EMBEDDED), options, images, None, steps)
    assert exported.card.precision == "int8"
    assert steps.titles == ["calibrating"]


def test_int8_scores_are_equal_on_a_cpu_without_vnni(
    model: onnx.ModelProto, card: ModelCard, quantised: onnx.ModelProto, images: SampleImages
) -> None:
    """Scores are equal if onnxruntime adds in 32 bits.

    A CPU with VNNI always adds in 32 bits. There, only the range of the weights is tested.
    """
    full_range = set(int8.depthwise_weights(model))
    assert len(full_range) == 16
    for tensor in quantised.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
            largest = int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
            assert largest <= (128 if tensor.name.removesuffix("_quantized") in full_range else 64)
    content = to_bytes(quantised, card)
    scores = []
    for exact in ("0", "1"):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", exact)
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        scores.append(session.run(["probability"], {"image": images.pixels})[0])
    assert np.array_equal(*scores)


def test_named_layers_are_kept_in_fp32(model: onnx.ModelProto, ranges: dict[str, Any]) -> None:
    kept = quantise(model, "cpu", ranges["percentile"], ["layer1.0.0.conv_dw", "layer4.2"])
    assert layer_types(kept).of_other_type("int8") == ["layer1.0.0.conv_dw", "layer4.2", "head"]
    require_layers(model, ["layer4.2"])
    with pytest.raises(ModelError, match="--keep layer9: no such layer; the layers are stem.0"):
        require_layers(model, ["layer9"])


@settings(deadline=None)
@given(half=st.integers(256, 5000), seed=st.integers(0, 5))
def test_histograms_of_outliers_have_few_bins(half: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 9, 2 * half)
    edges = np.linspace(-3, 3, 2 * half + 1).astype(np.float32)
    made, wider, *rest = _coarsen(counts, edges, -3.0, 3.0, 3.0)
    assert rest[:2] == [-3.0, 3.0]
    assert len(made) <= MAX_BINS + 2
    assert len(made) % 2 == 0
    assert len(wider) == len(made) + 1
    assert made.sum() == counts.sum()
    # Values below 0 are still below 0.
    assert made[: len(made) // 2].sum() == counts[:half].sum()
    assert wider[0] <= edges[0] * 0.9999
    assert np.isclose(wider[len(made) // 2], 0, atol=1e-6)


def test_keep_auto_finds_the_most_sensitive_layer_of_int8(
    model: onnx.ModelProto,
    card: ModelCard,
    images: SampleImages,
    ranges: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer with far too narrow ranges is the most sensitive one, and is kept."""
    found = copy.deepcopy(ranges["percentile"])
    # Clip the input of this layer to a thousandth of its range.
    (node,) = (node for node in model.graph.node if node.name == "layer3.3.1.conv_pw")
    low, high = found[node.input[0]].range_value
    found.data[node.input[0]] = type(found[node.input[0]])(
        lowest=low * np.float32(1e-3), highest=high * np.float32(1e-3)
    )
    names = ["layer3.3.0.conv_pw", "layer3.3.1.conv_pw", "layer4.2"]
    few = images.spread(4)
    baseline = Baseline(card, few, classify_candidate(model, card, few))
    sensitivity = baseline.measure_sensitivity(
        names, lambda layer: quantise(model, "tensorrt", found, only=layer), lambda count: None
    )
    assert next(iter(sensitivity)) == "layer3.3.1.conv_pw"
    assert sorted(sensitivity) == names
    # Layers are kept only if there are at least ten.
    padded = {**sensitivity, **{f"absent{i}": 0.0 for i in range(9)}}
    monkeypatch.setattr(Baseline, "measure_sensitivity", lambda *arguments: padded)
    kept = choose_layers_to_keep(model, "tensorrt", found, baseline)
    assert kept == ["layer3.3.1.conv_pw"]


@settings(deadline=None, max_examples=examples(20))
@given(
    channels=st.sampled_from([1, 2, 4, 8, 16, 32, 48]),
    groups=st.integers(1, 12),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_merged_groups_give_the_same_outputs(
    channels: int, groups: int, outputs: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(groups * outputs, channels, 3, 3)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv", group=groups)],
        "grouped",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels * groups, 5, 5])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, groups * outputs, 3, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    made = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    x = rng.normal(size=(1, channels * groups, 5, 5)).astype(np.float32)
    expected = _run_graph(made, x)
    merge_groups(made)
    (attribute,) = made.graph.node[0].attribute
    if channels > 1:
        assert made.graph.initializer[0].dims[1] <= max(32, channels)
    assert attribute.i * made.graph.initializer[0].dims[1] == channels * groups
    assert np.allclose(_run_graph(made, x), expected, atol=1e-4)


def _run_graph(model: onnx.ModelProto, x: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def export_both(images: Path, output: Path) -> int:
    """Export the embedded model as FP16 and as INT8. Return a hash that depends on the seed."""
    given = [EMBEDDED, "--engine", "none", "--verify", "none", "--output", output]
    for arguments in (["--fp16"], ["--int8", "--calibrate", images, "--calibration-images", 8]):
        with coarse_histograms(64):
            outcome = run(*given, *arguments)
        assert outcome.exit_code == 0, outcome.output
    return hash("seed")


def test_exports_are_reproducible(labelled: Path, tmp_path: Path) -> None:
    """Two processes with different hash seeds write the same bytes."""
    code = """
import sys
from pathlib import Path
from tests.export.test_int8 import export_both
print(export_both(*map(Path, sys.argv[1:])))
"""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    process = subprocess.Popen(
        [sys.executable, "-c", code, labelled, tmp_path / "other"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": seed},
        stdout=subprocess.PIPE,
    )
    seeded = export_both(labelled, tmp_path / "own")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert int(output) != seeded
    for name in ("embedded.fp16.onnx", "embedded.int8.onnx"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.no_cover
def test_real_faces_pass_the_limits_of_both_precisions(faces: Path, tmp_path: Path) -> None:
    some, fewer = tmp_path / "some", tmp_path / "fewer"
    for folder, count in ((some, IMAGES), (fewer, 16)):
        for example in find_images(faces / "val", count):
            path = example.item.source
            link = folder / Path(path).relative_to(faces)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    outcome = run(EMBEDDED, "--fp16", "--verify", fewer, "--output", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    outcome = run(
        EMBEDDED, "--int8", "--calibrate", faces / "train", "--calibration-images", 48,
        "--calibration", "percentile", "--verify", some, "--output", tmp_path,
    )  # fmt: skip
    (row,) = map(json.loads, outcome.stdout.splitlines() or ["null"])
    # Calibrated on so few images, INT8 may exceed the limit. Then it must fail with the reason.
    if outcome.exit_code:
        assert "points of accuracy lost" in outcome.stderr.splitlines()[-1]
        assert "layers that differ most" in outcome.stderr.splitlines()[-1]
        assert not (tmp_path / "embedded.int8.onnx").exists()
    else:
        parity = row["parity"]
        assert parity["images"] == IMAGES
        assert parity["accuracy_reference"] - parity["accuracy"] <= 0.005
        assert parity["roc_auc"] > parity["roc_auc_reference"] - 0.01, parity

"""FP16 and INT8: what is converted, what is kept, and what the gates let through."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from sklearn.metrics import roc_auc_score

from ffd_export import fp16, int8
from ffd_export.baseline import Baseline, classify_candidate, open_candidate
from ffd_export.calibration import MAX_BINS, _coarsen, find_ranges
from ffd_export.cli.export import main
from ffd_export.fp16 import MAX_VALUE, find_overflows, to_fp16
from ffd_export.int8 import choose_layers_to_keep, measure_sensitivity, merge_groups, quantise
from ffd_export.layer_errors import compare_layers
from ffd_export.layers import LayerTypes, ends_of, layer_types, layers_of, require_layers
from ffd_export.onnx_file import read_onnx, to_bytes
from ffd_export.parity import Parity, classify, roc_auc
from ffd_export.sample_images import (
    Example,
    SampleImages,
    balance,
    find_images,
    label_of,
    prepare_images,
    spread,
)
from ffd_export.training_runs import find_calibration, find_verification
from ffd_runtime.core.errors import DataError, ModelError
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.card import ModelCard, PreprocessSpec
from ffd_train.prepare import preparing
from ffd_train.prepare.inputs import Input

from ..conftest import picture
from ..models import CARD, save_colour_model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="ffd-export")


def test_layers_carry_the_names_of_their_weights(model: onnx.ModelProto) -> None:
    layers = list(layer_types(model).types)
    assert layers[0] == "stem.0"
    assert {"layer1.0.0.conv_dw", "head", "heatmap"} <= set(layers)
    assert len(layers) == 51
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    ends = ends_of(model.graph)
    assert ends.first == ("stem.0",)
    assert ends.last == ("head",)


def test_fp16_is_typed_and_keeps_both_ends(model: onnx.ModelProto, card: ModelCard) -> None:
    before = model.SerializeToString(deterministic=True)
    half = to_fp16(model)
    assert model.SerializeToString(deterministic=True) == before
    assert set(layer_types(half).types.values()) == {"half"}
    inferred = onnx.shape_inference.infer_shapes(half)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    kinds |= {v.name: v.type.tensor_type.elem_type for v in half.graph.output}
    by_name = {node.name: node for node in half.graph.node}
    ends = ends_of(model.graph)
    for name in (*ends.normalisation, *ends.scores):
        assert kinds[by_name[name].output[0]] == TensorProto.FLOAT, name
    assert kinds["probability"] == kinds["heatmap"] == TensorProto.FLOAT
    # One cast in, one out to the scores, one to the heatmap: no value goes to FP16 and back.
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 4
    assert len(to_bytes(half, card)) < 0.52 * EMBEDDED.stat().st_size


def test_fp16_stays_near(model: onnx.ModelProto, card: ModelCard, images: SampleImages) -> None:
    baseline = Baseline(card, images, classify_candidate(model, card, images))
    assert 0 < baseline.compare(to_fp16(model)).largest < 1e-2


def loud(model: onnx.ModelProto, layer: str, factor: float) -> onnx.ModelProto:
    """The same network, but one layer's output is larger, which the next layer takes back."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes = {node.name: node for node in copy.graph.node}
    first = nodes[layer]
    (after,) = (node for node in copy.graph.node if first.output[0] in node.input)
    for node, scale, names in (
        (first, factor, first.input[1:]),
        (after, 1 / factor, after.input[1:2]),
    ):
        for name in names:
            values = numpy_helper.to_array(stored[name]) * np.float32(scale)
            stored[name].CopyFrom(numpy_helper.from_array(values, name))
        del node
    return copy


def test_what_overflows_stays_fp32_and_is_named(
    model: onnx.ModelProto, images: SampleImages
) -> None:
    assert find_overflows(model, find_ranges(model, images)) == []
    # Its output goes to the next layer with no activation in between.
    big = loud(model, "layer1.0.0.conv_pw", 1e6)
    found = find_ranges(big, images)
    assert max(max(-low, high) for low, high in found.values()) > MAX_VALUE
    overflowing = find_overflows(big, found)
    assert overflowing == ["layer1.0.0.conv_pw", "layer1.1.0.conv_pw"]
    pixels = images.pixels[:2]
    assert not compare_layers(big, to_fp16(big), pixels)["layer1.1.0.conv_pw"] < 0.5
    assert compare_layers(big, to_fp16(big, overflowing), pixels)["layer1.1.0.conv_pw"] < 0.01


def test_the_command_keeps_what_overflows(
    model: onnx.ModelProto, card: ModelCard, labelled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "loud.onnx"
    path.write_bytes(to_bytes(loud(model, "layer1.0.0.conv_pw", 1e6), card))
    outcome = run(path, "--fp16", "--verify", labelled)
    assert outcome.exit_code == 0, outcome.output
    assert "exceed FP16's range: layer1.0.0.conv_pw, layer1.1.0.conv_pw" in outcome.stderr
    _, made = read_onnx(tmp_path / "loud.fp16.onnx")
    assert made.precision == "fp16"
    assert made.metrics["export"]["overflowing"] == "layer1.0.0.conv_pw, layer1.1.0.conv_pw"
    assert made.metrics["export"]["half_layers"] == 49
    assert made.metrics["export"]["float_layers"] == 2
    assert made.metrics["parity"]["verified"] == "verified"


def shifted(model: onnx.ModelProto, layer: str, by: float) -> onnx.ModelProto:
    """The same network, but one layer's output is larger by so much, which the next takes back."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    (node,) = (node for node in copy.graph.node if node.name == layer)
    (after,) = (one for one in copy.graph.node if node.output[0] in one.input)
    weight = numpy_helper.to_array(stored[after.input[1]])
    assert weight.shape[2:] == (1, 1)
    for one, more in ((node, by), (after, -by * weight.sum((1, 2, 3)))):
        bias = numpy_helper.to_array(stored[one.input[2]]) + np.float32(more)
        stored[one.input[2]].CopyFrom(numpy_helper.from_array(bias, one.input[2]))
    return copy


def test_what_rounding_costs_most_is_found_and_kept(
    model: onnx.ModelProto,
    card: ModelCard,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each takes time; of twenty, two may be kept.
    monkeypatch.setattr(fp16, "layers_of", lambda graph: layers_of(graph)[:20])
    path = tmp_path / "shifted.onnx"
    path.write_bytes(to_bytes(shifted(model, "layer1.0.0.conv_pw", 3000), card))
    outcome = run(path, "--fp16", "--verify", labelled)
    assert outcome.exit_code == 1
    assert "largest |Δp|" in outcome.stderr
    assert "--keep auto finds layers to keep in FP32" in outcome.stderr
    outcome = run(path, "--fp16", "--verify", labelled, "--keep", "auto")
    assert outcome.exit_code == 0, outcome.stderr
    _, made = read_onnx(tmp_path / "shifted.fp16.onnx")
    kept = str(made.metrics["export"]["kept"]).split(", ")
    assert sorted(kept) == ["layer1.0.0.conv_pw", "layer1.1.0.conv_pw"]
    assert made.metrics["export"]["float_layers"] == 2


def test_any_nodes_may_stay_fp32(model: onnx.ModelProto, images: SampleImages) -> None:
    """Also those that share a constant, as all of the network's clips do."""
    clips = [node.name for node in model.graph.node if node.op_type == "Clip"]
    assert len(clips) > 10
    difference = compare_layers(model, to_fp16(model, clips), images.pixels[:2])
    assert max(difference.values()) < 0.05
    everything = [node.name for node in model.graph.node]
    assert max(compare_layers(model, to_fp16(model, everything), images.pixels[:2]).values()) == 0


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_int8_has_the_flavour_of_its_target(
    model: onnx.ModelProto,
    images: SampleImages,
    card: ModelCard,
    ranges: dict[str, Any],
    exports: Path,
    target: str,
) -> None:
    if target == "cpu":
        quantised = quantise(model, target, ranges["percentile"])
    else:
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
            # A quantised bias comes dequantised; TensorRT wants it as it is.
            assert (node.input[2] in nodes) == (target == "cpu")
    assert kinds == {TensorProto.UINT8 if target == "cpu" else TensorProto.INT8}
    with open_candidate(to_bytes(quantised, card)) as backend:
        assert len(classify(backend, images)) == 12


def test_int8_scores_the_same_on_a_cpu_without_vnni(
    model: onnx.ModelProto, card: ModelCard, ranges: dict[str, Any], images: SampleImages
) -> None:
    """Sums of 32 bits, which onnxruntime takes on request, change no bit of a score.

    On a CPU with VNNI all sums have 32 bits: there, the weights' range alone is tested.
    """
    quantised = quantise(model, "cpu", ranges["percentile"])
    whole = set(int8.depthwise_weights(model))
    assert len(whole) == 16
    for tensor in quantised.graph.initializer:
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4:
            largest = int(np.abs(numpy_helper.to_array(tensor).astype(int)).max())
            assert largest <= (128 if tensor.name.removesuffix("_quantized") in whole else 64)
    content = to_bytes(quantised, card)
    scores = []
    for exact in ("0", "1"):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", exact)
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        scores.append(session.run(["probability"], {"image": images.pixels})[0])
    assert np.array_equal(*scores)


def test_layers_asked_for_stay_fp32(model: onnx.ModelProto, ranges: dict[str, Any]) -> None:
    kept = quantise(model, "cpu", ranges["percentile"], ["layer1.0.0.conv_dw", "layer4.2"])
    assert layer_types(kept).of_other_type("int8") == ["layer1.0.0.conv_dw", "layer4.2", "head"]
    require_layers(model, ["layer4.2"])
    with pytest.raises(ModelError, match="--keep layer9: no such layer; the layers are stem.0"):
        require_layers(model, ["layer9"])


@settings(deadline=None)
@given(half=st.integers(256, 5000), seed=st.integers(0, 5))
def test_histograms_stay_small_whatever_outliers_come(half: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 9, 2 * half)
    edges = np.linspace(-3, 3, 2 * half + 1).astype(np.float32)
    made, wider, *rest = _coarsen(counts, edges, -3.0, 3.0, 3.0)
    assert rest[:2] == [-3.0, 3.0]
    assert len(made) <= MAX_BINS + 2
    assert len(made) % 2 == 0
    assert len(wider) == len(made) + 1
    assert made.sum() == counts.sum()
    # What lies below 0 still does.
    assert made[: len(made) // 2].sum() == counts[:half].sum()
    assert wider[0] <= edges[0] * 0.9999
    assert np.isclose(wider[len(made) // 2], 0, atol=1e-6)


def test_the_sensitive_layer_is_found(
    model: onnx.ModelProto,
    card: ModelCard,
    images: SampleImages,
    ranges: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer whose ranges are far too narrow costs most, and keeping it is worth it."""
    found = copy.deepcopy(ranges["percentile"])
    # The input of this layer is clipped to a thousandth of its range.
    (node,) = (node for node in model.graph.node if node.name == "layer3.3.1.conv_pw")
    low, high = found[node.input[0]].range_value
    found.data[node.input[0]] = type(found[node.input[0]])(
        lowest=low * np.float32(1e-3), highest=high * np.float32(1e-3)
    )
    names = ["layer3.3.0.conv_pw", "layer3.3.1.conv_pw", "layer4.2"]
    few = images.spread(4)
    baseline = Baseline(card, few, classify_candidate(model, card, few))
    monkeypatch.setattr(int8, "quantisable_layers", lambda model, target: names)
    sensitivity = measure_sensitivity(model, "tensorrt", found, baseline)
    assert next(iter(sensitivity)) == "layer3.3.1.conv_pw"
    assert sorted(sensitivity) == names
    # Layers are kept only if there are at least ten.
    padded = {**sensitivity, **{f"absent{i}": 0.0 for i in range(9)}}
    monkeypatch.setattr(int8, "measure_sensitivity", lambda *arguments: padded)
    kept = choose_layers_to_keep(model, "tensorrt", found, baseline)
    assert kept == ["layer3.3.1.conv_pw"]


@settings(deadline=None, max_examples=20)
@given(
    channels=st.sampled_from([1, 2, 4, 8, 16, 32, 48]),
    groups=st.integers(1, 12),
    outputs=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_merged_groups_compute_the_same(
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


def test_layers_that_differ_are_found(model: onnx.ModelProto, images: SampleImages) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    for tensor in broken.graph.initializer:
        if tensor.name == "net.layer3.3.2.conv_pw.weight":
            values = numpy_helper.to_array(tensor) * np.float32(1.5)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    differences = compare_layers(model, broken, images.pixels[:2])
    assert len(differences) == 51
    assert differences["stem.0"] == 0
    assert differences["layer3.3.2.conv_pw"] == pytest.approx(0.5, abs=0.2)


def test_beyond_the_limit_the_layers_are_named_and_nothing_is_left(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = to_fp16

    def wrong(model: onnx.ModelProto, keep: Any = ()) -> onnx.ModelProto:
        made = real(model, keep)
        for tensor in made.graph.initializer:
            if tensor.name == "net.head.weight":
                values = numpy_helper.to_array(tensor) * np.float16(-1)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return made

    monkeypatch.setattr(fp16, "to_fp16", wrong)
    outcome = run(EMBEDDED, "--fp16", "--verify", labelled, "--output", tmp_path / "out")
    assert outcome.exit_code == 1
    last = outcome.stderr.splitlines()[-1]
    assert "the exported fp16 model differs from the checkpoint on 12 images" in last
    assert "layers that differ most: head" in last
    assert not (tmp_path / "out").exists()


def test_the_same_export_gives_the_same_bytes(labelled: Path, tmp_path: Path) -> None:
    """In two processes that hash differently, as sets and dictionaries must not decide."""
    code = """
import sys
from ffd_export.cli.export import main
from tests.export.conftest import coarse_histograms
model, images, output = sys.argv[1:]
for arguments in (["--fp16"], ["--int8", "--calibrate", images]):
    with coarse_histograms():
        main([model, *arguments, "--verify", "none", "--output", output], standalone_mode=False)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, EMBEDDED, labelled, tmp_path / seed],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.DEVNULL,
        )
        for seed in ("1", "2")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    for name in ("embedded.fp16.onnx", "embedded.int8.onnx"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.no_cover
def test_on_real_faces_both_precisions_pass_their_gates(faces: Path, tmp_path: Path) -> None:
    some, fewer = tmp_path / "some", tmp_path / "fewer"
    for folder, count in ((some, 96), (fewer, 32)):
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
    # A calibration this small may miss the gate by a picture or two; then it must say so.
    if outcome.exit_code:
        assert "points of accuracy lost" in outcome.stderr.splitlines()[-1]
        assert "layers that differ most" in outcome.stderr.splitlines()[-1]
        assert not (tmp_path / "embedded.int8.onnx").exists()
    else:
        parity = row["parity"]
        assert parity["images"] == 96
        assert parity["accuracy_reference"] - parity["accuracy"] <= 0.005
        assert parity["roc_auc"] > parity["roc_auc_reference"] - 0.01, parity


def test_mistakes_end_in_one_line(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.onnx").write_bytes(os.urandom(1000))
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("no image")
    bare = save_colour_model(tmp_path / "bare.onnx", card=None)
    engine = tmp_path / "m.engine"
    engine.touch()
    half = tmp_path / "half.onnx"
    half.write_bytes(to_bytes(*_as(EMBEDDED, "fp16")))
    other = save_colour_model(tmp_path / "other.onnx", CARD.to_json(), size=224)
    none = ("--verify", "none")
    for arguments, message in (
        ((tmp_path / "absent.onnx", "--fp16", *none), "no such file"),
        ((tmp_path / "noise.onnx", "--fp16", *none), "is not an ONNX"),
        ((tmp_path / "absent.onnx", "--fp16"), "no such file"),
        ((bare, "--fp16"), "has no model card"),
        ((engine, "--fp16", *none), "is an engine already"),
        ((other, "--fp16", *none), "breaks the graph contract"),
        ((half, "--int8", "--calibrate", labelled, *none), "is fp16 already"),
        ((EMBEDDED, "--int8", *none), "training images cannot be found"),
        ((EMBEDDED, "--int8", "--calibrate", tmp_path / "empty", *none), "no file in it"),
        ((EMBEDDED, "--int8", "--calibrate", tmp_path / "absent", *none), "no such folder"),
        ((EMBEDDED, "--int8", "--calibrate", tmp_path / "text", *none), "is a readable image"),
        ((EMBEDDED, "--fp16"), "validation images cannot be found"),
        ((EMBEDDED, "--fp16", "--keep", "layer9", *none), "no such layer"),
    ):
        outcome = run(*arguments, "--output", tmp_path / "out")
        assert outcome.exit_code == 1, outcome.output
        last = outcome.stderr.splitlines()[-1]
        assert last.startswith("ffd-export: error: ")
        assert message in last
        assert "Traceback" not in outcome.output
    assert not (tmp_path / "out").exists()


def _as(path: Path, precision: str) -> tuple[onnx.ModelProto, ModelCard]:
    model, card = read_onnx(path)
    return model, card.replace(precision=precision)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fp16", "--int8"), "two exports"),
        (("--fp16", "--target", "cpu"), "--target is for --int8"),
        (("--keep", "head"), "--keep is for"),
        (("--fp16", "--keep", "auto", "--verify", "none"), "--keep auto needs images"),
        (("--exclude-lean-runtime",), "is for --version-compatible"),
        (("--int8", "--target", "cpu", "--engine", "rtx"), "does not support"),
        (("--max-batch", "4", "--opt-batch", "8"), "larger than"),
        (("--compute-capability", "8.9"), "is for --engine rtx"),
        (("--engine", "tensorrt", "--compute-capability", "8.9"), "is for --engine rtx"),
        (("--int8", "--workspace", "64"), "--workspace is for an engine"),
        (("--int8", "--optimization-level", "0"), "--optimization-level is for an engine"),
        (("--engine", "none", "--fp16", "--hardware-compatibility", "ampere_plus"), "is for an"),
        ((), "is an ONNX already"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str) -> None:
    outcome = run(EMBEDDED, *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_the_precision_gate_names_layers() -> None:
    kinds = {f"layer{i}": "half" for i in range(40)} | {"a": "float", "b": "float"}
    LayerTypes(kinds).require("fp16")
    more = LayerTypes({**kinds, "c": "float"})
    with pytest.raises(
        ModelError, match="only 40 of 43 .* are half, too few for fp16: a, b, c are"
    ):
        more.require("fp16")
    more.require("fp16", ["c"])
    with pytest.raises(ModelError, match="only 0 of 43"):
        more.require("int8")
    with pytest.raises(ModelError, match="none are left"):
        LayerTypes({"a": "float"}).require("fp16", ["a"])
    assert str(more) == "43 layers: 40 half, 3 float"


@pytest.mark.parametrize(
    ("precision", "parity", "fault"),
    [
        ("fp32", Parity(10, 9e-5, 0, 0, 0, "a"), None),
        ("fp32", Parity(10, 1.1e-4, 0, 0, 0, "a"), "largest"),
        ("fp32", Parity(10, 0, 0, 1, 0, "a"), "1 verdict flips"),
        ("fp16", Parity(10, 9e-3, 0, 3, 1, "a"), None),
        ("fp16", Parity(10, 1.1e-2, 0, 0, 0, "a"), "largest"),
        ("fp16", Parity(10, float("nan"), 0, 0, 0, "a"), "largest"),
        ("int8", Parity(1000, 0.4, 0, 9, 9, "a", (0.980, 0.975), (1, 1)), None),
        ("int8", Parity(1000, 0.1, 0, 9, 9, "a", (0.980, 0.974), (1, 1)), "0.60 points of accur"),
        ("int8", Parity(1000, 0.1, 0, 5, 5, "a"), None),
        ("int8", Parity(1000, 0.1, 0, 9, 6, "a"), "0.60 points of two-way decisions changed"),
        ("int8", Parity(1000, float("inf"), 0, 0, 0, "a"), "no probability for a"),
    ],
)
def test_the_limits_are_the_contracts(precision: str, parity: Parity, fault: str | None) -> None:
    if fault is None:
        parity.require(precision)
        return
    with pytest.raises(ModelError, match=fault):
        parity.require(precision)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2
    ).filter(lambda rows: len({positive for positive, _ in rows}) == 2)
)
def test_auc_is_scikit_learns(rows: list[tuple[bool, float]]) -> None:
    positive = np.array([row[0] for row in rows])
    scores = np.array([row[1] for row in rows])
    assert roc_auc(positive, scores) == pytest.approx(roc_auc_score(positive, scores))


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10), st.integers(1, 40))
def test_balance_takes_classes_alike(
    generated: int, groundtruth: int, unlabelled: int, count: int
) -> None:
    paths = [f"x/generated/{i}" for i in range(generated)]
    paths += [f"x/groundtruth/{i}" for i in range(groundtruth)]
    paths += [f"x/other/{i}" for i in range(unlabelled)]
    examples = [Example.of_file(path) for path in paths]
    chosen = balance(examples, count)
    assert len(chosen) == min(count, len(paths))
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(examples)
    if not unlabelled and count <= 2 * min(generated, groundtruth):
        labels = [example.label for example in chosen]
        assert abs(labels.count(0) - labels.count(1)) <= 1


def test_a_path_tells_its_label() -> None:
    assert label_of("faces/val/generated/a.jpg") == 0
    assert label_of("generated/groundtruth/deep/a.jpg") == 1
    assert label_of("faces/generated.jpg") is None
    assert spread(list(range(10)), 3) == [0, 3, 6]


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture())
    (tmp_path / "b.png").write_bytes(b"broken")
    images = prepare_images(find_images(tmp_path, 10), PreprocessSpec())
    assert images.sources == [str(tmp_path / "a.png")]
    ((path, reason),) = images.unreadable
    assert path == str(tmp_path / "b.png")
    assert reason.startswith("not an image")
    assert images.describe() == "1 images (1 unlabelled)"
    assert not images.labelled
    with pytest.raises(DataError, match="no such folder"):
        find_images(tmp_path / "absent", 3)


def test_a_packed_set_calibrates_and_verifies_with_different_images(tmp_path: Path) -> None:
    for seed, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        folder = tmp_path / "f" / split / ("generated", "groundtruth")[seed % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{seed}.png"), picture(seed=seed))
    packed = tmp_path / "packed"
    as_they_are = preparing.Settings(match=False)
    preparing.prepare(
        [Input(tmp_path / "f")], packed, as_they_are, 1, lambda _: None, lambda *_: lambda: None
    )

    def splits(examples: list[Example]) -> list[str]:
        return [Path(example.item.source).parent.name.split("-")[0] for example in examples]

    model = tmp_path / "absent.safetensors"
    assert splits(find_calibration(model, packed, 100)) == ["train"] * 8
    assert splits(find_verification(model, packed)) == ["val"] * 4
    with (packed / "val-000000.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"--calibrate .*val-000000.tar has .*: copy it again"):
        find_calibration(model, packed, 100)
    with pytest.raises(DataError, match=r"--verify .*val-000000.tar has .*: copy it again"):
        find_verification(model, packed)

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_export.onnx_file import read_onnx, to_bytes
from ffd_export.triton import NAME, quote, require_servable, triton_files
from ffd_runtime.core.errors import OutputError
from ffd_runtime.image.decode import decode
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.model.backends import EMBEDDED, open_backend
from ffd_runtime.model.backends.onnxruntime import cuda_options
from ffd_runtime.model.card import CARD_KEY, CLASSES, ModelCard, PreprocessSpec, Provenance

from ..conftest import picture
from ..models import CARD
from .conftest import error_of, run

Parse = Callable[[bytes], Any]

SPEC = PreprocessSpec(
    size=224,
    face_scale=1.7,
    target_mean=111.0,
    target_deviation=44.0,
    max_gain=2.5,
    clahe_clip=1.25,
    clahe_tiles=6,
)
UNUSUAL = CARD.replace(preprocess=SPEC, threshold=0.61, unsure=(0.37, 0.83))
TEXT = st.text(min_size=1)


@pytest.fixture(scope="module")
def parse() -> Parse:
    """Parse `config.pbtxt` as Triton does: unknown fields are errors."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs Triton's schema: pip install --no-deps tritonclient, as make does")
    # Load only this file. Its package needs gRPC and an older protobuf than onnx.
    path = Path(package.submodule_search_locations[0]) / "grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("triton_model_config", path)
    assert spec
    assert spec.loader
    schema: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    from google.protobuf import text_format

    return lambda content: text_format.Parse(content, schema.ModelConfig())


def files(
    name: str = "colour",
    card: ModelCard = CARD,
    platform: str = "onnxruntime",
    heatmap: tuple[int, int] = (13, 13),
    max_batch: int = 8,
) -> dict[str, bytes]:
    """Return content by path in the model's folder."""
    written = triton_files(
        Path("models"),
        name,
        b"a model",
        card,
        platform=platform,
        heatmap=heatmap,
        max_batch=max_batch,
    )
    home = Path("models") / name
    return {path.relative_to(home).as_posix(): content for path, content in written.items()}


def readme(**options: Any) -> str:
    return files(**options)["README.md"].decode()


def example(**options: Any) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```$", readme(**options), re.M | re.S)
    assert isinstance(code, str)
    return code


@pytest.mark.parametrize("platform", ["onnxruntime", "tensorrt"])
def test_triton_parses_the_configuration(parse: Parse, platform: str) -> None:
    config = parse(files(card=UNUSUAL, platform=platform, heatmap=(7, 9))["config.pbtxt"])
    assert config.name == "colour"
    assert config.max_batch_size == 8
    kinds = type(config).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_name
    tensors = [(t.name, t.data_type, list(t.dims)) for t in (*config.input, *config.output)]
    assert tensors == [
        ("image", kinds["TYPE_UINT8"].number, [224, 224, 3]),
        ("probability", kinds["TYPE_FP32"].number, [2]),
        ("heatmap", kinds["TYPE_FP32"].number, [7, 9]),
    ]
    assert [output.label_filename for output in config.output] == ["labels.txt", ""]
    assert config.version_policy.latest.num_versions == 1
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    others = {"onnxruntime": {"cudnn_conv_algo_search"}, "tensorrt": set()}
    assert set(config.parameters) == {CARD_KEY} | others[platform]
    assert ModelCard.from_json(config.parameters[CARD_KEY].string_value) == UNUSUAL


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_onnx_runs_with_and_without_a_gpu(parse: Parse, precision: str) -> None:
    config = parse(files(card=CARD.replace(precision=precision))["config.pbtxt"])
    assert (config.platform, config.backend) == ("", "onnxruntime")
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, group.KIND_AUTO)
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert cuda.name == "cuda"
    # The same options as in the runtime. Without TF32, FP16 would not use tensor cores.
    expected = {key: str(value) for key, value in cuda_options(precision).items()}
    assert dict(cuda.parameters) == expected
    assert ("use_tf32" in expected) == (precision == "fp32")
    # Set twice, as the backend overwrites the first for a model with a parameter, the card.
    assert expected["cudnn_conv_algo_search"] == "HEURISTIC"
    assert config.parameters["cudnn_conv_algo_search"].string_value == "1"


def test_an_int8_onnx_runs_on_the_cpu(parse: Parse) -> None:
    written = files(card=CARD.replace(precision="int8"))
    config = parse(written["config.pbtxt"])
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, group.KIND_CPU)
    assert not config.HasField("optimization")
    assert "no INT8 convolutions on CUDA" in written["README.md"].decode()


def test_an_engine_runs_on_a_gpu(parse: Parse) -> None:
    config = parse(files(platform="tensorrt")["config.pbtxt"])
    assert (config.platform, config.backend) == ("tensorrt_plan", "tensorrt")
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, group.KIND_GPU)
    assert not config.HasField("optimization")


@pytest.mark.parametrize(
    ("max_batch", "preferred", "warm"), [(1, [1], [1]), (2, [1, 2], [1, 2]), (5, [2, 5], [1, 5])]
)
def test_batch_sizes(parse: Parse, max_batch: int, preferred: list[int], warm: list[int]) -> None:
    config = parse(files(max_batch=max_batch)["config.pbtxt"])
    assert config.max_batch_size == max_batch
    assert list(config.dynamic_batching.preferred_batch_size) == preferred
    assert [sample.batch_size for sample in config.model_warmup] == warm
    assert len({sample.name for sample in config.model_warmup}) == len(warm)
    for sample in config.model_warmup:
        assert list(sample.inputs) == ["image"]
        image = sample.inputs["image"]
        assert image.WhichOneof("input_data_type") == "zero_data"
        assert (image.zero_data, list(image.dims)) == (True, [299, 299, 3])
        assert image.data_type == config.input[0].data_type


def test_shapes_equal_the_models(parse: Parse, colour_model: Path) -> None:
    config = parse(files()["config.pbtxt"])
    graph = onnx.load(colour_model).graph
    names = [value.name for value in (*graph.input, *graph.output)]
    assert [t.name for t in (*config.input, *config.output)] == names
    (image,) = graph.input
    dims = [side.dim_value for side in image.type.tensor_type.shape.dim[1:]]
    assert list(config.input[0].dims) == dims
    backend = open_backend(colour_model, device="cpu")
    given = backend.infer(np.zeros((3, *config.input[0].dims), np.uint8))
    assert given.probability.shape == (3, *config.output[0].dims)
    assert given.heatmap.shape == (3, *config.output[1].dims)


@given(TEXT, TEXT)
def test_any_text_is_preserved(parse: Parse, key: str, value: str) -> None:
    message = f"parameters {{ key: {quote(key)} value {{ string_value: {quote(value)} }} }}"
    assert message.isascii()
    assert parse(message.encode()).parameters[key].string_value == value


@pytest.mark.parametrize("text", ['"', "\\", "\\n", "\n\r\t\0", "\x01" + "7", "é1", "'", "#", "🙂"])
def test_special_texts_are_preserved(parse: Parse, text: str) -> None:
    assert parse(f"name: {quote(text)}".encode()).name == text


def test_a_lone_surrogate_fails() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        quote("\ud800")


@given(TEXT, TEXT, TEXT)
def test_any_card_is_preserved(parse: Parse, name: str, architecture: str, version: str) -> None:
    card = CARD.replace(
        name=name,
        architecture=architecture,
        provenance=Provenance(version),
        metrics={name: {version: 0.1}},
    )
    config = parse(files(card=card)["config.pbtxt"])
    assert ModelCard.from_json(config.parameters[CARD_KEY].string_value) == card
    page = readme(card=card)
    assert page.splitlines()[0] == "# colour"
    # No name changes the layout of the page.
    assert page.count("\n") == readme().count("\n")


@given(st.from_regex(NAME, fullmatch=True))
def test_valid_names(parse: Parse, name: str) -> None:
    assert parse(files(name)["config.pbtxt"]).name == name
    assert f"MODEL = {name!r}".replace("'", '"') in example(name=name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-v",
        "a/b",
        "/a",
        "../a",
        "a\\b",
        "a b",
        "a\n",
        "é",
        "a:b",
        "\ud800",
    ],
)
def test_invalid_names_fail_in_one_line(name: str) -> None:
    with pytest.raises(OutputError) as caught:
        require_servable(Path("models"), name)
    assert repr(name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("platform", "model"), [("onnxruntime", "model.onnx"), ("tensorrt", "model.plan")]
)
def test_the_files_of_a_repository(platform: str, model: str) -> None:
    written = files(platform=platform)
    assert sorted(written) == [f"1/{model}", "README.md", "config.pbtxt", "labels.txt"]
    assert written[f"1/{model}"] == b"a model"


def test_labels_have_the_order_of_classes() -> None:
    # Triton reads one label a line.
    assert files()["labels.txt"].decode().splitlines() == list(CLASSES)


def test_the_readme_has_the_numbers_of_the_card() -> None:
    page = " ".join(readme(card=UNUSUAL, heatmap=(7, 9), max_batch=16).split())
    for phrase in (
        "UINT8 [N, 224, 224, 3]",
        "N at most 16",
        "FP32 [N, 7, 9]",
        "1.7 times as large",
        "224 x 224",
        "+ 111.0",
        "44.0 / deviation but at most 2.5",
        "clip limit 1.25 and 6 x 6 tiles",
        "`generated` from 0.61 upwards",
    ):
        assert phrase in page
    assert "$" not in page


@pytest.mark.parametrize(
    ("unsure", "lines"),
    [
        ((0.37, 0.83), ["groundtruth` below 0.37", "unsure` from 0.37 to below 0.83",
                        "generated` from 0.83 upwards"]),
        ((0.5, 0.5), ["groundtruth` below 0.5", "generated` from 0.5 upwards"]),
        ((0.0, 0.83), ["unsure` from 0.0 to below 0.83", "generated` from 0.83 upwards"]),
        ((0.37, 1.0), ["groundtruth` below 0.37", "unsure` from 0.37 upwards"]),
    ],
)  # fmt: skip
def test_the_readme_describes_verdicts(unsure: tuple[float, float], lines: list[str]) -> None:
    page = readme(card=CARD.replace(unsure=unsure))
    assert re.findall(r"^- `(.*)$", page, re.M) == lines
    # The rule must be that of the code.
    for line in lines:
        label, rule = line.split("` ", 1)
        edge = float(rule.split()[1])
        inside = edge - 1e-6 if rule.startswith("below") else edge
        assert CARD.replace(unsure=unsure).verdict(inside) == label


def test_the_example_preprocesses_an_image(tmp_path: Path, colour_model: Path) -> None:
    """Run all parts of the example that need no server."""
    tree = ast.parse(example())
    tree.body = [
        node
        for node in tree.body
        if not isinstance(node, ast.If) and "tritonclient" not in ast.unparse(node)
    ]
    names: dict[str, Any] = {}
    exec(compile(tree, "client.py", "exec"), names)
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), picture("red"))
    pixels = names["prepare"](path, CARD.preprocess)
    assert (pixels.shape, pixels.dtype) == ((1, 299, 299, 3), np.uint8)
    np.testing.assert_array_equal(pixels[0], preprocess(decode(path.read_bytes()), CARD.preprocess))
    score = float(open_backend(colour_model, device="cpu").infer(pixels).probability[0, 0])
    assert CARD.verdict(score) == "generated"
    assert (names["MODEL"], names["CARD_KEY"]) == ("colour", CARD_KEY)


def test_a_repository_needs_no_other_package() -> None:
    code = "import sys, ffd_export.triton; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"tritonclient", "onnx", "torch", "tensorrt", "google.protobuf"} & set(loaded)


def test_the_command_writes_a_repository(parse: Parse, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    given = (EMBEDDED, "--verify", "none", "--output", tmp_path / "out", "--triton", repository)
    outcome = run(*given, "--fp16", "--max-batch", 12)
    assert outcome.exit_code == 0, outcome.output
    home = repository / "ffd-lite0"
    config = parse((home / "config.pbtxt").read_bytes())
    assert config.max_batch_size == 12
    assert config.backend == "onnxruntime"
    served = (home / "1/model.onnx").read_bytes()
    assert served == (tmp_path / "out/embedded.fp16.onnx").read_bytes()
    with closing(open_backend(home / "1/model.onnx", device="cpu")) as backend:
        image = np.zeros((2, 299, 299, 3), np.uint8)
        heatmap = backend.infer(image).heatmap
    assert list(config.output[1].dims) == list(heatmap.shape[1:])
    # Triton would serve a later version instead.
    (home / "7").mkdir()
    assert "7 would be served" in error_of(*given, "--fp16")


def test_an_invalid_name_fails_before_the_conversion(tmp_path: Path) -> None:
    model, card = read_onnx(EMBEDDED)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_bytes(model, card.replace(name="my run")))
    outcome = run(path, "--fp16", "--verify", "none", "--triton", tmp_path / "models")
    assert outcome.exit_code == 1
    first, error = outcome.stderr.splitlines()
    assert first == f"exporting {path}"
    assert "'my run' is an invalid name" in error
    assert list(tmp_path.iterdir()) == [path]


def test_triton_does_not_serve_engines_of_rtx(tmp_path: Path) -> None:
    outcome = run(EMBEDDED, "--engine", "rtx", "--triton", tmp_path)
    assert outcome.exit_code == 2
    assert "Triton does not serve" in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_an_onnx_is_served_unchanged(tmp_path: Path) -> None:
    outcome = run(EMBEDDED, "--triton", tmp_path)
    assert outcome.exit_code == 0, outcome.output
    assert (tmp_path / "ffd-lite0/1/model.onnx").read_bytes() == EMBEDDED.read_bytes()

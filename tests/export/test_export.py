from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from click.testing import Result
from torchvision.models.resnet import Bottleneck, ResNet

from ffd_export.atomic_files import write_files
from ffd_export.checkpoint_graph import compare_parts
from ffd_export.layers import ends_of
from ffd_export.onnx_file import read_onnx
from ffd_export.parity import Parity, classify, compare
from ffd_export.sample_images import Example, SampleImages, prepare_images
from ffd_runtime.core.errors import DataError, ModelError, OutputError
from ffd_runtime.core.file_hash import hash_file
from ffd_runtime.model.backends import Outputs, open_backend
from ffd_runtime.model.card import CARD_KEY, ModelCard, PreprocessSpec, Provenance
from ffd_train.checkpoint import load_checkpoint, save_checkpoint
from ffd_train.network_registry import NETWORKS
from ffd_train.networks import build
from ffd_train.run_folder import open_folder
from ffd_train.scanning import scan
from ffd_train.scoring import TorchBackend
from ffd_train.settings import Settings

from .. import tiny
from ..documented import documented_fields
from .conftest import error_of, run

assert "tiny" in NETWORKS


def save(path: Path, network: str = "tiny", temperature: float = 0.7) -> Path:
    torch.manual_seed(0)
    net = build(network)
    with torch.no_grad():
        net.head.weight.mul_(30)
    card = ModelCard("made", network, Provenance("0"), temperature=temperature, unsure=(0.4, 0.6))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, net, card)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoint") / "best.safetensors")


@pytest.fixture(scope="module")
def outcome(checkpoint: Path, labelled: Path) -> Result:
    """Export the checkpoint, and verify it on twelve images."""
    return run(checkpoint, "--verify", labelled)


@pytest.fixture(scope="module")
def exported(checkpoint: Path, outcome: Result) -> Path:
    assert outcome.exit_code == 0, outcome.output
    return checkpoint.with_suffix(".onnx")


def test_an_export_keeps_the_graph_contract(
    checkpoint: Path, outcome: Result, exported: Path
) -> None:
    (row,) = map(json.loads, outcome.stdout.splitlines())
    assert [set(row)] == documented_fields("json.md", "ffd-export")
    assert row["file"] == str(exported)
    assert row["sha256"] == hash_file(exported)
    assert row["layers"] == {"float": 7}
    assert row["parity"]["images"] == 8
    assert row["parity"]["largest_difference"] < 1e-4
    assert row["parity"]["verdict_flips"] == 0
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    (first,) = (node for node in model.graph.node if "image" in node.input)
    assert first.op_type == "Cast"
    assert all(i.data_location == onnx.TensorProto.DEFAULT for i in model.graph.initializer)
    assert sorted(path.name for path in exported.parent.iterdir()) == [
        "best.onnx",
        "best.safetensors",
    ]
    (entry,) = model.metadata_props
    assert entry.key == CARD_KEY
    card = ModelCard.from_json(entry.value)
    assert card.provenance.checkpoint_sha256 == hash_file(checkpoint)
    assert card.metrics["parity"] == row["parity"]
    assert card.precision == "fp32"


def test_exports_cast_first_and_transpose_second(exported: Path) -> None:
    model, _ = read_onnx(exported)
    nodes = {node.name: node for node in model.graph.node}
    normalisation = [nodes[name].op_type for name in ends_of(model.graph).normalisation]
    assert normalisation == ["Cast", "Transpose", "Sub", "Div"]
    assert list(model.graph.node[0].input) == ["image"]


def test_exports_contain_no_paths_of_this_machine(exported: Path) -> None:
    content = exported.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_exports_of_a_checkpoint_are_reproducible(
    checkpoint: Path, exported: Path, labelled: Path, tmp_path: Path
) -> None:
    assert run(checkpoint, "--verify", labelled, "--output", tmp_path).exit_code == 0
    assert (tmp_path / "best.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_agree_with_pytorch(checkpoint: Path, exported: Path, batch: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (batch, 299, 299, 3), np.uint8)
    ours = open_backend(exported, device="cpu").infer(images)
    reference = TorchBackend(*load_checkpoint(checkpoint)).infer(images)
    assert ours.probability.std() > 0.01
    assert np.allclose(ours.probability, reference.probability, atol=1e-5)
    assert np.allclose(ours.heatmap, reference.heatmap, atol=1e-3)
    log_odds = ours.heatmap.mean((1, 2))
    assert np.allclose(1 / (1 + np.exp(-log_odds)), ours.probability[:, 0], atol=1e-5)


# tests/e2e/test_whole_way.py exports the other real network.
@pytest.mark.no_cover
def test_a_resnext_exports(
    tmp_path: Path, portraits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_block_a_layer(*_: object, **__: object) -> ResNet:
        return ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4)

    monkeypatch.setattr("torchvision.models.get_model", one_block_a_layer)
    outcome = run(save(tmp_path / "best.safetensors", "resnext50_32x4d"), "--verify", portraits)
    assert outcome.exit_code == 0, outcome.output


def test_an_export_that_differs_is_not_written(
    exported: Path, tmp_path: Path, portraits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(tmp_path / "best.safetensors")
    graph, card = read_onnx(exported)
    (head,) = (tensor for tensor in graph.graph.initializer if tensor.name == "net.head.weight")
    wrong = onnx.numpy_helper.to_array(head) * np.float32(1.01)
    head.CopyFrom(onnx.numpy_helper.from_array(wrong, head.name))
    monkeypatch.setattr("ffd_export.checkpoint_graph.export_checkpoint", lambda path: (graph, card))
    parts: dict[str, float] = {}

    def compare_and_keep(path: Path, pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
        parts.update(compare_parts(path, pixels))
        return parts

    monkeypatch.setattr("ffd_export.checkpoint_graph.compare_parts", compare_and_keep)
    error = error_of(checkpoint, "--verify", portraits)
    assert "error: the exported fp32 model" in error
    assert "relative error by part: " in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "portraits"]
    # The head differs, which follows the compared parts.
    assert list(parts) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert max(parts.values()) < 1e-5


def prepared(folder: Path) -> SampleImages:
    return prepare_images(
        [Example.of_file(str(path)) for path in sorted(folder.iterdir())], PreprocessSpec()
    )


def compare_backends(reference: TorchBackend, other: TorchBackend, images: SampleImages) -> Parity:
    return compare(classify(reference, images), classify(other, images), images, reference.card)


def test_a_missing_probability_is_a_difference(tmp_path: Path, portraits: Path) -> None:
    net, card = load_checkpoint(save(tmp_path / "a.safetensors"))

    class Silent(TorchBackend):
        def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
            outputs = super().infer(images)
            outputs.probability[:] = np.nan
            return outputs

    parity = compare_backends(TorchBackend(net, card), Silent(net, card), prepared(portraits))
    assert parity.images == 3
    assert parity.flips == 3
    for precision in ("fp32", "fp16", "int8"):
        with pytest.raises(ModelError, match="differs from its source"):
            parity.require(precision)


def test_differences_are_found(tmp_path: Path, portraits: Path) -> None:
    net, card = load_checkpoint(save(tmp_path / "a.safetensors"))
    first = TorchBackend(net, card)
    other = TorchBackend(net, card.replace(temperature=1.4, unsure=(0.0, 1.0)))
    parity = compare_backends(first, other, prepared(portraits))
    assert parity.images == 3
    assert parity.largest >= parity.mean > 1e-3
    with pytest.raises(DataError, match="none of the 1 files"):
        prepare_images([Example.of_file(str(tmp_path / "absent.jpg"))], card.preprocess)


def test_the_newest_finished_run_is_exported(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    older = save(tmp_path / "runs/a/best.safetensors")
    newer = save(tmp_path / "runs/b/best.safetensors")
    os.utime(older, (1, 1))
    for run_folder in (older.parent, newer.parent):
        (run_folder / "card.json").touch()
    # The newest run is still training and has no card.
    save(tmp_path / "runs/c/best.safetensors")
    read: list[Path] = []

    def take(path: Path) -> tuple[onnx.ModelProto, ModelCard]:
        read.append(path.resolve())
        return read_onnx(exported)

    monkeypatch.setattr("ffd_export.checkpoint_graph.export_checkpoint", take)
    assert run("--verify", "none").exit_code == 0
    assert read == [newer]
    assert newer.with_suffix(".onnx").exists()
    assert not older.with_suffix(".onnx").exists()
    assert run(tmp_path / "runs/a", "--verify", "none").exit_code == 0
    assert read == [newer, older]
    assert older.with_suffix(".onnx").exists()


def test_validation_images_of_the_run_are_used(tmp_path: Path) -> None:
    root = tiny.make_faces(tmp_path / "faces", {"train": 4, "val": 2})
    settings = Settings(data=str(root), network="tiny", weights="none")
    open_folder(tmp_path / "run", settings, scan(root, ("train", "val")))
    save(tmp_path / "run/best.safetensors")
    outcome = run(tmp_path / "run")
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["parity"]["images"] == 4


def test_errors_are_one_line(exported: Path, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "run/best.safetensors")
    (tmp_path / "empty").mkdir()
    pickle = tmp_path / "pickled.safetensors"
    torch.save({}, pickle)
    unwritable = (exported, "--fp16", "--engine", "none", "--verify", "none", "--output", "/proc/x")
    for arguments, message in (
        (("--runs", tmp_path / "empty"), "no finished run in"),
        ((tmp_path / "empty",), "is not a run"),
        ((tmp_path / "absent.safetensors", "--verify", "none"), "no such file"),
        ((pickle, "--verify", "none"), "is a pickle"),
        ((checkpoint,), "validation images cannot be found"),
        ((checkpoint, "--verify", tmp_path / "empty"), "no such folder, or no file in it"),
        ((checkpoint, "--verify", tmp_path / "absent"), "no such folder, or no file in it"),
        (unwritable, "cannot write"),
    ):
        assert message in error_of(*arguments)
    assert not list(tmp_path.rglob("*.onnx"))
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / f"b.json.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        write_files({tmp_path / "new/a.onnx": b"whole", tmp_path / "b.json": b"lost"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_same_name_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "b.json").mkdir()
    with pytest.raises(OutputError, match=r"b\.json: a folder has this name"):
        write_files({tmp_path / "new/a.onnx": b"whole", tmp_path / "b.json": b"lost"})
    with pytest.raises(OutputError, match="File name too long"):
        write_files({tmp_path / "new/sub" / ("x" * 300) / "a.onnx": b"whole"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ffd_runtime.core.errors import CardError, ModelError
from ffd_runtime.model.card import ModelCard, Provenance
from ffd_train.checkpoint import load_card, load_checkpoint, save_checkpoint
from ffd_train.network_registry import NETWORKS
from ffd_train.networks import FaceNet, build, describe_weights, synchronise
from ffd_train.scoring import ScoringGraph
from ffd_train.stage import ARTICLE, PARTS, Stage

from .. import tiny
from ..tiny import build_tiny

CARD = ModelCard("tiny", "tiny", Provenance("0"), temperature=2.5)
IMAGES = torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8)


def snapshot(net: FaceNet) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def part_of(name: str) -> str:
    return name.split(".")[0]


def train_a_step(net: FaceNet) -> None:
    # Like a trainer: train() in every epoch, then a step on all parameters with a gradient.
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    loss = torch.nn.functional.cross_entropy(net(IMAGES), torch.tensor([0, 1, 0, 1]))
    torch.autograd.backward(loss)
    optimizer.step()


@pytest.mark.parametrize("part", [*PARTS[1:], "all"])
def test_frozen_parts_do_not_change(part: str) -> None:
    net = build_tiny()
    net.train_from(part)
    before = snapshot(net)
    train_a_step(net)
    first = 0 if part == "all" else PARTS.index(part)
    changed = {part_of(n) for n, t in net.state_dict().items() if not torch.equal(t, before[n])}
    # Compare parameters and BatchNorm's running statistics.
    assert changed == set(PARTS[first:])


def test_frozen_batch_norm_uses_its_running_statistics() -> None:
    net = build_tiny()
    net.train_from("head")
    net.train()
    inputs = net.scale(IMAGES)
    in_training = net.stem(inputs)
    net.eval()
    assert torch.equal(in_training, net.stem(inputs))


def test_a_later_stage_unfreezes() -> None:
    net = build_tiny()
    net.train_from("head")
    net.train_from("all")
    before = snapshot(net)
    train_a_step(net)
    after = net.state_dict()
    running = [name for name in before if name.endswith("running_mean")]
    assert len(running) == 5
    assert not any(torch.equal(after[name], before[name]) for name in running)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - tiny.NAMES))
def test_every_network_has_its_parts_at_the_strides_of_a_resnet(name: str) -> None:
    with torch.device("meta"):
        net = build(name)
    x = torch.empty(1, 3, 256, 256, device="meta")
    for part, stride in zip(PARTS[:-1], (None, 4, 8, 16, 32), strict=True):
        x = net.get_submodule(part)(x)
        assert stride is None or x.shape[2] == 256 // stride
    assert x.shape[1] == net.head.in_features


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnext50_32x4d"])
def test_synchronised_batchnorm_keeps_the_activation(name: str) -> None:
    net = build(name).eval()
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before = net(image)
        after = synchronise(net).eval()
        assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in after.modules())
        torch.testing.assert_close(after(image), before)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown network 'vgg'"):
        build("vgg")


@pytest.fixture(scope="module")
def resnext() -> Any:
    from torchvision.models import resnext50_32x4d

    torch.manual_seed(1)
    return resnext50_32x4d()


@pytest.mark.parametrize("how", ["pth", "safetensors", "renamed"])
def test_imagenet_weights_from_a_file(tmp_path: Path, resnext: Any, how: str) -> None:
    state = resnext.state_dict()
    path = tmp_path / f"weights.{'safetensors' if how == 'safetensors' else 'pth'}"
    if how == "safetensors":
        save_file(state, path)
    else:
        names = state if how == "pth" else [f"port.{i}" for i in range(len(state))]
        torch.save(dict(zip(names, state.values(), strict=True)), path)
    net = build("resnext50_32x4d", str(path))
    loaded = net.state_dict()
    assert torch.equal(loaded["stem.0.weight"], state["conv1.weight"])
    assert torch.equal(loaded["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])
    assert net.head.out_features == 2
    assert describe_weights(str(path)).startswith(f"{path.name} sha256 ")


def test_training_starts_from_a_checkpoint(tmp_path: Path) -> None:
    net = build("tf_efficientnet_lite0")
    card = CARD.replace(architecture="tf_efficientnet_lite0")
    save_checkpoint(tmp_path / "own.safetensors", net, card)
    again = build("tf_efficientnet_lite0", str(tmp_path / "own.safetensors"))
    assert torch.equal(again.head.weight, net.head.weight)
    loaded, _ = load_checkpoint(tmp_path / "own.safetensors")
    assert torch.equal(loaded.head.weight, net.head.weight)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, resnext: Any) -> None:
    path = tmp_path / "w.pth"
    for content, message in (
        ({"a": torch.zeros(1)}, "use weights of the same network"),
        ({**resnext.state_dict(), "conv1.weight": torch.zeros(1)}, "does not fit this network"),
        ([1, 2], "plain mapping"),
        ({"a": Path("x")}, "cannot be read as plain tensors"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=message):
            build("resnext50_32x4d", str(path))
    with pytest.raises(ModelError, match="no such file"):
        build("resnext50_32x4d", str(tmp_path / "absent.pth"))


def test_a_failed_download_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Nothing listens on port 9: the real download code gets a refused connection.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="--weights FILE"):
        build("resnext50_32x4d", "imagenet")


def test_a_checkpoint_keeps_tensors_and_card(tmp_path: Path) -> None:
    net = build_tiny()
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, net, CARD)
    loaded, card = load_checkpoint(path)
    assert card == CARD
    assert not loaded.training
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("low_byte", [0x80, ord("P")])
def test_no_length_of_a_header_looks_like_a_pickle(tmp_path: Path, low_byte: int) -> None:
    path = tmp_path / "c.safetensors"
    for padding in range(0, 2100, 8):
        # Headers are padded to 8 bytes; the length of the name changes the length of the header.
        card = CARD.replace(name="x" * (padding + 1), metrics={})
        save_checkpoint(path, build_tiny(), card)
        if path.read_bytes()[0] == low_byte:
            break
    assert path.read_bytes()[0] == low_byte
    assert load_card(path) == card


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code that a checkpoint must not run",)


@pytest.mark.parametrize("old_format", [False, True])
def test_a_pickle_is_refused_unread(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], old_format: bool
) -> None:
    path = tmp_path / "c.safetensors"
    torch.save({"weights": Payload()}, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ModelError, match="is a pickle, which can run any code"):
        load_checkpoint(path)
    assert capfd.readouterr().out == ""


def test_other_files_are_refused_as_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_card(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CardError, match="no model card"):
        load_card(path)
    save_checkpoint(path, build_tiny(), CARD.replace(architecture="resnext50_32x4d"))
    with pytest.raises(ModelError, match="do not fit its card.s architecture, resnext50_32x4d"):
        load_checkpoint(path)
    with pytest.raises(ModelError, match="no such file"):
        load_card(tmp_path / "absent")


def test_the_heatmap_explains_the_probability_exactly() -> None:
    net = build_tiny()
    with torch.no_grad():
        net.head.weight.mul_(20)
        probability, heatmap = ScoringGraph(net, 2.5)(IMAGES)
        logits = net.eval()(IMAGES)
    assert torch.allclose(probability, torch.softmax(logits / 2.5, 1), atol=1e-6)
    assert torch.allclose(torch.sigmoid(heatmap.mean((1, 2))), probability[:, 0], atol=1e-6)


@given(st.sampled_from([*PARTS[1:], "all"]), st.integers(1, 999), st.floats(1e-8, 99))
def test_stages_are_read_as_written(part: str, epochs: int, lr: float) -> None:
    stage = Stage.parse(f"{part}:{epochs}:{lr!r}")
    assert stage == Stage(part, epochs, lr)
    assert Stage.parse(str(stage)) == stage


@pytest.mark.parametrize(
    "text",
    [
        "",
        "head",
        "head:1",
        "head:0:1e-3",
        "head:1:0",
        "neck:1:1e-3",
        "all:x:1",
        "all:1:nan",
        "all:1:1:1",
    ],
)
def test_invalid_stages_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Stage.parse(text)


def test_the_default_is_the_articles_schedule() -> None:
    assert [str(stage) for stage in ARTICLE] == ["head:1:0.001", "layer4:2:0.001", "all:2:0.0001"]


def test_scale_is_imagenets() -> None:
    pixel = torch.tensor([[[[124, 116, 104]]]], dtype=torch.uint8)
    assert np.abs(build_tiny().scale(pixel).numpy()).max() < 0.02

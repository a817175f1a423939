"""The engine manifest, and the engines that it rejects."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.core.errors import EngineError
from ffd_runtime.model.backends import open_backend
from ffd_runtime.model.engine_manifest import (
    EngineManifest,
    TargetSystem,
    manifest_path,
    read_manifest,
    require_runnable,
)

from ..models import CARD

CONTENT = b"an engine"
ONNX = b"an onnx"
MANIFEST = EngineManifest(
    card=CARD,
    engine_sha256=hashlib.sha256(CONTENT).hexdigest(),
    onnx="m.fp16.onnx",
    onnx_sha256=hashlib.sha256(ONNX).hexdigest(),
    builder="tensorrt",
    builder_version="10.13.3.9",
    gpu="NVIDIA RTX A2000",
    compute_capabilities=("8.6",),
    hardware_compatibility="none",
    version_compatible=False,
    lean_runtime=False,
    batch=(1, 16, 32),
    command="ffd-export m.fp16.onnx --engine tensorrt --max-batch 32",
    options={"workspace": 512, "optimization_level": None},
    layers={"half": 51},
)
HERE = TargetSystem("tensorrt", "10.13.3.9", "NVIDIA RTX A2000", "8.6")


PORTABLE = dataclasses.replace(MANIFEST, version_compatible=True, lean_runtime=True)


def change(**changes: Any) -> EngineManifest:
    return dataclasses.replace(MANIFEST, **changes)


def save(folder: Path, manifest: EngineManifest = MANIFEST) -> Path:
    path = folder / "m.fp16.engine"
    path.write_bytes(CONTENT)
    manifest_path(path).write_text(manifest.to_json())
    return path


def test_a_manifest_survives_a_round_trip() -> None:
    assert EngineManifest.from_json(MANIFEST.to_json()) == MANIFEST
    document = json.loads(MANIFEST.to_json())
    assert document["card"]["name"] == CARD.name
    assert document["batch"] == [1, 16, 32]


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(EngineManifest)])
def test_a_damaged_field_is_named(name: str) -> None:
    document = json.loads(MANIFEST.to_json())
    damages: list[Any] = [{"not": ["this"]}, 1.5]
    for damage in damages:
        text = json.dumps({**document, name: damage})
        with pytest.raises(EngineError, match="schema" if name == "schema" else f"{name}|card"):
            EngineManifest.from_json(text)
    del document[name]
    with pytest.raises(EngineError, match=name):
        EngineManifest.from_json(json.dumps(document))


def test_an_unknown_field_is_refused() -> None:
    document = {**json.loads(MANIFEST.to_json()), "surprise": 1}
    with pytest.raises(EngineError, match="unknown field surprise"):
        EngineManifest.from_json(json.dumps(document))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.text() | JSON.map(json.dumps))
def test_arbitrary_text_is_refused(text: str) -> None:
    with pytest.raises(EngineError):
        EngineManifest.from_json(text)


@given(st.sampled_from([f.name for f in dataclasses.fields(EngineManifest)]), JSON)
def test_any_value_of_a_field_is_accepted_or_refused(name: str, value: Any) -> None:
    document = {**json.loads(MANIFEST.to_json()), name: value}
    try:
        manifest = EngineManifest.from_json(json.dumps(document))
    except EngineError:
        return
    assert EngineManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    ("manifest", "here"),
    [
        (MANIFEST, HERE),
        # A later hotfix of the same version.
        (MANIFEST, dataclasses.replace(HERE, version="10.13.3.12")),
        # Another GPU of the same capability.
        (MANIFEST, dataclasses.replace(HERE, gpu="NVIDIA GeForce RTX 3060")),
        (PORTABLE, dataclasses.replace(HERE, version="10.16.1.11")),
        (PORTABLE, dataclasses.replace(HERE, version="11.4.0.106")),
        (
            PORTABLE,
            dataclasses.replace(HERE, module="tensorrt_lean", version="10.14.1.48.post1"),
        ),
        # An engine without an embedded lean runtime runs on a lean runtime of its version.
        (change(version_compatible=True), dataclasses.replace(HERE, module="tensorrt_lean")),
        (
            change(hardware_compatibility="ampere_plus"),
            dataclasses.replace(HERE, compute_capability="12.0"),
        ),
        (
            change(
                builder="tensorrt_rtx",
                builder_version="1.7.1.116",
                gpu=None,
                compute_capabilities=("8.6", "8.9"),
            ),
            TargetSystem("tensorrt_rtx", "1.7.1.116", "NVIDIA GeForce RTX 4090", "8.9"),
        ),
    ],
)
def test_a_matching_system_is_accepted(manifest: EngineManifest, here: TargetSystem) -> None:
    require_runnable(manifest, here)


@pytest.mark.parametrize(
    ("manifest", "here", "reason"),
    [
        (MANIFEST, dataclasses.replace(HERE, version="11.4.0.106"), "another version of TensorRT"),
        (MANIFEST, dataclasses.replace(HERE, version="10.12.0.36"), "another version of TensorRT"),
        (PORTABLE, dataclasses.replace(HERE, version="12.0.0.1"), "another version of TensorRT"),
        (PORTABLE, dataclasses.replace(HERE, version="10.12.0.36"), "another version of TensorRT"),
        (
            change(version_compatible=True),
            dataclasses.replace(HERE, version="10.16.1.11"),
            "without the lean runtime",
        ),
        (MANIFEST, dataclasses.replace(HERE, module="tensorrt_lean"), "version-compatible"),
        (MANIFEST, dataclasses.replace(HERE, module="tensorrt_rtx"), "it needs tensorrt;"),
        (MANIFEST, dataclasses.replace(HERE, compute_capability="8.9"), "compute capability"),
        (
            change(hardware_compatibility="ampere_plus"),
            dataclasses.replace(HERE, compute_capability="7.5"),
            "compute capability",
        ),
        (
            change(hardware_compatibility="same_compute_capability"),
            dataclasses.replace(HERE, compute_capability="8.9"),
            "compute capability",
        ),
    ],
)
def test_the_error_for_another_system_names_both_systems(
    manifest: EngineManifest, here: TargetSystem, reason: str
) -> None:
    with pytest.raises(EngineError) as caught:
        require_runnable(manifest, here)
    message = str(caught.value)
    assert reason in message
    for part in (
        manifest.builder_version,
        "8.6 on NVIDIA RTX A2000",
        f"{here.module} {here.version}",
        here.gpu,
        here.compute_capability,
        manifest.command,
    ):
        assert part in message


def test_an_engine_for_another_gpu_than_the_first_is_rebuilt_for_it() -> None:
    """ffd-export builds for the first GPU that it sees."""
    here = dataclasses.replace(HERE, compute_capability="8.9", index=1)
    with pytest.raises(EngineError, match="with CUDA_VISIBLE_DEVICES=1 " + MANIFEST.command):
        require_runnable(MANIFEST, here)


def test_files_must_belong_together(tmp_path: Path) -> None:
    path = save(tmp_path)
    assert read_manifest(path) == MANIFEST
    (tmp_path / "m.fp16.onnx").write_bytes(ONNX)
    assert read_manifest(path) == MANIFEST
    (tmp_path / "m.fp16.onnx").write_bytes(b"trained again")
    with pytest.raises(EngineError, match="built from another m.fp16.onnx .* rebuild it here"):
        read_manifest(path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(EngineError, match="is not the one that m.fp16.engine.json describes"):
        read_manifest(path)
    manifest_path(path).write_text("{")
    with pytest.raises(EngineError, match="m.fp16.engine.json: engine manifest is not valid JSON"):
        read_manifest(path)
    manifest_path(path).write_bytes(b"\xff")
    with pytest.raises(EngineError, match="cannot be read"):
        read_manifest(path)
    manifest_path(path).unlink()
    with pytest.raises(EngineError, match="has no m.fp16.engine.json beside it"):
        open_backend(path)

"""The manifest of a TensorRT engine, and whether the engine can run on this machine.

An engine is bound to a version of TensorRT, to compute capabilities and to a range of batch sizes.
`NAME.engine.json` records them, so that the runtime can name the difference before TensorRT fails
with a code. The engine file stays as TensorRT wrote it, for trtexec and Triton.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import CardError, DeviceError, EngineError, os_errors_as
from ..core.file_hash import hash_file, is_sha256
from .card import ModelCard
from .devices import Gpu

SCHEMA = 1
BUILDERS = ("tensorrt", "tensorrt_rtx")
COMPATIBILITIES = ("none", "ampere_plus", "same_compute_capability")
# GPUs supported by TensorRT for RTX: NVIDIA's support matrix for version 1.5 and later, and
# `ComputeCapability` of its Python module. The H100 (9.0) and the B200 (10.0) are absent.
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


@dataclass(frozen=True)
class EngineManifest:
    """An engine, and the systems that can run it.

    Attributes:
        card: of the model.
        engine_sha256: of the engine file.
        onnx: name of the ONNX file that was built.
        onnx_sha256: of the ONNX file.
        builder: module that built the engine, `tensorrt` or `tensorrt_rtx`.
        builder_version: version of the module.
        gpu: name of the GPU on which the engine was built; None without a GPU.
        compute_capabilities: of the supported GPUs, such as `8.9`.
        hardware_compatibility: `none`, `ampere_plus` or `same_compute_capability`.
        version_compatible: whether later versions of TensorRT can run the engine.
        lean_runtime: whether the engine contains the lean runtime, which a later version needs.
        batch: smallest, optimal and largest batch.
        options: other settings of the builder (workspace, optimisation level).
        layers: convolution and GEMM layers of the parsed network, by type.
        float_layers: names of the layers that do not have the card's precision.
        built_layers: such layers of the built engine, from TensorRT's inspector on a GPU.
        command: rebuilds the engine for the GPU of another machine, in a folder with the ONNX file.
    """

    card: ModelCard
    engine_sha256: str
    onnx: str
    onnx_sha256: str
    builder: str
    builder_version: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    hardware_compatibility: str
    version_compatible: bool
    lean_runtime: bool
    batch: tuple[int, int, int]
    command: str
    options: Mapping[str, int | str | None] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    float_layers: tuple[str, ...] = ()
    built_layers: Mapping[str, int] | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for name, (valid, wanted) in _CHECKS.items():
            if not valid(getattr(self, name)):
                raise EngineError(f"engine manifest: {name} must be {wanted}")

    @property
    def how_to_rebuild(self) -> str:
        """The command that rebuilds the engine for the first GPU, and where to run it."""
        return self.how_to_rebuild_for(0)

    def how_to_rebuild_for(self, index: int) -> str:
        """The command that rebuilds the engine for a GPU; engines are built on the first one."""
        selected = f"CUDA_VISIBLE_DEVICES={index} " if index else ""
        return f"rebuild it here, in a folder with {self.onnx}, with {selected}{self.command}"

    def to_json(self) -> str:
        """Return the manifest as JSON."""
        document = {"schema": self.schema, **dataclasses.asdict(self)}
        document["card"] = json.loads(self.card.to_json())
        return json.dumps(document, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EngineManifest:
        """Read and validate a manifest.

        Raises:
            EngineError: the text is not JSON, or a field is absent, unknown or invalid.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise EngineError(f"engine manifest is not valid JSON: {error}") from None
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise EngineError(
                f"engine manifest does not have schema {SCHEMA}, which this version of ffd reads: "
                "build the engine again with ffd-export"
            )
        names = {item.name for item in dataclasses.fields(cls)}
        for name in sorted(document.keys() ^ names):
            fault = "unknown field" if name in document else "missing field"
            raise EngineError(f"engine manifest: {fault} {name}")
        try:
            document["card"] = ModelCard.from_json(json.dumps(document["card"]))
        except CardError as error:
            raise EngineError(f"engine manifest: {error}") from None
        for name in ("compute_capabilities", "batch", "float_layers"):
            if not isinstance(document[name], list):
                raise EngineError(f"engine manifest: {name} must be a list")
            document[name] = tuple(document[name])
        return cls(**document)


@dataclass(frozen=True)
class TargetSystem:
    """The system that is to run an engine with `tensorrt`, `tensorrt_lean` or `tensorrt_rtx`."""

    module: str
    version: str
    gpu: str
    compute_capability: str
    index: int = 0


def manifest_path(engine: Path) -> Path:
    """Return the path of an engine's manifest: `NAME.engine.json` beside `NAME.engine`."""
    return engine.with_name(engine.name + ".json")


def read_manifest(engine: Path) -> EngineManifest:
    """Read the manifest of an engine, and check that it describes the files beside it.

    Raises:
        EngineError: the manifest is absent or damaged, or the hash of the engine or of the ONNX
            file beside it differs.
    """
    path = manifest_path(engine)
    try:
        manifest = EngineManifest.from_json(path.read_text("utf-8"))
    except FileNotFoundError:
        raise EngineError(
            f"engine {engine} has no {path.name} beside it: copy both, or build it here with "
            "ffd-export MODEL.onnx --engine tensorrt"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} cannot be read: {error}") from None
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from None
    if _sha256(engine) != manifest.engine_sha256:
        raise EngineError(
            f"engine {engine} is not the one that {path.name} describes: copy both again, or "
            f"{manifest.how_to_rebuild}"
        )
    onnx = engine.with_name(manifest.onnx)
    if onnx.is_file() and _sha256(onnx) != manifest.onnx_sha256:
        raise EngineError(
            f"engine {engine} was built from another {onnx.name} than the one beside it: "
            f"{manifest.how_to_rebuild}"
        )
    return manifest


def require_runnable(manifest: EngineManifest, here: TargetSystem) -> None:
    """Check that an engine can run on a system.

    Raises:
        EngineError: it cannot. The message has both systems and the command that rebuilds it.
    """
    reason = _version_fault(manifest, here) or _gpu_fault(manifest, here)
    if not reason:
        return
    built = f"{manifest.builder} {manifest.builder_version} for compute capability " + ", ".join(
        manifest.compute_capabilities
    )
    where = f" on {manifest.gpu}" if manifest.gpu else ""
    raise EngineError(
        f"the engine cannot run on this machine: {reason}; it was built by {built}{where}; found "
        f"{here.module} {here.version} and {here.gpu} ({here.compute_capability}); "
        f"{manifest.how_to_rebuild_for(here.index)}"
    )


def list_rtx_gpus(trt: Any) -> tuple[str, ...]:
    """Return the compute capabilities that `tensorrt_rtx` lists, or else the documented ones."""
    names = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    listed = tuple(f"{n[2:-1]}.{n[-1]}" for n in names if re.fullmatch(r"SM\d{2,3}", n))
    return listed or RTX_COMPUTE_CAPABILITIES


def require_rtx_gpu(trt: Any, gpu: Gpu) -> None:
    """Check that TensorRT for RTX supports a GPU, before an engine is built or loaded.

    Raises:
        DeviceError: it does not. The message names an alternative.
    """
    supported = list_rtx_gpus(trt)
    if gpu.compute_capability not in supported:
        raise DeviceError(
            f"TensorRT for RTX {trt.__version__} does not support {gpu.name} (compute capability "
            f"{gpu.compute_capability}; supported are {', '.join(supported)}): use "
            "ffd-export --engine tensorrt on this machine, or run the ONNX"
        )


def _version_fault(manifest: EngineManifest, here: TargetSystem) -> str | None:
    lean = here.module == "tensorrt_lean"
    if manifest.builder != ("tensorrt" if lean else here.module):
        return f"it needs {manifest.builder}"
    built, current = _version(manifest.builder_version), _version(here.version)
    if lean and not manifest.version_compatible:
        return "the lean runtime runs version-compatible engines only (--version-compatible)"
    if built[:3] == current[:3]:
        return None
    # Forward only, within a major version or from 10 to 11: NVIDIA's support matrix for TensorRT
    # 11.4, "Engine Portability".
    forward = current > built and (built[0] == current[0] or (built[0], current[0]) == (10, 11))
    if not manifest.version_compatible or not forward:
        return "it was built by another version of TensorRT"
    if not manifest.lean_runtime:
        return "it was built without the lean runtime that another version needs to run it"
    return None


def _gpu_fault(manifest: EngineManifest, here: TargetSystem) -> str | None:
    if here.compute_capability in manifest.compute_capabilities:
        return None
    is_ampere_plus = _version(here.compute_capability) >= (8, 0)
    if manifest.hardware_compatibility == "ampere_plus" and is_ampere_plus:
        return None
    return "it was built for GPUs of another compute capability"


def _version(text: str) -> tuple[int, ...]:
    """Return the leading numbers: (10, 14, 1, 48) for `10.14.1.48.post1`."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _sha256(path: Path) -> str:
    with os_errors_as(EngineError, f"{path} cannot be read"):
        return hash_file(path)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_version(value: object) -> bool:
    return isinstance(value, str) and bool(_version(value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are(kind: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, tuple) and all(map(kind, value))


def _map_to(kind: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, Mapping)
        and _are(_is_text)(tuple(value))
        and all(map(kind, value.values()))
    )


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "engine_sha256": (is_sha256, "a sha256 in hex"),
    "onnx": (lambda v: _is_text(v) and Path(v).name == v, "a file's name"),
    "onnx_sha256": (is_sha256, "a sha256 in hex"),
    "builder": (lambda v: v in BUILDERS, f"one of {', '.join(BUILDERS)}"),
    "builder_version": (_is_version, "a version"),
    "gpu": (lambda v: v is None or _is_text(v), "a GPU's name or null"),
    "compute_capabilities": (
        lambda v: _are(_is_version)(v) and len(v) > 0,
        "a list of compute capabilities, such as 8.9",
    ),
    "hardware_compatibility": (
        lambda v: v in COMPATIBILITIES,
        f"one of {', '.join(COMPATIBILITIES)}",
    ),
    "version_compatible": (lambda v: isinstance(v, bool), "true or false"),
    "lean_runtime": (lambda v: isinstance(v, bool), "true or false"),
    "batch": (
        lambda v: _are(_is_count)(v) and len(v) == 3 and 1 <= v[0] <= v[1] <= v[2],
        "three sizes, [smallest, optimal, largest]",
    ),
    "command": (_is_text, "a command"),
    "options": (_map_to(lambda v: isinstance(v, int | str | None)), "an object of settings"),
    "layers": (_map_to(_is_count), "an object of counts"),
    "float_layers": (_are(_is_text), "a list of names"),
    "built_layers": (lambda v: v is None or _map_to(_is_count)(v), "an object of counts or null"),
    "schema": (lambda v: v == SCHEMA and not isinstance(v, bool), str(SCHEMA)),
}

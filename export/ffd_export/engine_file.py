"""An engine, its manifest, and how both are built from an exported model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.engine_manifest import EngineManifest

from .engine_build import BuiltEngine, build_engine
from .engine_builder import MODULES, EngineBuilder
from .exported_model import ExportedModel
from .layers import LayerTypes
from .parity import NOT_VERIFIED, Parity
from .reporter import Reporter


@dataclass(frozen=True)
class EngineFile:
    """An engine that can be written.

    Attributes:
        content: its bytes.
        manifest: what is written beside it.
        layers: types of the parsed network's layers.
        parity: how far its results are from the source's; None if it is not verified.
    """

    content: bytes
    manifest: EngineManifest
    layers: LayerTypes
    parity: Parity | None = None


def build_engine_file(
    exported: ExportedModel, onnx: str, builder: EngineBuilder, reporter: Reporter
) -> EngineFile:
    """Build an engine from an exported model.

    Args:
        exported: the model.
        onnx: name of its file.
        builder: what to build with, and how.
        reporter: receives messages and progress.

    Raises:
        ModelError: TensorRT does not support the model, or too few layers of the parsed network
            have the precision's type.
    """
    card = exported.card
    facts = card.metrics.get("export", {})
    if card.precision == "int8" and facts.get("target") == "cpu":
        raise ModelError(
            f"{onnx} is INT8 for onnxruntime on a CPU, which TensorRT does not support: export the "
            "model with --int8 --target tensorrt"
        )
    kept = str(facts.get("kept") or "").split(", ")
    with reporter.track_build() as progress:
        engine = build_engine(
            builder.module,
            exported.content,
            card.preprocess.size,
            builder.options,
            progress,
            lambda layers: layers.require(card.precision, kept),
        )
    reporter.say(f"engine: parsed network has {engine.layers}")
    if engine.built_layers:
        kernels = ", ".join(f"{count} {kind}" for kind, count in engine.built_layers.items())
        reporter.say(f"engine: TensorRT's inspector reports kernels {kernels}")
    return EngineFile(
        engine.content, _make_manifest(exported, onnx, builder, engine), engine.layers
    )


def _make_manifest(
    exported: ExportedModel, onnx: str, builder: EngineBuilder, engine: BuiltEngine
) -> EngineManifest:
    card, options = exported.card, builder.options
    return EngineManifest(
        card=card.replace(metrics={**card.metrics, "engine_parity": NOT_VERIFIED}),
        engine_sha256=hashlib.sha256(engine.content).hexdigest(),
        onnx=onnx,
        onnx_sha256=hashlib.sha256(exported.content).hexdigest(),
        builder=MODULES[builder.kind],
        builder_version=engine.builder_version,
        gpu=engine.gpu,
        compute_capabilities=engine.compute_capabilities,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        lean_runtime=options.version_compatible and options.lean_runtime,
        batch=options.batch,
        command=builder.command(onnx),
        options={
            "workspace": options.workspace,
            "optimization_level": options.optimization_level,
        },
        layers=engine.layers.counts(),
        float_layers=tuple(engine.layers.of_other_type(card.precision)),
        built_layers=engine.built_layers,
    )

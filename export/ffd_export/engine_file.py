"""An engine, its manifest, and how both are built from an exported model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.core.errors import ModelError
from ffd_runtime.model.card import ModelCard
from ffd_runtime.model.engine_manifest import EngineManifest

from .engine_build import BuiltEngine, build_engine
from .engine_builder import MODULES, EngineBuilder
from .exported_model import ExportedModel
from .layers import LayerTypes
from .parity import Parity, summarise
from .reporter import Reporter

SUFFIXES = {"tensorrt": ".engine", "rtx": ".rtx.engine"}


@dataclass(frozen=True)
class EngineFile:
    """An engine that can be written, with its manifest beside it.

    Attributes:
        layers: types of the parsed network's layers.
        parity: how far its results are from the source's; None if it is not verified.
    """

    path: Path
    content: bytes
    manifest: EngineManifest
    layers: LayerTypes
    parity: Parity | None = None

    @property
    def card(self) -> ModelCard:
        """The model card in the manifest."""
        return self.manifest.card


def build_engine_file(
    exported: ExportedModel, builder: EngineBuilder, reporter: Reporter
) -> EngineFile | None:
    """Build an engine from an exported model, or report why `--engine auto` builds none.

    Raises:
        ModelError: TensorRT does not support the model, or too few layers of the parsed network
            have the precision's type.
    """
    card, onnx = exported.card, exported.path.name
    if builder.module is None:
        if builder.unavailable:
            command = builder.command(onnx)
            reporter.say(f"no engine: {builder.unavailable}; run {command} on the device")
        return None
    facts = card.metrics.get("export", {})
    if card.precision == "int8" and facts.get("target") == "cpu":
        raise ModelError(
            f"{onnx} is INT8 for onnxruntime on a CPU, which TensorRT does not support: export the "
            "model with --int8 --target tensorrt"
        )
    kept = str(facts.get("kept") or "").split(", ")
    with reporter.open_bar() as bar:
        engine = build_engine(
            builder.module,
            exported.content,
            card.preprocess.size,
            builder.options,
            bar,
            lambda layers: layers.require(card.precision, kept),
        )
    reporter.say(f"engine: parsed network has {engine.layers}")
    if engine.built_layers:
        kernels = ", ".join(f"{count} {kind}" for kind, count in engine.built_layers.items())
        reporter.say(f"engine: TensorRT's inspector reports kernels {kernels}")
    folder = builder.options.output or exported.source.path.parent
    path = folder / (onnx.removesuffix(".onnx") + SUFFIXES[builder.kind])
    manifest = _make_manifest(exported, builder, engine)
    return EngineFile(path, engine.content, manifest, engine.layers)


def _make_manifest(
    exported: ExportedModel, builder: EngineBuilder, engine: BuiltEngine
) -> EngineManifest:
    card, options = exported.card, builder.options
    return EngineManifest(
        card=card.replace(metrics={**card.metrics, "engine_parity": summarise(None)}),
        engine_sha256=hashlib.sha256(engine.content).hexdigest(),
        onnx=exported.path.name,
        onnx_sha256=hashlib.sha256(exported.content).hexdigest(),
        builder=MODULES[builder.kind],
        builder_version=engine.builder_version,
        gpu=engine.gpu,
        compute_capabilities=engine.compute_capabilities,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        lean_runtime=options.version_compatible and not options.exclude_lean_runtime,
        batch=options.batch,
        command=builder.command(exported.path.name),
        options={"workspace": options.workspace, "optimization_level": options.optimization_level},
        layers=engine.layers.counts(),
        float_layers=tuple(engine.layers.of_other_type(card.precision)),
        built_layers=engine.built_layers,
    )

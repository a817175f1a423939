"""Verify that an exported model, and an engine, give the results of the model they come from."""

from __future__ import annotations

import dataclasses
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

from ffd_runtime.model.backends import open_backend
from ffd_runtime.model.engine_manifest import manifest_path

from .baseline import Baseline
from .engine_builder import EngineBuilder
from .engine_file import EngineFile
from .exported_model import ExportedModel
from .layer_errors import compare_layers, describe
from .parity import Parity, classify, summarise
from .reporter import Reporter
from .sample_images import SampleImages
from .source_model import SourceModel

# Images on which the layers of a rejected model are compared.
EXPLANATION_IMAGES = 8


def measure_baseline(
    source: SourceModel, images: SampleImages | None, reporter: Reporter
) -> Baseline | None:
    """Classify the images with the source. Return None if there are no images."""
    if images is None:
        return None
    with reporter.track("baseline", 1), closing(source.open()) as backend:
        return Baseline(source.card, images, classify(backend, images))


def verify_model(
    exported: ExportedModel, baseline: Baseline | None, reporter: Reporter
) -> ExportedModel:
    """Compare a converted model with its source, and add the comparison to its card.

    An unchanged model is returned as it is. Without a baseline, no model is verified.

    Raises:
        ModelError: it differs too much; the message names the layers that differ most.
    """
    card, options, parity = exported.card, exported.options, None
    if options is None:
        return exported
    if baseline is None:
        reporter.say("not verified")
    else:
        with reporter.track(card.precision, 1):
            parity = baseline.compare(exported.model, card.precision)
        parity.require(card.precision, partial(_explain, exported, baseline.images))
    metrics = {**card.metrics, "parity": summarise(parity), "export": exported.facts}
    return dataclasses.replace(exported, card=card.replace(metrics=metrics), parity=parity)


def verify_engine(
    engine: EngineFile | None,
    exported: ExportedModel,
    builder: EngineBuilder,
    baseline: Baseline | None,
    reporter: Reporter,
) -> EngineFile | None:
    """Run an engine on the GPU, compare it with the source, and add the comparison to its card.

    Without a baseline, or if this machine cannot run the engine, it is not verified.

    Raises:
        ModelError: it differs too much.
    """
    if engine is None:
        return None
    if baseline is None or not builder.can_verify:
        reporter.say("engine: not verified on a GPU")
        return engine
    card = exported.card
    parity = _compare_engine(engine, baseline)
    # The outputs of an engine's layers cannot be read. Its ONNX rounds in the same way.
    is_converted = exported.model is not exported.source.model
    explain = partial(_explain, exported, baseline.images) if is_converted else str
    parity.require(card.precision, explain)
    metrics = {**card.metrics, "engine_parity": summarise(parity)}
    manifest = dataclasses.replace(engine.manifest, card=card.replace(metrics=metrics))
    return dataclasses.replace(engine, manifest=manifest, parity=parity)


def _compare_engine(engine: EngineFile, baseline: Baseline) -> Parity:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.engine"
        path.write_bytes(engine.content)
        manifest_path(path).write_text(engine.manifest.to_json(), "utf-8")
        with closing(open_backend(path, "tensorrt", "cuda")) as backend:
            return baseline.compare_results(classify(backend, baseline.images))


def _explain(exported: ExportedModel, images: SampleImages) -> str:
    """Name the layers that differ most from the source's, with their errors, and a remedy."""
    pixels = images.spread(EXPLANATION_IMAGES).pixels
    if exported.card.precision == "fp32":
        from .checkpoint_graph import compare_parts

        errors = compare_parts(exported.source.path, pixels)
        return f"relative error by part: {describe(errors)}; "
    errors = compare_layers(exported.source.model, exported.model, pixels)
    may_keep = exported.options is not None and not exported.options.keep
    remedy = "--keep auto finds layers to keep in FP32; " if may_keep else ""
    return f"layers that differ most: {describe(errors)}; {remedy}"

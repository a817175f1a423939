"""Verify that an exported model, and an engine, give the results of the model they come from."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from ffd_runtime.core.results import Result
from ffd_runtime.model.backends import open_backend
from ffd_runtime.model.engine_manifest import manifest_path

from .baseline import Baseline
from .engine_file import EngineFile
from .exported_model import ExportedModel
from .layer_errors import compare_layers, describe
from .parity import NOT_VERIFIED, Parity, classify_and_close
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
    with reporter.track("baseline", 1):
        return Baseline(source.card, images, source.classify(images))


def verify_model(
    exported: ExportedModel, baseline: Baseline | None, reporter: Reporter
) -> ExportedModel:
    """Compare an exported model with its source, and complete its card.

    Args:
        exported: a converted model.
        baseline: the source's results; None to leave the model unverified.
        reporter: receives messages and progress.

    Returns:
        The model, with the comparison in its card.

    Raises:
        ModelError: it differs too much; the message names the layers that differ most.
    """
    card, parity = exported.card, None
    if baseline is None:
        reporter.say("not verified")
    else:
        with reporter.track(card.precision, 1):
            parity = baseline.compare(exported.model, card.precision)
        if parity.failures(card.precision):
            hint = _explain(exported, baseline.images)
            if exported.options and card.precision != "fp32" and not exported.options.keep:
                hint += "--keep auto finds layers to keep in FP32; "
            parity.require(card.precision, hint)
    metrics = {**card.metrics, "parity": _summary(parity), "export": exported.facts}
    return dataclasses.replace(exported, card=card.replace(metrics=metrics), parity=parity)


def verify_engine(
    engine: EngineFile, exported: ExportedModel, baseline: Baseline | None
) -> EngineFile:
    """Run an engine on the GPU, compare it with the source, and complete its card.

    Args:
        engine: built on this machine.
        exported: the model that it was built from.
        baseline: the source's results; None to leave the engine unverified.

    Returns:
        The engine, with the comparison in the card of its manifest.

    Raises:
        ModelError: it differs too much.
    """
    if baseline is None:
        return engine
    card = exported.card
    parity = baseline.compare_results(_classify(engine, baseline.images))
    if parity.failures(card.precision):
        # An engine's kernels have no outputs to compare, but it rounds as its ONNX does.
        is_converted = exported.model is not exported.source.model
        parity.require(card.precision, _explain(exported, baseline.images) if is_converted else "")
    metrics = {**card.metrics, "engine_parity": _summary(parity)}
    manifest = dataclasses.replace(engine.manifest, card=card.replace(metrics=metrics))
    return dataclasses.replace(engine, manifest=manifest, parity=parity)


def _summary(parity: Parity | None) -> dict[str, float | int | str | None]:
    return parity.summary() if parity else NOT_VERIFIED


def _explain(exported: ExportedModel, images: SampleImages) -> str:
    """Say which layers differ most from the source's."""
    pixels = images.spread(EXPLANATION_IMAGES).pixels
    if exported.card.precision == "fp32":
        from .checkpoint_graph import compare_parts

        errors = compare_parts(exported.source.path, pixels)
        return f"relative error by part: {describe(errors)}; "
    errors = compare_layers(exported.source.model, exported.model, pixels)
    return f"layers that differ most: {describe(errors)}; "


def _classify(engine: EngineFile, images: SampleImages) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.engine"
        path.write_bytes(engine.content)
        manifest_path(path).write_text(engine.manifest.to_json(), "utf-8")
        return classify_and_close(open_backend(path, "tensorrt", "cuda"), images)

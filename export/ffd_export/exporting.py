"""From a checkpoint or an ONNX to verified artefacts, in memory until all of them are right."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.core.errors import ModelError
from ffd_runtime.core.results import Result
from ffd_runtime.model.backends import Backend, open_backend
from ffd_runtime.model.card import Metric, ModelCard
from ffd_runtime.model.engine_manifest import EngineManifest, manifest_path

from . import fp16
from .calibration import calibrate, find_extremes
from .candidate import classify_candidate, open_candidate
from .engine_build import MODULES, Builder, Engine, Progress, build_engine
from .fp16 import find_overflows, to_fp16
from .int8 import OPERATORS_OF, WEIGHT_BITS, choose, choose_kept, quantise, require_layers
from .layer_errors import compare_layers, describe
from .layers import LayerTypes, layers_of, types_of
from .onnx_file import read_onnx, to_bytes
from .parity import NOT_VERIFIED, Parity, classify, compare
from .sample_images import Images

if TYPE_CHECKING:
    from onnx import ModelProto

# Title and total in; out comes what is told how many more are done.
Track = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What to make of a model.

    Attributes:
        precision: `fp32`, `fp16` or `int8`.
        target: of INT8, `cpu` or `tensorrt`.
        method: how INT8's ranges are found: `auto`, `percentile` or `entropy`.
        keep: layers that stay FP32, or `auto`.
    """

    precision: str = "fp32"
    target: str = "cpu"
    method: str = "auto"
    keep: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """What the file's name ends with."""
        if self.precision == "int8" and self.target == "tensorrt":
            return ".int8-tensorrt.onnx"
        return ".onnx" if self.precision == "fp32" else f".{self.precision}.onnx"


@dataclass(frozen=True)
class Source:
    """An FP32 model to make others of, or any ONNX of ours to build an engine of.

    Attributes:
        path: the checkpoint or the ONNX.
        model: its graph.
        card: its card.
        content: the ONNX as it is on disk; None for a checkpoint.
    """

    path: Path
    model: ModelProto
    card: ModelCard
    content: bytes | None = None

    def open_reference(self) -> Backend:
        """What an export is compared with: PyTorch with the checkpoint, or the ONNX."""
        if self.content is not None:
            return open_backend(self.path, "onnxruntime", "cpu")
        from ffd_train.evaluation import open_model

        return open_model(self.path, "cpu")


@dataclass(frozen=True)
class Made:
    """An ONNX that was made, or taken as it is.

    Attributes:
        model: the graph.
        card: its card, with what was measured.
        content: the file's bytes.
        layers: by type.
        parity: None where it was not verified.
        reference: the source's rows for the images it was verified on.
    """

    model: ModelProto
    card: ModelCard
    content: bytes
    layers: LayerTypes
    parity: Parity | None
    reference: list[Result] = dataclasses.field(default_factory=list)


def open_source(path: Path) -> Source:
    """Read a checkpoint or an ONNX; torch is imported for a checkpoint only.

    Raises:
        ModelError, CardError: it is not one of ours.
    """
    if path.suffix.lower() == ".onnx":
        model, card = read_onnx(path)
        return Source(path, model, card, path.read_bytes())
    from .checkpoint_graph import export_checkpoint

    model, card = export_checkpoint(path)
    return Source(path, model, card)


def take_as_is(source: Source) -> Made:
    """An ONNX that only an engine is to be built of."""
    assert source.content is not None
    types = types_of(source.model)
    return Made(source.model, source.card, source.content, types, None)


def make(
    source: Source,
    wish: Wish,
    verification: Images | None,
    calibration: Images | None,
    say: Say,
    track: Track,
) -> Made:
    """Convert, prove the precision, and compare with the source.

    Args:
        source: an FP32 model.
        wish: what to make of it.
        verification: images to compare on; None to leave it unverified.
        calibration: images to calibrate INT8 with.
        say: is told what a person wants to know.
        track: shows how far a long step is.

    Raises:
        ModelError: precision or parity is not kept; the message names the layers.
    """
    if source.card.precision != "fp32":
        raise ModelError(
            f"{source.path} is {source.card.precision} already: give the checkpoint, or its FP32 "
            "ONNX, to make another precision of"
        )
    named = () if wish.keep == ("auto",) else wish.keep
    require_layers(source.model, named)
    reference: list[Result] = []
    if verification is not None:
        with track("checkpoint", 1):
            reference = _classify(source.open_reference(), verification)
    facts: dict[str, Metric] = {}
    kept = tuple(named)
    model = source.model
    if wish.precision == "fp16":
        model, kept, overflowing = _convert_fp16(source, wish, verification, reference, say, track)
        facts["overflowing"] = ", ".join(overflowing) or None
    elif wish.precision == "int8":
        assert calibration is not None
        model, kept, facts = _convert_int8(source, wish, calibration, say, track)
    layers = types_of(model)
    layers.require(wish.precision, kept)
    say(f"{layers}" + (f"; kept: {', '.join(kept)}" if kept else ""))
    card = source.card.replace(precision=wish.precision)
    parity = None
    if verification is None:
        say("not verified")
    else:
        with track(wish.precision, 1):
            rows = classify_candidate(model, card, verification)
        parity = compare(reference, rows, verification, source.card)
        if parity.failures(wish.precision):
            hint = _where(source, model, wish.precision, verification)
            if wish.precision != "fp32" and not wish.keep:
                hint += "--keep auto finds which to keep FP32; "
            parity.require(wish.precision, hint)
    metrics = {**card.metrics, "parity": parity.summary() if parity else NOT_VERIFIED}
    counts: dict[str, Metric] = {f"{kind}_layers": n for kind, n in layers.counts().items()}
    metrics["export"] = {**counts, "kept": ", ".join(kept) or None, **facts}
    card = card.replace(metrics=metrics)
    return Made(model, card, to_bytes(model, card), layers, parity, reference)


def build(
    source: Source,
    made: Made,
    onnx: str,
    builder: Builder,
    verification: Images | None,
    progress: Progress | None,
) -> tuple[Engine, EngineManifest, Parity | None]:
    """Build an engine of an ONNX; where there is a GPU, verify it there.

    Args:
        source: what the ONNX was made of.
        made: the ONNX.
        onnx: its file's name.
        builder: what builds, and how.
        verification: images to compare on; None to leave the engine unverified.
        progress: is told of the builder's phases.

    Raises:
        ModelError: it cannot be built, or precision or parity is not kept.
    """
    card, options = made.card, builder.options
    facts = card.metrics.get("export", {})
    if card.precision == "int8" and facts.get("target") == "cpu":
        raise ModelError(
            f"{onnx} is the INT8 flavour for onnxruntime on a CPU, which TensorRT does not take: "
            "export it with --int8 --target tensorrt"
        )
    wished = str(facts.get("kept") or "").split(", ")
    engine = build_engine(
        builder.module,
        made.content,
        card.preprocess.size,
        options,
        progress,
        lambda layers: layers.require(card.precision, wished),
    )
    manifest = EngineManifest(
        card=card.replace(metrics={**card.metrics, "engine_parity": NOT_VERIFIED}),
        engine_sha256=hashlib.sha256(engine.content).hexdigest(),
        onnx=onnx,
        onnx_sha256=hashlib.sha256(made.content).hexdigest(),
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
        float_layers=tuple(engine.layers.others(card.precision)),
        built_layers=engine.built_layers,
    )
    if verification is None or not builder.verifies:
        return engine, manifest, None
    reference = made.reference or _classify(source.open_reference(), verification)
    rows = _classify_engine(engine, manifest, verification)
    parity = compare(reference, rows, verification, card)
    if parity.failures(card.precision):
        # Its kernels have no outputs to compare; what its ONNX rounds most, it rounds too.
        converted = made.model is not source.model
        hint = _where(source, made.model, card.precision, verification) if converted else ""
        parity.require(card.precision, hint)
    card = card.replace(metrics={**card.metrics, "engine_parity": parity.summary()})
    return engine, dataclasses.replace(manifest, card=card), parity


def _convert_fp16(
    source: Source,
    wish: Wish,
    images: Images | None,
    reference: list[Result],
    say: Say,
    track: Track,
) -> tuple[ModelProto, tuple[str, ...], list[str]]:
    model, kept = source.model, wish.keep
    overflowing: list[str] = []
    if images is None:
        say("no images, so it is not known whether activations stay within FP16's range")
    else:
        with track("ranges", len(images)) as advance:
            overflowing = find_overflows(model, find_extremes(model, images, advance))
        overflowing = [name for name in overflowing if name not in kept]
    if overflowing:
        say(f"beyond FP16's range on real images, so FP32: {', '.join(overflowing)}")
    if kept == ("auto",):
        assert images is not None
        with track("sensitivity", len(layers_of(model.graph))) as advance:
            found = fp16.choose_kept(model, source.card, images, reference, overflowing, advance)
        kept = tuple(found)
        say(f"kept FP32, by sensitivity: {', '.join(kept) or 'none'}")
    return to_fp16(model, [*kept, *overflowing]), kept, overflowing


def _convert_int8(
    source: Source, wish: Wish, images: Images, say: Say, track: Track
) -> tuple[ModelProto, tuple[str, ...], dict[str, Metric]]:
    model, card = source.model, source.card
    with open_candidate(to_bytes(model, card)) as backend, track("FP32", 1):
        reference = classify(backend, images)
    with track("calibrating", len(images)) as advance:
        ranges = calibrate(model, OPERATORS_OF[wish.target], images, advance)
    if wish.method != "auto":
        ranges = {wish.method: ranges[wish.method]}
    kept = wish.keep
    best = choose(
        model, card, wish.target, ranges, images, reference, () if kept == ("auto",) else kept
    )
    if kept == ("auto",):
        with track("sensitivity", len(model.graph.node)) as advance:
            found = ranges[best.method]
            kept = tuple(choose_kept(model, card, wish.target, found, images, reference, advance))
            quantised = quantise(model, wish.target, found, kept)
        say(f"kept FP32, by sensitivity: {', '.join(kept) or 'none'}")
    else:
        quantised = best.model
    say(f"calibrated on {images.describe()}, ranges by {best.method}")
    return quantised, kept, {
        "target": wish.target,
        "weight_bits": WEIGHT_BITS[wish.target],
        "calibration": best.method,
        "calibration_images": len(images),
    }  # fmt: skip


def _where(source: Source, model: ModelProto, precision: str, images: Images) -> str:
    """Which layers differ most, in words."""
    few = images.first(8).pixels
    if precision == "fp32":
        from .checkpoint_graph import compare_parts

        return f"relative error by part: {describe(compare_parts(source.path, few))}; "
    differences = compare_layers(source.model, model, few)
    return f"layers that differ most: {describe(differences)}; "


def _classify(backend: Backend, images: Images) -> list[Result]:
    try:
        return classify(backend, images)
    finally:
        backend.close()


def _classify_engine(engine: Engine, manifest: EngineManifest, images: Images) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.engine"
        path.write_bytes(engine.content)
        manifest_path(path).write_text(manifest.to_json(), "utf-8")
        return _classify(open_backend(path, "tensorrt", "cuda"), images)

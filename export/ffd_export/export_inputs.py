"""Find and read all inputs of an export, and reject options that cannot succeed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ffd_runtime.model.card import PreprocessSpec

from .engine_builder import EngineBuilder, choose_builder
from .export_options import ExportOptions
from .reporter import Reporter
from .sample_images import Example, SampleImages, prepare_images
from .source_model import SourceModel, is_onnx, open_source
from .training_runs import find_calibration, find_checkpoint, find_verification
from .triton import require_servable

# With fewer images, half a point of accuracy is within chance.
MIN_IMAGES = 200


@dataclass(frozen=True)
class ExportInputs:
    """A model, the builder of its engine, and images to verify on and to calibrate INT8 with."""

    source: SourceModel
    builder: EngineBuilder
    verification: SampleImages | None
    calibration: SampleImages | None


def read_inputs(options: ExportOptions, reporter: Reporter) -> ExportInputs:
    """Find and read the model and the images.

    Raises:
        click.UsageError: the options leave nothing to do.
        FfdError: the model, its images or the engine builder cannot be used.
    """
    path = find_checkpoint(options.model, options.runs)
    converts = not is_onnx(path) or options.fp16 or options.int8
    builder = choose_builder(options, converts)
    if not (converts or builder.module or options.triton):
        raise click.UsageError(
            f"{path} is an ONNX already, so there is nothing to do: add --fp16, --int8, --engine "
            "or --triton"
        )
    # An invalid ONNX fails here. A checkpoint is read last, because tracing takes long.
    source = open_source(path) if is_onnx(path) else None
    verification = calibration = None
    if options.verifies and (converts or builder.can_verify):
        verification = find_verification(path, Path(options.verify) if options.verify else None)
    if options.int8:
        calibration = find_calibration(path, options.calibrate, options.calibration_images)
    reporter.say(f"exporting {path}")
    source = source or _open_checkpoint(path, reporter)
    if converts:
        source.require_convertible(options.keep)
    if options.triton:
        require_servable(options.triton, source.card.name)
    spec = source.card.preprocess
    return ExportInputs(
        source,
        builder,
        _read_images(verification, spec, reporter),
        _read_images(calibration, spec, reporter),
    )


def _open_checkpoint(path: Path, reporter: Reporter) -> SourceModel:
    from ffd_train.checkpoint import load_card

    if "val" not in load_card(path).metrics:
        reporter.say(
            "the checkpoint has no calibrated temperature, as its training has not finished: "
            "finish it with ffd-train --resume"
        )
    return open_source(path)


def _read_images(
    examples: list[Example] | None, spec: PreprocessSpec, reporter: Reporter
) -> SampleImages | None:
    """Read and preprocess images, and report unreadable files and small sets."""
    if not examples:
        return None
    images = prepare_images(examples, spec)
    if images.unreadable:
        path, reason = images.unreadable[0]
        reporter.say(
            f"{len(images.unreadable)} of {len(examples)} files could not be read, "
            f"the first: {path}: {reason}"
        )
    if len(images) < MIN_IMAGES:
        reporter.say(f"only {images.describe()}: measurements on so few are inaccurate")
    return images

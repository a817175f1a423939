"""Export a model: convert it, verify it, build an engine, verify the engine, write the files.

All steps work in memory. Files are written only if every step succeeds.
"""

from __future__ import annotations

from .conversion import convert
from .engine_file import build_engine_file
from .export_files import ExportFiles, FileReport
from .export_inputs import read_inputs
from .export_options import ExportOptions
from .exported_model import ExportedModel
from .reporter import Reporter
from .verification import measure_baseline, verify_engine, verify_model


def export(options: ExportOptions, reporter: Reporter) -> list[FileReport]:
    """Run an export.

    Args:
        options: what to export, and how.
        reporter: receives messages and progress.

    Returns:
        A report for each exported model and engine.

    Raises:
        click.UsageError: the options do not fit the model.
        FfdError: a step failed; nothing was written.
    """
    inputs = read_inputs(options, reporter)
    source, builder = inputs.source, inputs.builder
    baseline = measure_baseline(source, inputs.verification, reporter)

    if inputs.converts:
        exported = convert(source, options, inputs.calibration, baseline, reporter)
        exported = verify_model(exported, baseline, reporter)
    else:
        exported = ExportedModel.unchanged(source)
    reporter.say_more(exported.card.to_json(indent=2))

    files = ExportFiles(options.output or source.path.parent, exported)
    engine = None
    if builder.can_build:
        engine = build_engine_file(exported, files.onnx.name, builder, reporter)
        engine = verify_engine(engine, exported, baseline if builder.can_verify else None)
        if engine.parity is None:
            reporter.say("engine: not verified on a GPU")
        files.add_engine(engine, builder.suffix)
    elif builder.unavailable:
        command = builder.command(files.onnx.name)
        reporter.say(f"no engine: {builder.unavailable}; run {command} on the device")
    if options.triton:
        files.add_repository(options.triton, engine, options.max_batch)

    files.write(reporter)
    return files.reports

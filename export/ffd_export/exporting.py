"""Export a model: convert it, verify it, build an engine, verify the engine, write the files.

All steps work in memory. Files are written only if every step succeeds.
"""

from __future__ import annotations

from ffd_train.allocator import keep_freed_memory

from .conversion import convert
from .engine_file import build_engine_file
from .export_files import ExportedFile, write_export
from .export_inputs import read_inputs
from .export_options import ExportOptions
from .reporter import Reporter
from .verification import measure_baseline, verify_engine, verify_model


def export(options: ExportOptions, reporter: Reporter) -> list[ExportedFile]:
    """Run an export and return the written model and engine.

    Raises:
        click.UsageError: the options do not fit the model.
        FfdError: a step failed; nothing was written.
    """
    # Many models are compared on the same images.
    keep_freed_memory()
    inputs = read_inputs(options, reporter)
    baseline = measure_baseline(inputs.source, inputs.verification, reporter)
    exported = convert(inputs.source, options, inputs.calibration, baseline, reporter)
    exported = verify_model(exported, baseline, reporter)
    reporter.say_more(exported.card.to_json(indent=2))
    engine = build_engine_file(exported, inputs.builder, reporter)
    engine = verify_engine(engine, exported, inputs.builder, baseline, reporter)
    return write_export(exported, engine, options, reporter)

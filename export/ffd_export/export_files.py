"""Write the files of an export."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ffd_runtime.model.engine_manifest import manifest_path

from .atomic_files import write_files
from .baseline import open_candidate
from .engine_file import EngineFile
from .export_options import ExportOptions
from .exported_model import ExportedModel
from .parity import summarise
from .reporter import Reporter
from .triton import triton_files

ExportedFile: TypeAlias = ExportedModel | EngineFile


def describe_file(file: ExportedFile) -> dict[str, Any]:
    """Return the row of `ffd-export --json`."""
    return {
        "file": str(file.path),
        "bytes": len(file.content),
        "sha256": hashlib.sha256(file.content).hexdigest(),
        "precision": file.card.precision,
        "layers": file.layers.counts(),
        "parity": summarise(file.parity),
    }


def write_export(
    exported: ExportedModel, engine: EngineFile | None, options: ExportOptions, reporter: Reporter
) -> list[ExportedFile]:
    """Write all files of an export or none, and report each.

    Returns:
        The written model and engine. A model that is used unchanged is not written.

    Raises:
        OutputError: a file cannot be written.
    """
    written: list[ExportedFile] = [exported] if exported.options else []
    contents = {}
    if engine:
        written.append(engine)
        contents[manifest_path(engine.path)] = engine.manifest.to_json().encode()
    contents |= {file.path: file.content for file in written}
    if options.triton:
        contents |= _make_repository(options.triton, exported, engine, options.max_batch)
    write_files(contents)
    for file in written:
        reporter.say(f"wrote {file.path}, {len(file.content) / 1e6:.1f} MB")
    if options.triton:
        reporter.say(f"wrote a Triton model repository to {options.triton}")
    return written


def _make_repository(
    folder: Path, exported: ExportedModel, engine: EngineFile | None, max_batch: int
) -> dict[Path, bytes]:
    """Return a Triton model repository that serves the engine, or else the exported model."""
    card = exported.card
    size = card.preprocess.size
    with open_candidate(exported.content) as backend:
        heatmap = backend.infer(np.zeros((1, size, size, 3), np.uint8)).heatmap
    return triton_files(
        folder,
        card.name,
        (engine or exported).content,
        card,
        platform="tensorrt" if engine else "onnxruntime",
        heatmap=(heatmap.shape[1], heatmap.shape[2]),
        max_batch=max_batch,
    )

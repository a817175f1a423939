"""The files of an export, kept in memory until all of them are complete."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ffd_runtime.core.errors import OutputError
from ffd_runtime.model.engine_manifest import manifest_path

from .atomic_files import write_files
from .baseline import open_candidate
from .engine_file import EngineFile
from .exported_model import ExportedModel
from .layers import LayerTypes
from .parity import NOT_VERIFIED, Parity
from .reporter import Reporter
from .triton import VERSION, triton_files


@dataclass(frozen=True)
class FileReport:
    """An exported model or engine, as `ffd-export` prints it.

    Attributes:
        path: of the file.
        content: its bytes.
        precision: `fp32`, `fp16` or `int8`.
        layers: types of its layers.
        parity: how far its results are from the source's; None if it is not verified.
    """

    path: Path
    content: bytes
    precision: str
    layers: LayerTypes
    parity: Parity | None

    def to_dict(self) -> dict[str, Any]:
        """Return the row of `ffd-export --json`."""
        return {
            "file": str(self.path),
            "bytes": len(self.content),
            "sha256": hashlib.sha256(self.content).hexdigest(),
            "precision": self.precision,
            "layers": self.layers.counts(),
            "parity": self.parity.summary() if self.parity else NOT_VERIFIED,
        }


class ExportFiles:
    """Collects the files of an export, then writes all of them or none.

    Args:
        folder: of the files.
        exported: the model. It is added as a file if it was converted.

    Attributes:
        onnx: path of the exported model.
        reports: one for each exported model and engine.
    """

    def __init__(self, folder: Path, exported: ExportedModel) -> None:
        self.reports: list[FileReport] = []
        self._folder = folder
        self._exported = exported
        self._files: dict[Path, bytes] = {}
        self._repository: Path | None = None
        self.onnx = exported.source.path
        if exported.options is not None:
            self.onnx = folder / (self.onnx.stem + exported.options.suffix)
            self._add(self.onnx, exported.content, exported.layers, exported.parity)

    def add_engine(self, engine: EngineFile, suffix: str) -> None:
        """Add an engine and its manifest."""
        path = self._folder / (self.onnx.name.removesuffix(".onnx") + suffix)
        self._add(path, engine.content, engine.layers, engine.parity)
        self._files[manifest_path(path)] = engine.manifest.to_json().encode()

    def add_repository(self, folder: Path, engine: EngineFile | None, max_batch: int) -> None:
        """Add a Triton model repository that serves the engine, or else the exported model.

        Raises:
            OutputError: Triton does not support the card's name, or a later version is there, which
                would be served instead.
        """
        card, content = self._exported.card, self._exported.content
        home = folder / card.name
        versions = [int(path.name) for path in home.glob("*") if path.name.isdecimal()]
        if versions and max(versions) > int(VERSION):
            raise OutputError(
                f"--triton {folder}: {home} has version {max(versions)} already, and "
                f"{max(versions)} would be served instead of this export: remove it first"
            )
        size = card.preprocess.size
        with open_candidate(content) as backend:
            heatmap = backend.infer(np.zeros((1, size, size, 3), np.uint8)).heatmap
        self._files |= triton_files(
            folder,
            card.name,
            engine.content if engine else content,
            card,
            platform="tensorrt" if engine else "onnxruntime",
            heatmap=(heatmap.shape[1], heatmap.shape[2]),
            max_batch=max_batch,
        )
        self._repository = folder

    def write(self, reporter: Reporter) -> None:
        """Write all files or none, and report each.

        Raises:
            OutputError: a file cannot be written.
        """
        write_files(self._files)
        for report in self.reports:
            reporter.say(f"wrote {report.path}, {len(report.content) / 1e6:.1f} MB")
        if self._repository:
            reporter.say(f"wrote a Triton model repository to {self._repository}")

    def _add(self, path: Path, content: bytes, layers: LayerTypes, parity: Parity | None) -> None:
        self._files[path] = content
        precision = self._exported.card.precision
        self.reports.append(FileReport(path, content, precision, layers, parity))

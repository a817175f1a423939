"""What an export makes: files, in memory until all of them are right, and a row about each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ffd_runtime.core.errors import OutputError

from .atomic_files import write_files
from .candidate import open_candidate
from .exporting import Made
from .layers import LayerTypes
from .parity import NOT_VERIFIED, Parity
from .triton import VERSION, triton_files


@dataclass
class Artefacts:
    """The results of one export.

    Attributes:
        files: content by path.
        rows: what `ffd-export --json` prints of each artefact.
    """

    files: dict[Path, bytes] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        path: Path,
        content: bytes,
        precision: str,
        layers: LayerTypes,
        parity: Parity | None,
    ) -> None:
        """An ONNX or an engine, with what was measured."""
        self.files[path] = content
        self.rows.append(
            {
                "file": str(path),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "precision": precision,
                "layers": layers.counts(),
                "parity": parity.summary() if parity else NOT_VERIFIED,
            }
        )

    def add_repository(
        self, folder: Path, made: Made, engine: bytes | None, max_batch: int
    ) -> None:
        """A Triton model repository with the engine, or with the ONNX where there is none.

        Raises:
            OutputError: the card's name is none for Triton, or another version there would be
                served instead.
        """
        home = folder / made.card.name
        newer = [int(p.name) for p in home.glob("*") if p.name.isdecimal()]
        if newer and max(newer) > int(VERSION):
            raise OutputError(
                f"--triton {folder}: {home} holds version {max(newer)} already, and {max(newer)} "
                "would be served instead of this export: remove it first"
            )
        size = made.card.preprocess.size
        with open_candidate(made.content) as backend:
            heatmap = backend.infer(np.zeros((1, size, size, 3), np.uint8)).heatmap
        self.files.update(
            triton_files(
                folder,
                made.card.name,
                made.content if engine is None else engine,
                made.card,
                platform="onnxruntime" if engine is None else "tensorrt",
                heatmap=(heatmap.shape[1], heatmap.shape[2]),
                max_batch=max_batch,
            )
        )

    def write(self) -> None:
        """Write all files, or none.

        Raises:
            OutputError: one cannot be written.
        """
        write_files(self.files)

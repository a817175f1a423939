"""Run a model that is not a file yet, where it cannot be mistaken for the result."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.core.results import Result
from ffd_runtime.model.backends import Backend, open_backend
from ffd_runtime.model.card import ModelCard

from .onnx_file import to_bytes
from .parity import classify
from .sample_images import Images

if TYPE_CHECKING:
    from onnx import ModelProto


@contextmanager
def open_candidate(content: bytes, device: str = "cpu") -> Iterator[Backend]:
    """The runtime's backend for an ONNX in memory.

    Args:
        content: with its card.
        device: as for `open_backend`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        path.write_bytes(content)
        backend = open_backend(path, "onnxruntime", device)
        try:
            yield backend
        finally:
            backend.close()


def classify_candidate(model: ModelProto, card: ModelCard, images: Images) -> list[Result]:
    """Rows of a model in memory, on the CPU."""
    with open_candidate(to_bytes(model, card)) as backend:
        return classify(backend, images)

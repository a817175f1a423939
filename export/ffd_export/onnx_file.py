"""ONNX files of ours: the card inside, nothing beside them, and nothing of this machine in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.card import CARD_KEY, ModelCard
from ffd_runtime.errors import OutputError

if TYPE_CHECKING:
    from onnx import ModelProto


def write_onnx(model: ModelProto, card: ModelCard, path: Path) -> None:
    """Write a model with its card, whole or not at all, all weights inside.

    Args:
        model: changed in place.
        card: replaces the one inside, if any.
        path: the file.

    Raises:
        OutputError: it cannot be written.
    """
    strip(model)
    del model.metadata_props[:]
    model.metadata_props.add(key=CARD_KEY, value=card.to_json())
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            # Deterministic: the same model gives the same bytes.
            file.write(model.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def strip(model: ModelProto) -> None:
    """Remove what the exporter noted for debugging: stack traces name this machine's paths."""
    graph = model.graph
    for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del graph.value_info[:]
    del model.functions[:]

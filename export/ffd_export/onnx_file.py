"""Read and write ONNX files: with the model card inside, and without paths of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.core.errors import CardError, ModelError
from ffd_runtime.model.card import CARD_KEY, ModelCard

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto


def read_onnx(path: Path) -> tuple[ModelProto, ModelCard]:
    """Read an ONNX of ffd-export.

    Raises:
        ModelError: the file is absent, is not an ONNX, or breaks the graph contract.
        CardError: the model card is absent or invalid.
    """
    import onnx

    if not path.is_file():
        raise ModelError(f"model {path}: no such file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and onnx raise exceptions without a common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {path} is not an ONNX: {reason}") from None
    cards = [entry.value for entry in model.metadata_props if entry.key == CARD_KEY]
    if not cards:
        raise CardError(f"model {path} has no model card: it was not written by ffd-export")
    try:
        card = ModelCard.from_json(cards[0])
    except CardError as error:
        raise CardError(f"model {path}: {error}") from None
    _require_contract(model, card, path)
    return model, card


def to_bytes(model: ModelProto, card: ModelCard) -> bytes:
    """Serialise a model with all weights. Equal models and cards give equal bytes.

    Args:
        model: changed in place.
        card: replaces the card inside.
    """
    strip(model)
    del model.metadata_props[:]
    model.metadata_props.add(key=CARD_KEY, value=card.to_json())
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def strip(model: ModelProto) -> None:
    """Remove the exporter's debugging notes: stack traces contain paths of this machine."""
    graph = model.graph
    for holder in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del graph.value_info[:]
    del model.functions[:]


def _require_contract(model: ModelProto, card: ModelCard, path: Path) -> None:
    from onnx import TensorProto

    size = card.preprocess.size
    given = [_signature(value) for value in (*model.graph.input, *model.graph.output)]
    wanted = [
        ("image", TensorProto.UINT8, (None, size, size, 3)),
        ("probability", TensorProto.FLOAT, (None, 2)),
    ]
    last = given[2:]
    if given[:2] != wanted or len(last) != 1 or last[0][0] != "heatmap" or len(last[0][2]) != 3:
        raise ModelError(
            f"model {path} breaks the graph contract (image uint8[N,{size},{size},3] in; "
            "probability and heatmap out): export it from its checkpoint with ffd-export"
        )


def _signature(value: ValueInfoProto) -> tuple[str, int, tuple[int | None, ...]]:
    """Return name, element type and shape; None in the shape means any size."""
    kind = value.type.tensor_type
    shape = tuple(side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim)
    return value.name, kind.elem_type, shape

"""Read and write ONNX files: with the model card inside, and without paths of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.core.errors import ModelError
from ffd_runtime.core.text import first_line
from ffd_runtime.model.backends import read_card
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
        raise ModelError(f"model {path} is not an ONNX: {first_line(error)}") from None
    text = next((entry.value for entry in model.metadata_props if entry.key == CARD_KEY), None)
    inputs = list(map(_signature, model.graph.input))
    outputs = list(map(_signature, model.graph.output))
    return model, read_card(path, text, inputs, outputs)


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


def _signature(value: ValueInfoProto) -> str:
    """Return name, element type and shape, such as `image uint8[N,299,299,3]`."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    sides = [
        str(side.dim_value) if side.HasField("dim_value") else "N" for side in tensor.shape.dim
    ]
    kind = TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind}[{','.join(sides)}]"

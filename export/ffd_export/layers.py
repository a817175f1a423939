"""The layers of a graph that take time, convolutions and matrix products: names and types."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ffd_runtime.core.errors import ModelError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Type of the layers of each precision.
TYPE_OF = {"fp32": "float", "fp16": "half", "int8": "int8"}
# Smallest share of layers that must have it.
MIN_SHARE = 0.95


@dataclass(frozen=True)
class LayerTypes:
    """The types in which layers multiply: `float`, `half` or `int8` by name, in graph order."""

    types: Mapping[str, str]

    def counts(self) -> dict[str, int]:
        """Count layers by type, the most frequent type first."""
        return dict(Counter(self.types.values()).most_common())

    def of_other_type(self, precision: str) -> list[str]:
        """Return the names of layers that do not have the type of a precision."""
        return [name for name, kind in self.types.items() if kind != TYPE_OF[precision]]

    def require(self, precision: str, kept: Collection[str] = ()) -> None:
        """Reject a model in which too few layers have the type of its precision.

        Layers that `--keep` keeps in FP32 do not count.

        Raises:
            ModelError: less than 95 % of the layers have the precision's type.
        """
        others = [name for name in self.of_other_type(precision) if name not in kept]
        counted = len(self.types) - sum(name in kept for name in self.types)
        if counted == 0 or len(others) > (1 - MIN_SHARE) * counted:
            names = f"{', '.join(others)} are not" if others else "none are left"
            raise ModelError(
                f"only {counted - len(others)} of {counted} convolution and GEMM layers are "
                f"{TYPE_OF[precision]}, too few for {precision}: {names}; name the layers "
                "that must stay FP32 with --keep"
            )

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        return f"{len(self.types)} layers: {counts}"


def layer_types(model: ModelProto) -> LayerTypes:
    """Return the types of an ONNX's layers: int8 if activation and weight come dequantised."""
    from onnx import TensorProto

    graph = model.graph
    producers = producers_of(graph)
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types = {}
    for node in layers_of(graph):
        sources = [producers.get(name) for name in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            types[node.name] = "int8"
        else:
            is_half = stored.get(node.input[1]) == TensorProto.FLOAT16
            types[node.name] = "half" if is_half else "float"
    return LayerTypes(types)


def layers_of(graph: GraphProto) -> list[NodeProto]:
    """Return the layers, in graph order."""
    return [node for node in graph.node if node.op_type in OPERATORS]


def layer_before(graph: GraphProto, name: str) -> str | None:
    """Return the layer with the fewest nodes between it and a layer; None before the first."""
    producers = producers_of(graph)
    (layer,) = (node for node in graph.node if node.name == name)
    queue = deque([layer.input[0]])
    while queue:
        node = producers.get(queue.popleft())
        if node is None:
            continue
        if node.op_type in OPERATORS:
            return node.name
        queue += node.input
    return None


def producers_of(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that produces each tensor."""
    return {name: node for node in graph.node for name in node.output}


def require_layers(model: ModelProto, names: Collection[str]) -> None:
    """Raise a ModelError for unknown names of layers."""
    layers = [node.name for node in layers_of(model.graph)]
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise ModelError(
            f"--keep {','.join(unknown)}: no such layer; the layers are {', '.join(layers)}"
        )


@dataclass(frozen=True)
class GraphEnds:
    """Names of the nodes at both ends of a graph.

    Attributes:
        normalisation: from `image` to the first layer: cast, transpose, subtract, divide.
        first: the layers that read the normalised image.
        last: the layer that computes the logits.
        scores: from the logits to `probability`: temperature, softmax.
    """

    normalisation: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    scores: tuple[str, ...]


def ends_of(graph: GraphProto) -> GraphEnds:
    """Follow `image` forwards and `probability` backwards, each to the next layers."""
    normalisation, first, last, scores = [], [], [], []
    reached = {"image"}
    for node in graph.node:
        if reached.intersection(node.input):
            if node.op_type in OPERATORS:
                first.append(node.name)
            else:
                normalisation.append(node.name)
                reached.update(node.output)
    producers = producers_of(graph)
    waiting = ["probability"]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type in OPERATORS:
            last.append(node.name)
        else:
            scores.append(node.name)
            waiting += node.input
    return GraphEnds(tuple(normalisation), tuple(first), tuple(last), tuple(scores))


def name_nodes(model: ModelProto) -> None:
    """Name layers after their weights in the network, and other nodes after type and position.

    Exporters number the nodes. Users, TensorRT's messages and `--keep` need meaningful and stable
    names. Every name is unique.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    used: set[str] = set()
    for index, node in enumerate(model.graph.node):
        name = f"{node.op_type.lower()}.{index}"
        if node.op_type in OPERATORS and node.input[1] in stored:
            name = node.input[1].removeprefix("net.").removesuffix(".weight")
        if name == "evidence":
            name = "heatmap"
        node.name = name if name not in used else f"{name}.{index}"
        used.add(node.name)

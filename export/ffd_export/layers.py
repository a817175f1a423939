"""The layers that cost time, convolutions and matrix products: their names and their types."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ffd_runtime.core.errors import ModelError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# What a precision's layers must be, and the least share of them.
KIND_OF = {"fp32": "float", "fp16": "half", "int8": "int8"}
LEAST = 0.95


@dataclass(frozen=True)
class LayerTypes:
    """The type in which each layer multiplies.

    Attributes:
        kinds: `float`, `half` or `int8` by the layer's name, in the order of the graph.
    """

    kinds: Mapping[str, str]

    def counts(self) -> dict[str, int]:
        """Layers of each type, the most frequent first."""
        return dict(Counter(self.kinds.values()).most_common())

    def others(self, precision: str) -> list[str]:
        """Layers of another type than the precision's."""
        return [name for name, kind in self.kinds.items() if kind != KIND_OF[precision]]

    def require(self, precision: str, wished: Collection[str] = ()) -> None:
        """Refuse what calls itself one precision and mostly runs in another.

        Args:
            precision: `fp32`, `fp16` or `int8`.
            wished: layers that --keep named or chose to stay FP32; they do not count.

        Raises:
            ModelError: under 95 % of the layers are of the precision's type.
        """
        others = [name for name in self.others(precision) if name not in wished]
        counted = len(self.kinds) - sum(name in wished for name in self.kinds)
        if counted == 0 or len(others) > (1 - LEAST) * counted:
            raise ModelError(
                f"only {counted - len(others)} of {counted} convolution and GEMM layers are "
                f"{KIND_OF[precision]}, too few for {precision}: {', '.join(others) or 'none left'}"
                " are not (--keep names layers that may stay FP32)"
            )

    def __str__(self) -> str:
        kinds = self.counts()
        return f"{len(self.kinds)} layers: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())


def types_of(model: ModelProto) -> LayerTypes:
    """Layers of an ONNX by type: int8 where activation and weight both come dequantised."""
    from onnx import TensorProto

    graph = model.graph
    producers = producers_of(graph)
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kinds = {}
    for node in layers_of(graph):
        sources = [producers.get(name) for name in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            kinds[node.name] = "int8"
        else:
            half = stored.get(node.input[1]) == TensorProto.FLOAT16
            kinds[node.name] = "half" if half else "float"
    return LayerTypes(kinds)


def layers_of(graph: GraphProto) -> list[NodeProto]:
    """The layers, in the order of the graph."""
    return [node for node in graph.node if node.op_type in OPERATORS]


def layer_before(graph: GraphProto, name: str) -> str | None:
    """The layer nearest to what a layer reads; where branches join, not what a shortcut brings."""
    producers = producers_of(graph)
    (layer,) = (node for node in graph.node if node.name == name)
    todo = deque([layer.input[0]])
    while todo:
        node = producers.get(todo.popleft())
        if node is None:
            continue
        if node.op_type in OPERATORS:
            return node.name
        todo += node.input
    return None


def producers_of(graph: GraphProto) -> dict[str, NodeProto]:
    """Which node makes a tensor."""
    return {name: node for node in graph.node for name in node.output}


@dataclass(frozen=True)
class Ends:
    """Where a graph begins and ends, by the names of nodes.

    Attributes:
        scaling: between `image` and the first layer: cast, scale, transpose.
        first: the layer, or layers, that read the image.
        last: the layer that makes the logits.
        scores: between the logits and `probability`: temperature, softmax.
    """

    scaling: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    scores: tuple[str, ...]


def ends_of(graph: GraphProto) -> Ends:
    """Walk in from `image`, and back from `probability`, each as far as the next layers."""
    scaling, first, last, scores = [], [], [], []
    reached = {"image"}
    for node in graph.node:
        if reached.intersection(node.input):
            if node.op_type in OPERATORS:
                first.append(node.name)
            else:
                scaling.append(node.name)
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
    return Ends(tuple(scaling), tuple(first), tuple(last), tuple(scores))


def name_nodes(model: ModelProto) -> None:
    """Name layers after their weights, as the network calls them; other nodes by kind and place.

    Exporters number the nodes; people, TensorRT's messages and `--keep` need names that say
    something and stay the same. Every name is unique.
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

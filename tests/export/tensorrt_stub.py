"""A module with exactly the names of a version of TensorRT, from its published bindings.

Reading, calling or setting another name raises AttributeError. All used names are recorded. The
module computes nothing; it tests whether the builder uses only existing names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "tensorrt_api"
VERSIONS = sorted(path.stem for path in FOLDER.glob("*.json"))
LAYERS = json.dumps({"Layers": [{"LayerType": "CaskConvolution", "Inputs": [{"Format": "Half"}]}]})


class Value:
    """A member of an enumeration."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number

    def __int__(self) -> int:
        return self.number

    def __str__(self) -> str:
        return self.name


class Stub:
    """The stub of the module."""

    __name__ = "tensorrt"

    def __init__(self, version: str) -> None:
        document = json.loads((FOLDER / f"{version}.json").read_text())
        self.__version__ = document["version"]
        self.touched: set[str] = set()
        self._classes: dict[str, Any] = {}
        for name, members in document["classes"].items():
            self._classes[name] = _make_class(self, name, members)
        self._classes["ILogger"].Severity = self._classes["ILogger.Severity"]
        of = self._classes
        # Values that affect the builder's control flow.
        self.answers: dict[str, Any] = {
            "INetworkDefinition.num_layers": 1,
            "ILayer.type": of["LayerType"].CONVOLUTION,
            "ILayer.name": "conv",
            "ILayer.num_inputs": 1,
            "ITensor.dtype": of["DataType"].HALF,
            "Builder.build_serialized_network": b"an engine",
            "Runtime.deserialize_cuda_engine": of["ICudaEngine"](),
            "EngineInspector.get_engine_information": LAYERS,
            "ITimingCache.serialize": b"timings",
            "OnnxParser.parse": True,
        }
        self.touched.clear()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._classes:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        return self._classes[name]

    def answer(self, owner: str, name: str, kind: str) -> Any:
        """Return the value of a property or of a method call."""
        key = f"{owner}.{name}"
        if key in self.answers:
            return self.answers[key]
        returned = kind.partition(" ")[2]
        if returned in self._classes:
            return self._classes[returned]()
        return {"int": 0, "bool": True, "str": ""}.get(returned)


def _make_class(stub: Stub, owner: str, members: dict[str, str]) -> Any:
    values = {
        name: Value(name, number)
        for number, (name, kind) in enumerate(sorted(members.items()))
        if kind == "value"
    }

    class Meta(type):
        def __getattr__(cls, name: str) -> Any:
            if name not in values:
                raise AttributeError(f"TensorRT {stub.__version__} has no {owner}.{name}")
            stub.touched.add(f"{owner}.{name}")
            return values[name]

        @property
        def __members__(cls) -> dict[str, Value]:
            return values

    class Made(metaclass=Meta):
        def __init__(self, *_: object) -> None:
            stub.touched.add(owner)

        def __getattr__(self, name: str) -> Any:
            if name not in members:
                raise AttributeError(f"TensorRT {stub.__version__} has no {owner}.{name}")
            stub.touched.add(f"{owner}.{name}")
            kind = members[name]
            if kind.startswith("property"):
                return stub.answer(owner, name, kind)
            return lambda *_, **__: stub.answer(owner, name, kind)

        def __setattr__(self, name: str, value: Any) -> None:
            # Subclasses, such as loggers, may have further attributes.
            if type(self) is Made:
                if not members.get(name, "").startswith("property"):
                    raise AttributeError(f"TensorRT {stub.__version__} has no {owner}.{name}")
                stub.touched.add(f"{owner}.{name}")
            object.__setattr__(self, name, value)

    return Made

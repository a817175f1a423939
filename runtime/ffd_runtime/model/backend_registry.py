"""The registry of inference backends, which imports none of them.

To add a backend, write its module and add its `BackendSpec` to `BACKENDS`. The module provides:

- `open_model(path, device) -> Backend`, as described by `backends.open_backend`;
- `probe(library) -> Facts`, which imports a library, starts it as far as possible without a model,
  and returns what ffd-doctor reports: `version`, and facts that have JSON types. The fact `outcome`
  is `loaded` when there is no device to start the library on.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

# A report of ffd-doctor, as JSON types.
Facts = dict[str, Any]


class BackendSpec(NamedTuple):
    """What commands, ffd-doctor and `open_backend` know about a backend without importing it.

    Attributes:
        name: value of `--backend`.
        module: full name of its module.
        suffixes: of the model files that it reads.
        extras: the extra of ffd-edge that installs each library, by the library's top-level module;
            empty for a library that ffd itself requires.
    """

    name: str
    module: str
    suffixes: tuple[str, ...]
    extras: Mapping[str, str]

    def load(self) -> ModuleType:
        """Import the module."""
        return import_module(self.module)


_BACKENDS = "ffd_runtime.model.backends"
# Of several backends that read a file, the first is the default.
BACKENDS: dict[str, BackendSpec] = {
    spec.name: spec
    for spec in (
        BackendSpec("onnxruntime", f"{_BACKENDS}.onnxruntime", (".onnx",), {"onnxruntime": ""}),
        BackendSpec("openvino", f"{_BACKENDS}.openvino", (".onnx",), {"openvino": "openvino"}),
        BackendSpec(
            "tensorrt",
            f"{_BACKENDS}.tensorrt",
            (".engine", ".plan"),
            {
                "tensorrt": "tensorrt",
                "tensorrt_lean": "tensorrt-lean",
                "tensorrt_rtx": "rtx",
                "cuda": "tensorrt",
            },
        ),
    )
}


def find_readers(suffix: str) -> list[str]:
    """Return the names of the backends that read a model file, the default first.

    Args:
        suffix: of the file; one that no backend reads is taken for `.onnx`.
    """
    known = any(suffix in spec.suffixes for spec in BACKENDS.values())
    wanted = suffix if known else ".onnx"
    return [name for name, spec in BACKENDS.items() if wanted in spec.suffixes]


def find_extra(library: str) -> str:
    """Return the extra that installs a backend's top-level module; empty for any other module."""
    return next((spec.extras[library] for spec in BACKENDS.values() if library in spec.extras), "")

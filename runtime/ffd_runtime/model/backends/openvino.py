"""OpenVINO: ONNX on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.cores import count_cores
from ...core.errors import BackendError, DeviceError, ModelError
from ...core.install_hint import install_hint
from ...core.text import counted, first_line
from ..backend_registry import Facts
from ..card import CARD_KEY, ModelCard
from ..devices import parse_device
from . import MAX_CPU_BATCH, OUTPUTS, Outputs, failure, infer_in_parts, read_card

# OpenVINO's types of layers with weights, whose precision is that of the model.
WEIGHED = ("Convolution", "FullyConnected", "MatMul", "Gemm")
ELEMENT_TYPES = {"u8": "uint8", "i8": "int8", "f32": "float", "f16": "float16"}


class OpenVino:
    """A model that is compiled for the CPU; `again` compiles it again."""

    def __init__(
        self, compiled: Any, again: Callable[[], Any], card: ModelCard, description: str
    ) -> None:
        self._lock = Lock()
        self._compile: Callable[[], Any] | None = again
        # One request for all threads, because one batch uses all cores.
        self._request = compiled.create_infer_request()
        self.card = card
        self.description = description

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        with self._lock:
            return infer_in_parts(self._run, images, MAX_CPU_BATCH)

    def _run(self, images: npt.NDArray[np.uint8]) -> Outputs:
        if self._compile is None:
            raise BackendError("the model was closed")
        try:
            if self._request is None:
                self._request = self._compile().create_infer_request()
            self._request.infer({"image": images}, share_inputs=True)
        except Exception as error:  # OpenVINO's exceptions have no other common base
            # After a lack of memory, the compiled model requests as much for smaller batches, too.
            self._request = None
            raise failure(f"openvino failed: {_reason(error)}", str(error)) from error
        # Copy, because the request writes the next outputs to the same memory.
        return Outputs(*(self._request.get_tensor(name).data.copy() for name in OUTPUTS))

    def close(self) -> None:
        with self._lock:
            self._request = self._compile = None


def open_model(path: Path, device: str = "auto") -> OpenVino:
    """Load an ONNX file.

    Raises:
        ModelError, CardError: the file is not an ONNX file with ffd's graph contract.
        DeviceError: the device is not `auto` or `cpu`.
        BackendError: OpenVINO is not installed.
    """
    kind, _ = parse_device(device)
    if kind == "cuda":
        raise DeviceError(
            f"--device {device}: openvino supports only the CPU; use --backend onnxruntime, or "
            "--device cpu"
        )
    openvino = _import_openvino()
    model = _read_model(openvino, path)
    where = ["framework", CARD_KEY]
    text = model.get_rt_info(where).astype(str) if model.has_rt_info(where) else None
    inputs = [_signature(tensor) for tensor in model.inputs]
    card = read_card(path, text, inputs, {_signature(tensor) for tensor in model.outputs})
    threads = count_cores()
    options = {
        # On a CPU with bfloat16, an FP32 model would compute in it, unlike when it was measured.
        "INFERENCE_PRECISION_HINT": "f32",
        # Batches come one at a time, so all threads work on one.
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compile_model = partial(openvino.Core().compile_model, model, "CPU", options)
    try:
        compiled = compile_model()
    except Exception as error:
        raise ModelError(f"model {path} cannot be loaded: {_reason(error)}") from None
    precision = "/".join(_precisions(compiled))
    version = openvino.__version__.split("-")[0]
    description = f"openvino {version}, CPU, {counted(threads, 'thread')}, computing in {precision}"
    return OpenVino(compiled, compile_model, card, description)


def _import_openvino() -> Any:
    try:
        import openvino
        import openvino.frontend
    except ImportError as error:
        raise BackendError(
            f"openvino cannot be imported ({first_line(error)}): {install_hint('openvino')}"
        ) from None
    return openvino


def _read_model(openvino: Any, path: Path) -> Any:
    try:
        # Only the ONNX reader: `read_model` tries every format, and the other readers print.
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        return reader.convert(reader.load(str(path)))
    except Exception as error:  # OpenVINO's exceptions have no other common base
        raise ModelError(f"model {path} cannot be loaded: {_reason(error)}") from None


def _precisions(compiled: Any) -> list[str]:
    """Return the precisions of the compiled layers with weights, such as `["f32", "u8"]`."""
    layers = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return sorted(
        {
            layer["runtimePrecision"].astype(str)
            for layer in layers
            if layer["layerType"].astype(str) in WEIGHED
        }
    )


def _signature(tensor: Any) -> str:
    """Return a signature such as `image uint8[N,299,299,3]`, with N for a dynamic size."""
    kind = tensor.element_type.get_type_name()
    shape = tensor.partial_shape
    if shape.rank.is_dynamic:
        return f"{tensor.any_name} {ELEMENT_TYPES.get(kind, kind)}[any shape]"
    sides = ",".join(str(side.get_length()) if side.is_static else "N" for side in shape)
    return f"{tensor.any_name} {ELEMENT_TYPES.get(kind, kind)}[{sides}]"


def _reason(error: Exception) -> str:
    """Return the last line of OpenVINO's message, without positions in its source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said or [type(error).__name__])[-1]


def probe(library: str) -> Facts:
    """Return the version of OpenVINO, and its devices; see `backend_registry`."""
    openvino = import_module(library)
    core = openvino.Core()
    names = core.available_devices
    return {
        "version": openvino.__version__,
        "devices": {name: core.get_property(name, "FULL_DEVICE_NAME") for name in names},
    }

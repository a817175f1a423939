"""onnxruntime: CPU and CUDA."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..card import CARD_KEY, ModelCard
from ..devices import count_cores, count_gpus, parse_device
from ..errors import BackendError, CardError, DeviceError, ModelError
from . import Outputs

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# A larger batch is no faster on a CPU, takes more memory, and makes Ctrl-C wait.
MOST_ON_CPU = 32
INSTALL = "install the CUDA and cuDNN libraries with pip install 'ffd-edge[cuda]'"


class OnnxRuntime:
    """A model in an onnxruntime session; made by `open_model`."""

    def __init__(self, session: Any, card: ModelCard, description: str, most: int) -> None:
        self._session = session
        self._most = most
        self.card = card
        self.description = description

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch; see `Backend.infer`."""
        parts = [self._run(images[i : i + self._most]) for i in range(0, len(images), self._most)]
        if len(parts) == 1:
            return Outputs(*parts[0])
        return Outputs(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _run(self, images: npt.NDArray[np.uint8]) -> tuple[Any, Any]:
        try:
            probability, heatmap = self._session.run(["probability", "heatmap"], {"image": images})
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise BackendError(f"onnxruntime failed: {_first_line(error)}") from error
        return probability, heatmap

    def close(self) -> None:
        """Free the session."""
        self._session = None


def open_model(path: Path, device: str = "auto") -> OnnxRuntime:
    """Load an ONNX.

    On `auto`, a GPU is used if there is one that works; one that is there but cannot be used is a
    warning. A device that is asked for by name either runs the model or is an error.

    Args:
        path: the file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError, CardError: the file is not an ONNX that keeps our graph contract.
        DeviceError: the device that was asked for does not start.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}): reinstall it") from None

    kind, index = parse_device(device)
    gpus = 0 if kind == "cpu" else count_gpus()
    if kind == "cuda" and index >= gpus:
        there = f"NVIDIA's driver offers {gpus}" if gpus else "NVIDIA's driver offers no GPU here"
        raise DeviceError(f"--device {device}: {there}; use --device cpu or auto")
    session = None
    where = ""
    if gpus:
        session, reason = _open_cuda(ort, path, index)
        where = f"CUDA device {index}"
        if session is None:
            message = f"there is a GPU, but onnxruntime cannot use it: {reason}"
            if kind == "cuda":
                raise DeviceError(f"--device {device}: {message}")
            log.warning("%s; running on the CPU", message)
    if session is None:
        session = _open(ort, path, [CPU])
        where = f"CPU, {count_cores()} threads"
    card = read_card(session, path)
    most = MOST_ON_CPU if where.startswith("CPU") else sys.maxsize
    return OnnxRuntime(session, card, f"onnxruntime {ort.__version__}, {where}", most)


def _open_cuda(ort: Any, path: Path, index: int) -> tuple[Any, str]:
    """A session that really runs on CUDA, or None and why not."""
    if CUDA not in ort.get_available_providers():
        return None, f"this onnxruntime is built for the CPU only; {INSTALL}"
    # It prints what it misses to stdout, where rows go.
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    if said.getvalue():
        log.debug("preload_dlls: %s", said.getvalue())
    options = {
        "device_id": index,
        # TF32 would make a FP32 model something else than what was measured.
        "use_tf32": 0,
        # Exhaustive search would run again for every new batch size.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    try:
        session = _open(ort, path, [(CUDA, options), CPU])
    except ModelError as error:
        # Perhaps the GPU's memory is full. If it is the model, the CPU will say so too.
        return None, str(error)
    # What the session runs on, not what is installed: a library that is missing only shows here.
    if session.get_providers()[0] != CUDA:
        return None, f"its CUDA provider did not start; {INSTALL}"
    session.disable_fallback()
    return session, ""


def _open(ort: Any, path: Path, providers: list[Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = count_cores()
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ModelError(f"model {path} cannot be loaded: {_first_line(error)}") from None


def read_card(session: Any, path: Path) -> ModelCard:
    """The card of a session's model, once card and graph are known to agree.

    Raises:
        CardError: there is none, or this version cannot read it.
        ModelError: inputs or outputs break the graph contract.
    """
    text = session.get_modelmeta().custom_metadata_map.get(CARD_KEY)
    if text is None:
        raise CardError(f"model {path} has no model card: it was not written by ffd-export")
    try:
        card = ModelCard.from_json(text)
    except CardError as error:
        raise CardError(f"model {path}: {error}") from None
    size = card.preprocess.size
    inputs = [_signature(tensor) for tensor in session.get_inputs()]
    outputs = {_signature(tensor) for tensor in session.get_outputs()}
    if inputs != [f"image uint8[N,{size},{size},3]"]:
        raise ModelError(
            f"model {path} takes {'; '.join(inputs)}, not image uint8[N,{size},{size},3]: "
            "export it with ffd-export"
        )
    if "probability float[N,2]" not in outputs or not any(
        output.startswith("heatmap float[N,") and output.count(",") == 2 for output in outputs
    ):
        raise ModelError(
            f"model {path} gives {'; '.join(sorted(outputs))}, "
            "not probability float[N,2] and heatmap float[N,h,w]: export it with ffd-export"
        )
    return card


def _signature(tensor: Any) -> str:
    """Such as `image uint8[N,299,299,3]`; N is any size that is left open."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    shape = ",".join(str(side) if isinstance(side, int) else "N" for side in tensor.shape)
    return f"{tensor.name} {kind}[{shape}]"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

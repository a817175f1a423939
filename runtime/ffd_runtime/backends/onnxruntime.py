"""onnxruntime: CPU and CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..card import CARD_KEY, ModelCard
from ..devices import PinnedMemory, count_cores, count_gpus, parse_device
from ..errors import BackendError, DeviceError, ModelError
from ..text import counted
from . import MOST_ON_CPU, Outputs, failure, infer_in_parts, read_card

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
OUTPUTS = ("probability", "heatmap")
INSTALL = "install the CUDA and cuDNN libraries with pip install 'ffd-edge[cuda]'"


class OnnxRuntime:
    """A model in an onnxruntime session; made by `open_model`.

    Args:
        session: what runs it.
        card: of the model.
        description: see `Backend`.
        staging: buffers between host and GPU; None on a CPU.
    """

    def __init__(
        self, session: Any, card: ModelCard, description: str, staging: Staging | None = None
    ) -> None:
        self._session = session
        self._staging = staging
        self.card = card
        self.description = description

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch; see `Backend.infer`."""
        session = self._session
        if session is None:
            raise BackendError("the model was closed")
        try:
            if self._staging:
                return self._staging.run(session, images)
            return infer_in_parts(partial(_run, session), images, MOST_ON_CPU)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise failure(f"onnxruntime failed: {_first_line(error)}", str(error)) from error

    def close(self) -> None:
        """Free the session and its buffers."""
        self._session = None
        if self._staging:
            self._staging.close()


class Memory(Protocol):
    """Memory of the host at an address, until it is closed."""

    address: int

    def close(self) -> None:
        """Free it."""


class Staging:
    """Page-locked buffers that a session on CUDA copies from and to, for the largest batch so far.

    onnxruntime's Python module hands out no page-locked memory itself, but copies to and from any
    address that is bound to it.

    Args:
        outputs: of one image; their shapes but for the batch hold for every batch.
        allocate: gives memory of that many bytes; on CUDA, page-locked.
    """

    def __init__(self, outputs: Outputs, allocate: Callable[[int], Memory]) -> None:
        self._lock = Lock()
        self._allocate = allocate
        self._shapes = [outputs.probability.shape[1:], outputs.heatmap.shape[1:]]
        self._memories: list[Memory] = []
        self._image: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._outputs: list[npt.NDArray[np.float32]] = []

    def run(self, session: Any, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch; threads take turns."""
        count = len(images)
        with self._lock:
            if count > len(self._image):
                self._grow(images.shape)
            self._image[:count] = images
            binding = session.io_binding()
            binding.bind_input("image", "cpu", 0, np.uint8, images.shape, self._image.ctypes.data)
            for name, buffer in zip(OUTPUTS, self._outputs, strict=True):
                shape = (count, *buffer.shape[1:])
                binding.bind_output(name, "cpu", 0, np.float32, shape, buffer.ctypes.data)
            # Binding has copied the images to the GPU, on a stream of its own.
            binding.synchronize_inputs()
            session.run_with_iobinding(binding, _quietly())
            binding.synchronize_outputs()
            # Copies: the next batch overwrites the buffers.
            return Outputs(*(buffer[:count].copy() for buffer in self._outputs))

    def _grow(self, shape: tuple[int, ...]) -> None:
        """Take larger buffers, once the smaller ones are given back."""
        self._free()
        try:
            outputs = [self._take((shape[0], *rest), np.float32) for rest in self._shapes]
            self._image, self._outputs = self._take(shape, np.uint8), outputs
        except BaseException:
            self._free()
            raise

    def _take(self, shape: tuple[int, ...], kind: type[np.generic]) -> npt.NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        memory = self._allocate(size)
        self._memories.append(memory)
        block = (ctypes.c_uint8 * size).from_address(memory.address)
        return np.frombuffer(memoryview(block), kind).reshape(shape)

    def _free(self) -> None:
        # What has no memory any more must not be written to: the next batch takes some first.
        self._image = np.empty(0, np.uint8)
        self._outputs = []
        while self._memories:
            self._memories.pop().close()

    def close(self) -> None:
        """Free the buffers, once no thread uses them."""
        with self._lock:
            self._free()


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
    if gpus:
        opened, reason = _open_cuda(ort, path, index)
        if opened:
            return opened
        message = f"there is a GPU, but onnxruntime cannot use it: {reason}"
        if kind == "cuda":
            raise DeviceError(f"--device {device}: {message}")
        log.warning("%s; running on the CPU", message)
    session = _open(ort, path, [CPU])
    description = f"onnxruntime {ort.__version__}, CPU, {counted(count_cores(), 'thread')}"
    return OnnxRuntime(session, _read_card(session, path), description)


def _open_cuda(ort: Any, path: Path, index: int) -> tuple[OnnxRuntime | None, str]:
    """The model where it really runs on CUDA, or None and why not."""
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
    card = _read_card(session, path)
    try:
        # A GPU that this build has no kernels for only shows when something runs.
        size = card.preprocess.size
        outputs = _run(session, np.zeros((1, size, size, 3), np.uint8))
    except Exception as error:  # onnxruntime's exceptions share no other base
        return None, f"a first image failed: {_first_line(error)}"
    staging = Staging(outputs, partial(PinnedMemory, index))
    description = f"onnxruntime {ort.__version__}, CUDA device {index}"
    return OnnxRuntime(session, card, description, staging), ""


def _open(ort: Any, path: Path, providers: list[Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = count_cores()
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ModelError(f"model {path} cannot be loaded: {_first_line(error)}") from None


def _run(session: Any, images: npt.NDArray[np.uint8]) -> Outputs:
    return Outputs(*session.run(list(OUTPUTS), {"image": images}, _quietly()))


def _quietly() -> Any:
    """Options of a run that prints nothing where it fails: the exception says it all."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4
    return options


def _read_card(session: Any, path: Path) -> ModelCard:
    return read_card(
        path,
        session.get_modelmeta().custom_metadata_map.get(CARD_KEY),
        [_signature(tensor) for tensor in session.get_inputs()],
        {_signature(tensor) for tensor in session.get_outputs()},
    )


def _signature(tensor: Any) -> str:
    """Such as `image uint8[N,299,299,3]`; N is any size that is left open."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    shape = ",".join(str(side) if isinstance(side, int) else "N" for side in tensor.shape)
    return f"{tensor.name} {kind}[{shape}]"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

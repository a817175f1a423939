"""onnxruntime: ONNX on a CPU, or on a GPU with CUDA."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from platform import machine
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.cores import count_cores
from ...core.errors import BackendError, CardError, DeviceError, ModelError
from ...core.install_hint import install_hint
from ...core.text import counted, first_line
from ..backend_registry import Facts
from ..card import CARD_KEY, ModelCard
from ..devices import PinnedMemory, count_gpus, explain_missing_gpu, parse_device
from . import MAX_CPU_BATCH, OUTPUTS, Outputs, failure, infer_in_parts, read_card
from .onnx_metadata import read_metadata
from .staging import MAX_CUDA_BATCH, Staging, quiet_options

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Options of the CUDA provider that affect its speed; ffd-bench compares them.
TUNING = ("prefer_nhwc", "fuse_conv_bias")
SPIN_MICROSECONDS = "20"
INSTALL = "install the CUDA and cuDNN libraries with"
# In an error of onnxruntime; machine, file and line follow.
CUDA_FAILURE = re.compile(r"\b(CUDA|CUDNN|CUBLAS) failure \d+:[^;\n]*")


class OnnxRuntime:
    """A model in an onnxruntime session. `staging` holds the buffers of a GPU; None on a CPU."""

    def __init__(
        self, session: Any, card: ModelCard, description: str, staging: Staging | None = None
    ) -> None:
        self._session = session
        self._staging = staging
        self.card = card
        self.description = description

    @property
    def on_cuda(self) -> bool:
        """Whether the model runs on a GPU."""
        return self._staging is not None

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        session = self._session
        if session is None:
            raise BackendError("the model was closed")
        try:
            if self._staging:
                run = partial(self._staging.run, session)
                return infer_in_parts(run, images, MAX_CUDA_BATCH)
            return infer_in_parts(partial(_run, session), images, MAX_CPU_BATCH)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no other common base
            raise failure(f"onnxruntime failed: {first_line(error)}", str(error)) from error

    def settle(self, count: int) -> None:
        """Run the next batches at the size for `count` images, whatever the earlier sizes."""
        if self._staging:
            self._staging.settle(min(count, MAX_CUDA_BATCH))

    def close(self) -> None:
        """Free the session and its buffers."""
        self._session = None
        if self._staging:
            self._staging.close()


def cuda_options(precision: str) -> dict[str, int | str]:
    """Return options of the CUDA provider, and of Triton, that keep the precision of the card."""
    # An exhaustive search would run again for each new batch size.
    options: dict[str, int | str] = {"cudnn_conv_algo_search": "HEURISTIC"}
    if precision == "fp32":
        # With TF32, the results of an FP32 model would differ from those that were measured. Other
        # models keep the default: without TF32, the provider selects no plan on tensor cores for
        # any type (`CreateCudnnFeExecutionPlan` in onnxruntime's core/providers/cuda/nn/conv.cc),
        # and FP16 would be slower than FP32.
        options["use_tf32"] = 0
    return options


def choose_providers(path: Path, device: str, tuning: Sequence[str] = ()) -> list[Any]:
    """Choose the execution providers of a session: CUDA with its options, or the CPU.

    Nothing is started, so CUDA may still fail when the session is created.

    Args:
        path: an ONNX file; its card gives the precision.
        device: as for `open_backend`.
        tuning: options of `TUNING` to switch on.

    Raises:
        DeviceError: the driver has no such GPU.
    """
    kind, index = parse_device(device)
    gpus = 0 if kind == "cpu" else count_gpus()
    if kind == "cuda" and index >= gpus:
        there = explain_missing_gpu(f"NVIDIA's driver offers {gpus or 'no GPU'}")
        raise DeviceError(f"--device {device}: {there}; use --device cpu or auto")
    card = _peek_card(path)
    precision = card.precision if card else "fp32"
    # onnxruntime has no INT8 convolutions for CUDA. It would compute in FP32 between nodes that
    # quantise and dequantise, and be slower than with the FP32 model.
    if not gpus or (kind == "auto" and precision == "int8"):
        return [CPU]
    options = {"device_id": index, **cuda_options(precision), **dict.fromkeys(tuning, 1)}
    return [(CUDA, options), CPU]


def _peek_card(path: Path) -> ModelCard | None:
    """Read the card without a session; None if it is invalid, which loading the model reports."""
    try:
        return ModelCard.from_json(read_metadata(path).get(CARD_KEY, ""))
    except CardError:
        return None


def open_model(path: Path, device: str = "auto", tuning: Sequence[str] = ()) -> OnnxRuntime:
    """Load an ONNX file.

    `auto` uses a GPU if one works, except for an INT8 model, and logs a warning for a GPU that does
    not. Any other device either runs the model or is an error.

    Args:
        path: the file.
        device: as for `open_backend`.
        tuning: see `choose_providers`.

    Raises:
        ModelError, CardError: the file is not an ONNX file with ffd's graph contract.
        DeviceError: the requested device does not start.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}): reinstall it") from None

    providers = choose_providers(path, device, tuning)
    kind, index = parse_device(device)
    if providers != [CPU]:
        opened, reason = _open_cuda(ort, path, index, providers)
        if opened:
            return opened
        message = f"there is a GPU, but onnxruntime cannot use it: {reason}"
        if kind == "cuda":
            raise DeviceError(f"--device {device}: {message}")
        log.warning("%s; running on the CPU", message)
    elif kind == "auto" and (fault := explain_missing_gpu("")):
        log.warning("%s; running on the CPU", fault)
    session = _open(ort, path, [CPU])
    card = _read_card(session, path)
    description = f"onnxruntime {ort.__version__}, CPU, {counted(count_cores(), 'thread')}"
    if providers == [CPU] and kind == "auto" and card.precision == "int8" and count_gpus():
        description += (
            " (not the GPU, for which onnxruntime has no INT8 convolutions: export with --fp16, or "
            "give --device cuda)"
        )
    return OnnxRuntime(session, card, description)


def _open_cuda(
    ort: Any, path: Path, index: int, providers: list[Any]
) -> tuple[OnnxRuntime | None, str]:
    """Load the model on CUDA; return None and the reason if that fails."""
    if CUDA not in ort.get_available_providers():
        return None, f"this onnxruntime is built for the CPU only; {_how_to_install(machine())}"
    # It prints missing libraries to stdout, which is for rows.
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    if said.getvalue():
        log.debug("preload_dlls: %s", said.getvalue())
    try:
        session = _open(ort, path, providers)
    except ModelError as error:
        # The GPU's memory may be full. If the model is invalid, the CPU session fails, too.
        cause = CUDA_FAILURE.search(str(error))
        return None, cause[0].strip() if cause else str(error)
    # The providers in use, not the installed ones: a missing library shows only here.
    if session.get_providers()[0] != CUDA:
        return None, f"its CUDA provider did not start; {INSTALL} {install_hint('cuda')}"
    card = _read_card(session, path)
    try:
        # A GPU without kernels in this build fails only at the first inference.
        size = card.preprocess.size
        outputs = _run(session, np.zeros((1, size, size, 3), np.uint8))
    except Exception as error:  # onnxruntime's exceptions have no other common base
        return None, f"a first image failed: {first_line(error)}"
    staging = Staging(outputs, partial(PinnedMemory, index))
    description = f"onnxruntime {ort.__version__}, CUDA device {index}"
    if card.precision == "int8":
        description += (
            " (INT8 computed in FP32, slower than an FP32 model: export with --fp16 for a GPU)"
        )
    return OnnxRuntime(session, card, description, staging), ""


def _how_to_install(architecture: str) -> str:
    """Return how to get CUDA for onnxruntime on an architecture of `platform.machine`."""
    if architecture in ("x86_64", "AMD64"):
        return f"{INSTALL} {install_hint('cuda')}"
    return (
        f"PyPI has none with CUDA for {architecture}: build a TensorRT engine with ffd-export "
        "--engine tensorrt, as docs/engines.md describes for a Jetson"
    )


def _open(ort: Any, path: Path, providers: list[Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = count_cores()
    # By default, an idle thread spins for a millisecond on a core that could prepare an image. This
    # value bridges the gaps between operators; onnxruntime before 1.26 ignores it.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    card = _peek_card(path)
    if not card or card.metrics.get("export", {}).get("weight_bits") != 7:
        # On x86 CPUs without VNNI, the default 8-bit kernels saturate sums of 16 bits, so that
        # scores differ between CPUs (onnxruntime_session_options_config_keys.h). Weights of 7 bits
        # saturate no kernel.
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        # The fallback would print to stdout, and hide why CUDA does not start.
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no other common base
        raise ModelError(f"model {path} cannot be loaded: {first_line(error)}") from None


def _run(session: Any, images: npt.NDArray[np.uint8]) -> Outputs:
    return Outputs(*session.run(list(OUTPUTS), {"image": images}, quiet_options()))


def _read_card(session: Any, path: Path) -> ModelCard:
    return read_card(
        path,
        session.get_modelmeta().custom_metadata_map.get(CARD_KEY),
        [_signature(tensor) for tensor in session.get_inputs()],
        {_signature(tensor) for tensor in session.get_outputs()},
    )


def _signature(tensor: Any) -> str:
    """Return a signature such as `image uint8[N,299,299,3]`, with N for a dynamic size."""
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    shape = ",".join(str(side) if isinstance(side, int) else "N" for side in tensor.shape)
    return f"{tensor.name} {kind}[{shape}]"


def probe(library: str) -> Facts:
    """Return the version of onnxruntime, and its providers; see `backend_registry`."""
    ort = import_module(library)
    try:
        built = import_module("onnxruntime.capi.build_and_package_info")
    except ImportError:
        built = None
    return {
        "version": ort.__version__,
        "providers": ort.get_available_providers(),
        "cuda": getattr(built, "cuda_version", None) or None,
    }

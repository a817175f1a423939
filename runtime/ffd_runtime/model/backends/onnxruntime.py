"""onnxruntime: CPU and CUDA."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.cores import count_cores
from ...core.errors import BackendError, CardError, DeviceError, ModelError
from ...core.install_hint import install_hint
from ...core.text import counted, first_line
from ..backend_registry import Facts
from ..card import CARD_KEY, ModelCard
from ..devices import PinnedMemory, count_gpus, parse_device
from . import MOST_ON_CPU, OUTPUTS, Outputs, failure, infer_in_parts, read_card
from .onnx_metadata import read_metadata
from .staging import MOST_ON_CUDA, Staging, quiet_options

log = logging.getLogger(__name__)

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
# Options of the CUDA provider that change its speed; ffd-bench tries them.
TUNING = ("prefer_nhwc", "fuse_conv_bias")
SPIN_MICROSECONDS = "20"
INSTALL = "install the CUDA and cuDNN libraries with"


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

    @property
    def on_cuda(self) -> bool:
        """Whether it runs on a GPU."""
        return self._staging is not None

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch; see `Backend.infer`."""
        session = self._session
        if session is None:
            raise BackendError("the model was closed")
        try:
            if self._staging:
                run = partial(self._staging.run, session)
                return infer_in_parts(run, images, MOST_ON_CUDA)
            return infer_in_parts(partial(_run, session), images, MOST_ON_CPU)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise failure(f"onnxruntime failed: {first_line(error)}", str(error)) from error

    def settle(self, count: int) -> None:
        """Run the next batches at the size for `count` images, whatever size ran before.

        A benchmark calls it, so that what it measured before does not change what it measures.
        """
        if self._staging:
            self._staging.settle(min(count, MOST_ON_CUDA))

    def close(self) -> None:
        """Free the session and its buffers."""
        self._session = None
        if self._staging:
            self._staging.close()


def cuda_options(precision: str) -> dict[str, int | str]:
    """Options with which the CUDA provider computes a model as it was measured.

    Triton's configuration has them too.

    Args:
        precision: the card's.
    """
    # Exhaustive search would run again for every new batch size.
    options: dict[str, int | str] = {"cudnn_conv_algo_search": "HEURISTIC"}
    if precision == "fp32":
        # TF32 would make an FP32 model something else than what was measured. For other models the
        # provider's default stays: without TF32 it deselects every plan on tensor cores, whatever
        # the type (`CreateCudnnFeExecutionPlan` in onnxruntime's core/providers/cuda/nn/conv.cc),
        # and FP16 would be slower than FP32.
        options["use_tf32"] = 0
    return options


def choose_providers(path: Path, device: str, tuning: Sequence[str] = ()) -> list[Any]:
    """What a session for a model is made with: CUDA and its options where it is to run there.

    Nothing is started: whether CUDA works, the session says.

    Args:
        path: an ONNX; its precision decides, which is read from its card.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tuning: of `TUNING`, options of CUDA to switch on.

    Returns:
        For `onnxruntime.InferenceSession`; the first is what the model is to run on.

    Raises:
        DeviceError: the driver does not offer the GPU that is asked for by name.
    """
    kind, index = parse_device(device)
    gpus = 0 if kind == "cpu" else count_gpus()
    if kind == "cuda" and index >= gpus:
        there = f"NVIDIA's driver offers {gpus}" if gpus else "NVIDIA's driver offers no GPU here"
        raise DeviceError(f"--device {device}: {there}; use --device cpu or auto")
    precision = _read_precision(path)
    # CUDA has no INT8 convolutions in onnxruntime: it would compute in FP32, between nodes that
    # quantise and dequantise, and be slower than the FP32 model.
    if not gpus or (kind == "auto" and precision == "int8"):
        return [CPU]
    options = {"device_id": index, **cuda_options(precision), **dict.fromkeys(tuning, 1)}
    return [(CUDA, options), CPU]


def _read_precision(path: Path) -> str:
    """The card's, before a session is made; `fp32`, the exact way, where no card can be read."""
    card = _peek_card(path)
    return card.precision if card else "fp32"


def _fits_every_cpu(path: Path) -> bool:
    """Whether its card says that 8-bit weights are so small that no CPU's fast kernels saturate."""
    card = _peek_card(path)
    return card is not None and card.metrics.get("export", {}).get("weight_bits") == 7


def _peek_card(path: Path) -> ModelCard | None:
    """Read the card without a session; None if it is invalid, which loading the model reports."""
    try:
        return ModelCard.from_json(read_metadata(path).get(CARD_KEY, ""))
    except CardError:
        return None


def open_model(path: Path, device: str = "auto", tuning: Sequence[str] = ()) -> OnnxRuntime:
    """Load an ONNX.

    On `auto`, a GPU is used if there is one that works, except for an INT8 model; one that is there
    but cannot be used is a warning. A device that is asked for by name either runs the model or is
    an error.

    Args:
        path: the file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        tuning: see `choose_providers`.

    Raises:
        ModelError, CardError: the file is not an ONNX that keeps our graph contract.
        DeviceError: the device that was asked for does not start.
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
    """The model where it really runs on CUDA, or None and why not."""
    if CUDA not in ort.get_available_providers():
        return None, f"this onnxruntime is built for the CPU only; {INSTALL} {install_hint('cuda')}"
    # It prints what it misses to stdout, where rows go.
    with contextlib.redirect_stdout(io.StringIO()) as said:
        ort.preload_dlls()
    if said.getvalue():
        log.debug("preload_dlls: %s", said.getvalue())
    try:
        session = _open(ort, path, providers)
    except ModelError as error:
        # Perhaps the GPU's memory is full. If it is the model, the CPU will say so too.
        return None, str(error)
    # What the session runs on, not what is installed: a library that is missing only shows here.
    if session.get_providers()[0] != CUDA:
        return None, f"its CUDA provider did not start; {INSTALL} {install_hint('cuda')}"
    session.disable_fallback()
    card = _read_card(session, path)
    try:
        # A GPU that this build has no kernels for only shows when something runs.
        size = card.preprocess.size
        outputs = _run(session, np.zeros((1, size, size, 3), np.uint8))
    except Exception as error:  # onnxruntime's exceptions share no other base
        return None, f"a first image failed: {first_line(error)}"
    staging = Staging(outputs, partial(PinnedMemory, index))
    description = f"onnxruntime {ort.__version__}, CUDA device {index}"
    if card.precision == "int8":
        description += (
            " (INT8 computed in FP32, slower than an FP32 model: export with --fp16 for a GPU)"
        )
    return OnnxRuntime(session, card, description, staging), ""


def _open(ort: Any, path: Path, providers: list[Any]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = count_cores()
    # By default an idle thread spins for a millisecond, on the cores that decode, detect and
    # preprocess the next images. This bridges the gaps between operators; onnxruntime before 1.26
    # ignores it.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_MICROSECONDS)
    if not _fits_every_cpu(path):
        # On x86 CPUs without VNNI, the default 8-bit kernels saturate sums of 16 bits, so that the
        # scores differ from other CPUs' (onnxruntime_session_options_config_keys.h).
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no other base
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
    """Such as `image uint8[N,299,299,3]`; N is any size that is left open."""
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

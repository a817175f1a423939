"""Inference backends; `backend_registry` lists them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ...core.errors import BackendError, CardError, DeviceMemoryError, ModelError
from ..backend_registry import BACKENDS as BACKENDS
from ..backend_registry import find_readers
from ..card import ModelCard
from .embedded import EMBEDDED as EMBEDDED
from .embedded import EMBEDDED_INT8 as EMBEDDED_INT8
from .embedded import find_embedded as find_embedded
from .embedded import find_embedded_by as find_embedded_by

# Suffixes of all model files; a file with another suffix is read as ONNX.
READS = tuple(dict.fromkeys(suffix for spec in BACKENDS.values() for suffix in spec.suffixes))

# Outputs of the graph, by name and in the order of `Outputs`.
OUTPUTS = ("probability", "heatmap")

# On a CPU, larger batches are not faster, need more memory, and delay Ctrl-C.
MAX_CPU_BATCH = 32

# Out-of-memory messages of onnxruntime, OpenVINO, TensorRT, CUDA, cuDNN, cuBLAS and C++.
OUT_OF_MEMORY = (
    r"(?i)out ?of ?memory|out_of_memory|failed to allocate|alloc(ation)?_failed|cuda failure 2\b"
    r"|bad[ _]alloc|cannot allocate memory"
)


@dataclass(frozen=True)
class Outputs:
    """The outputs of the graph for a batch.

    Attributes:
        probability: float32 [N, 2], in the card's class order.
        heatmap: float32 [N, h, w], evidence for `generated` in log-odds; the sigmoid of the mean of
            a heatmap is P(generated).
    """

    probability: npt.NDArray[np.float32]
    heatmap: npt.NDArray[np.float32]


class Backend(Protocol):
    """A model that is loaded on a device.

    A backend that infers while the host prepares the next batch is also `Asynchronous`.

    Attributes:
        card: of the model.
        description: backend, version and device in use, for people.
    """

    card: ModelCard
    description: str

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run one batch; several threads may call it.

        Args:
            images: uint8 [N, size, size, 3], RGB, stacked outputs of `preprocess`.

        Raises:
            DeviceMemoryError: the batch does not fit the device's memory; a smaller one may.
            BackendError: inference failed; the message quotes the backend.
        """

    def close(self) -> None:
        """Free the model."""


class Pending(Protocol):
    """A submitted batch."""

    def done(self) -> bool:
        """Return whether `collect` returns or raises without waiting."""

    def collect(self) -> Outputs:
        """Wait for the batch and return its outputs, as `Backend.infer` does.

        Raises:
            BackendError: inference failed, or the model was closed; never `DeviceMemoryError`,
                because `submit` allocates the memory.
        """


@runtime_checkable
class Asynchronous(Protocol):
    """The methods of a backend that infers while the host does other work.

    Attributes:
        lanes: batches to keep submitted, so that the device never waits for the host. When more are
            submitted, `submit` first waits for the oldest.
    """

    lanes: int

    def submit(self, images: npt.NDArray[np.uint8]) -> Pending:
        """Start one batch, and return when its images are copied.

        Args:
            images: see `Backend.infer`; may be overwritten after the call.

        Raises:
            DeviceMemoryError, BackendError: see `Backend.infer`. Earlier batches can still be
                collected.
        """


class Finished:
    """The outputs of a synchronous backend."""

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs

    def done(self) -> bool:
        return True

    def collect(self) -> Outputs:
        return self._outputs


def find_model(model: str | Path | None = None, device: str = "auto") -> Path:
    """Return the file of a model.

    Args:
        model: an ONNX file or engine of `ffd-export`; None for the embedded model.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; selects one of the embedded models.

    Raises:
        ModelError: the file is absent, or is not a model that runs.
    """
    path = Path(model) if model is not None else find_embedded(device)
    if path.is_dir():
        raise ModelError(f"model {path} is a folder: name a file, such as {path / 'best.onnx'}")
    if not path.is_file():
        raise ModelError(f"model {path}: no such file")
    if path.suffix in (".safetensors", ".pt", ".pth", ".ckpt"):
        raise ModelError(f"model {path} is a checkpoint: export it to ONNX with ffd-export {path}")
    return path


def open_backend(
    model: str | Path | None = None, backend: str = "auto", device: str = "auto"
) -> Backend:
    """Load a model.

    The embedded model runs as FP32 on a GPU. On a CPU it runs as INT8 if the card of the INT8 file
    shows that it is accurate enough (`embedded.explain_rejection`). Any other model runs unchanged.

    Args:
        model: an ONNX file or engine of `ffd-export`; None for the embedded model.
        backend: `auto` (the first backend that reads the file) or a key of `BACKENDS`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: the file is absent or was not written by ffd-export.
        BackendError: the requested backend or device does not start.
    """
    path = find_model(model, device)
    readers = find_readers(path.suffix)
    name = readers[0] if backend == "auto" else backend
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: use auto or one of {', '.join(BACKENDS)}")
    if name not in readers:
        does = f"{readers[0]} does" if len(readers) == 1 else f"{' and '.join(readers)} do"
        raise BackendError(f"--backend {name} does not read {path.name}: {does}")
    module = BACKENDS[name].load()
    opened: Backend = module.open_model(path, device)
    if model is None and device == "auto" and not getattr(opened, "on_cuda", False):
        # The GPU cannot be used, or the backend does not use it, so the model runs on the CPU.
        on_cpu = find_embedded("cpu")
        if on_cpu != path:
            opened.close()
            opened = module.open_model(on_cpu, "cpu")
    return opened


def read_card(
    path: Path, text: str | None, inputs: list[str], outputs: Collection[str]
) -> ModelCard:
    """Read the card of an ONNX file, and check that the graph agrees with it.

    Args:
        path: the file, for messages.
        text: the value of `CARD_KEY` in its metadata; None if absent.
        inputs: signatures, such as `image uint8[N,299,299,3]`, with N for a dynamic size.
        outputs: signatures, such as `probability float[N,2]`.

    Raises:
        CardError: the card is absent or invalid.
        ModelError: the inputs or outputs are not those of the graph contract.
    """
    if text is None:
        raise CardError(f"model {path} has no model card: it was not written by ffd-export")
    try:
        card = ModelCard.from_json(text)
    except CardError as error:
        raise CardError(f"model {path}: {error}") from None
    size = card.preprocess.size
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


def require_images(images: npt.NDArray[np.uint8], size: int) -> None:
    """Raise a BackendError unless images are uint8 [N, size, size, 3], and at least one."""
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or not len(images):
        raise BackendError(
            f"images must be uint8 [N, {size}, {size}, 3], at least one, not {images.dtype} "
            f"{list(images.shape)}"
        )


def infer_in_parts(
    run: Callable[[npt.NDArray[np.uint8]], Outputs], images: npt.NDArray[np.uint8], most: int
) -> Outputs:
    """Run a batch in parts of at most `most` images."""
    parts = [run(images[i : i + most]) for i in range(0, len(images), most)]
    if len(parts) == 1:
        return parts[0]
    return Outputs(
        np.concatenate([part.probability for part in parts]),
        np.concatenate([part.heatmap for part in parts]),
    )


def failure(message: str, said: str = "") -> BackendError:
    """Return the error for a failed inference; `DeviceMemoryError` if memory was exhausted.

    Args:
        message: of the returned error.
        said: the full text of the backend's error.
    """
    kind = DeviceMemoryError if re.search(OUT_OF_MEMORY, f"{message}\n{said}") else BackendError
    return kind(message)

"""A model repository for NVIDIA's Triton Inference Server.

Triton's documentation describes the layout ("Model Repository") and the fields of `config.pbtxt`
("Model Configuration", `model_config.proto`). This module writes the file without Triton's schema,
so that an export does not need Triton.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ffd_runtime.core.errors import OutputError
from ffd_runtime.model.backends.onnxruntime import cuda_options
from ffd_runtime.model.card import CARD_KEY, ModelCard

from .pbtxt import Message, Word, to_text
from .triton_readme import LABELS, write_readme

# Triton accepts any folder name, but the name is part of the addresses that clients request.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
VERSION = "1"
# Time that a request waits for others: short against the milliseconds that a client takes to
# prepare an image.
MAX_QUEUE_DELAY_MICROSECONDS = 1000
# Value of the backend's parameter `cudnn_conv_algo_search`.
HEURISTIC = "1"


@dataclass(frozen=True)
class Platform:
    """A backend of Triton.

    Attributes:
        file: default file name of the backend's models, in the folder of a version.
        backend: fields that select the backend.
        kind: where instances run. `KIND_AUTO` means on the GPUs, or on the CPU without GPUs.
        tuning: other fields of the backend.
        note: to the server's operator.
    """

    file: str
    backend: Message
    kind: str
    tuning: Message
    note: str


def _onnxruntime(card: ModelCard) -> Platform:
    """Run an ONNX with the onnxruntime backend, on the GPU or, if it is INT8, on the CPU."""
    on_gpu = card.precision != "int8"
    return Platform(
        file="model.onnx",
        backend=[("backend", "onnxruntime")],
        kind="KIND_AUTO" if on_gpu else "KIND_CPU",
        tuning=_accelerator(card.precision) if on_gpu else [],
        note=(
            "It runs on every GPU of the server, or on the CPU of a server without GPUs."
            if on_gpu
            else "It runs on the CPU: onnxruntime has no INT8 convolutions on CUDA. For a GPU, "
            "export with --fp16 or\nan engine."
        ),
    )


def _accelerator(precision: str) -> Message:
    """Return options of the CUDA provider. An instance on a CPU ignores them.

    The README of Triton's onnxruntime backend lists their names ("ONNX Runtime with CUDA Execution
    Provider optimization").
    """
    options = cuda_options(precision)
    parameters: Message = [
        ("parameters", [("key", key), ("value", str(options[key]))]) for key in sorted(options)
    ]
    cuda: Message = [("name", "cuda"), *parameters]
    # The backend resets the search to exhaustive for a model with any parameter, such as the card,
    # unless this parameter is set, too (`ModelState::LoadModel` in src/onnxruntime.cc).
    heuristic: Message = [("string_value", HEURISTIC)]
    return [
        ("optimization", [("execution_accelerators", [("gpu_execution_accelerator", cuda)])]),
        ("parameters", [("key", "cudnn_conv_algo_search"), ("value", heuristic)]),
    ]


def _tensorrt(_: ModelCard) -> Platform:
    """Run an engine with the TensorRT backend."""
    return Platform(
        file="model.plan",
        backend=[("platform", "tensorrt_plan"), ("backend", "tensorrt")],
        kind="KIND_GPU",
        tuning=[],
        note="An engine runs only with the version of TensorRT and the GPU that it was built for."
        "\nA version-compatible engine also needs "
        "`--backend-config=tensorrt,version-compatible=true`.",
    )


PLATFORMS: dict[str, Callable[[ModelCard], Platform]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
}


def triton_files(
    folder: Path,
    name: str,
    content: bytes,
    card: ModelCard,
    *,
    platform: str,
    heatmap: tuple[int, int],
    max_batch: int,
) -> dict[Path, bytes]:
    """Return the files of one model in a model repository: content by path.

    Args:
        folder: of the repository; all files are in `folder / name`.
        name: of the model in requests.
        content: an ONNX or a TensorRT engine.
        card: of the model. Clients read it from the parameter `ffd.card`.
        platform: `onnxruntime` for an ONNX, `tensorrt` for an engine.
        heatmap: height and width of the `heatmap` output, in cells.
        max_batch: largest batch, at least 1; for an engine, at most its profile's.

    Raises:
        OutputError: the name is invalid for a model in Triton.
        ValueError: the platform is unknown, or a size is not positive.
    """
    if not NAME.fullmatch(name):
        raise OutputError(
            f"{name!r} is an invalid name for a model in Triton: use letters, digits, '_', '-' and "
            "'.', and start with a letter, a digit or '_'"
        )
    if platform not in PLATFORMS:
        raise ValueError(f"unknown platform {platform!r}: use one of {', '.join(PLATFORMS)}")
    if min(*heatmap, max_batch) < 1:
        raise ValueError(f"heatmap {heatmap} and max_batch {max_batch} must be positive")
    chosen = PLATFORMS[platform](card)
    config = to_text(_config(name, card, chosen, heatmap, max_batch))
    readme = write_readme(name, card, chosen.note, heatmap, max_batch)
    home = folder / name
    return {
        home / "config.pbtxt": config.encode(),
        home / LABELS: "".join(f"{label}\n" for label in card.classes).encode(),
        home / "README.md": readme.encode(),
        home / VERSION / chosen.file: content,
    }


def _config(
    name: str, card: ModelCard, platform: Platform, heatmap: tuple[int, int], max_batch: int
) -> Message:
    """Return `config.pbtxt`. Shapes exclude the batch, which `max_batch_size` implies."""
    size = card.preprocess.size
    image: Message = [("data_type", Word("TYPE_UINT8")), ("dims", (size, size, 3))]
    # Half of the largest batch runs at once. A smaller batch waits for more requests.
    preferred = tuple(sorted({max(1, max_batch // 2), max_batch}))
    batching: Message = [
        ("preferred_batch_size", preferred),
        ("max_queue_delay_microseconds", MAX_QUEUE_DELAY_MICROSECONDS),
    ]
    return [
        ("name", name),
        *platform.backend,
        ("max_batch_size", max_batch),
        ("input", [("name", "image"), *image]),
        ("output", [*_output("probability", (len(card.classes),)), ("label_filename", LABELS)]),
        ("output", _output("heatmap", heatmap)),
        ("version_policy", [("latest", [("num_versions", 1)])]),
        ("instance_group", [("count", 1), ("kind", Word(platform.kind))]),
        ("dynamic_batching", batching),
        *platform.tuning,
        *(("model_warmup", _warmup(batch, image)) for batch in sorted({1, max_batch})),
        ("parameters", [("key", CARD_KEY), ("value", [("string_value", card.to_json())])]),
    ]


def _output(name: str, dims: tuple[int, ...]) -> Message:
    return [("name", name), ("data_type", Word("TYPE_FP32")), ("dims", dims)]


def _warmup(batch: int, image: Message) -> Message:
    """Return a batch of black images to infer before the server reports the model as ready."""
    black: Message = [*image, ("zero_data", Word("true"))]
    return [
        ("name", f"batch of {batch}"),
        ("batch_size", batch),
        ("inputs", [("key", "image"), ("value", black)]),
    ]

"""A model repository for NVIDIA's Triton Inference Server.

The layout is that of Triton's documentation, "Model Repository"; the fields of `config.pbtxt` are
those of `model_config.proto`, which "Model Configuration" explains. The file is written by hand, as
whoever exports has no Triton.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TypeAlias

from ffd_runtime.core.errors import OutputError
from ffd_runtime.core.text import printable
from ffd_runtime.model.backends.onnxruntime import cuda_options
from ffd_runtime.model.card import CARD_KEY, ModelCard, PreprocessSpec

# Triton takes any folder's name, but the name also stands in the addresses that clients ask.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
VERSION = "1"
LABELS = "labels.txt"
# Microseconds for which a request waits for others: little beside the milliseconds that a client
# takes to prepare an image.
QUEUE_DELAY = 1000
# How the backend's parameter `cudnn_conv_algo_search` calls it.
HEURISTIC = "1"


@dataclass(frozen=True)
class Word:
    """What stands in text format without quotes: a value of an enum, or `true`."""

    text: str


Value: TypeAlias = "str | int | Word | tuple[int, ...] | Message"
# Fields in order; a name may repeat, as a repeated field's does.
Message: TypeAlias = list[tuple[str, "Value"]]


@dataclass(frozen=True)
class Platform:
    """What Triton runs a model with.

    Attributes:
        file: the model's name inside its version's folder, the backend's default.
        backend: fields that choose the backend.
        kind: where instances run; with `KIND_AUTO`, on the GPUs, or without any on the CPU.
        tuning: fields of the backend's own.
        note: for who runs the server.
    """

    file: str
    backend: Message
    kind: str
    tuning: Message
    note: str


def _onnxruntime(card: ModelCard) -> Platform:
    """An ONNX, as the backend onnxruntime runs it on the GPU; INT8 also on the CPU."""
    on_gpu = card.precision != "int8"
    return Platform(
        file="model.onnx",
        backend=[("backend", "onnxruntime")],
        kind="KIND_AUTO" if on_gpu else "KIND_CPU",
        tuning=_accelerator(card.precision) if on_gpu else [],
        note=(
            "It runs on every GPU of the server, or on the CPU where there is none."
            if on_gpu
            else "It runs on the CPU: onnxruntime has no INT8 convolutions on CUDA. For a GPU, "
            "export with --fp16 or\nan engine."
        ),
    )


def _accelerator(precision: str) -> Message:
    """Options of CUDA; an instance on a CPU does not read them.

    The names are those of "ONNX Runtime with CUDA Execution Provider optimization" in the README of
    Triton's onnxruntime backend.
    """
    options = cuda_options(precision)
    parameters: Message = [
        ("parameters", [("key", key), ("value", str(options[key]))]) for key in sorted(options)
    ]
    cuda: Message = [("name", "cuda"), *parameters]
    # A model that has any parameter of its own, as ours has its card, gets an exhaustive search
    # again unless this parameter says otherwise (`ModelState::LoadModel` in src/onnxruntime.cc).
    heuristic: Message = [("string_value", HEURISTIC)]
    return [
        ("optimization", [("execution_accelerators", [("gpu_execution_accelerator", cuda)])]),
        ("parameters", [("key", "cudnn_conv_algo_search"), ("value", heuristic)]),
    ]


def _tensorrt(_: ModelCard) -> Platform:
    """An engine."""
    return Platform(
        file="model.plan",
        backend=[("platform", "tensorrt_plan"), ("backend", "tensorrt")],
        kind="KIND_GPU",
        tuning=[],
        note="An engine runs only where the server's TensorRT and GPU are those that it was built "
        "for;\none built as version-compatible also needs "
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
    """The files of one model in a model repository; `write_files` writes them.

    Args:
        folder: the repository; everything is inside `folder / name`.
        name: what clients call the model.
        content: an ONNX, or a TensorRT engine.
        card: of the model; the server tells it to clients as the parameter `ffd.card`.
        platform: a key of `PLATFORMS`: `onnxruntime` for an ONNX, `tensorrt` for an engine.
        heatmap: height and width of the `heatmap` output, in cells.
        max_batch: most images in a batch, 1 or more; for an engine, at most its profile's.

    Returns:
        Content by path.

    Raises:
        OutputError: a model cannot have this name.
        ValueError: the platform is unknown, or a size is not positive.
    """
    if not NAME.fullmatch(name):
        raise OutputError(
            f"a model in Triton cannot be called {name!r}: use letters, digits, '_', '-' and '.', "
            "with a letter, a digit or '_' first"
        )
    if platform not in PLATFORMS:
        raise ValueError(f"unknown platform {platform!r}: use one of {', '.join(PLATFORMS)}")
    if min(*heatmap, max_batch) < 1:
        raise ValueError(f"heatmap {heatmap} and max_batch {max_batch} must be positive")
    chosen = PLATFORMS[platform](card)
    config = to_text(_config(name, card, chosen, heatmap, max_batch))
    readme = _readme(name, card, chosen, heatmap, max_batch)
    home = folder / name
    return {
        home / "config.pbtxt": config.encode(),
        home / LABELS: "".join(f"{label}\n" for label in card.classes).encode(),
        home / "README.md": readme.encode(),
        home / VERSION / chosen.file: content,
    }


def to_text(message: Message, indent: str = "") -> str:
    """A message in protobuf's text format (protobuf.dev, "Text Format Language Specification").

    Raises:
        ValueError: a text has a lone surrogate, which a protobuf string cannot hold.
    """
    return "".join(_field(name, value, indent) for name, value in message)


def _field(name: str, value: Value, indent: str) -> str:
    if isinstance(value, list):
        return f"{indent}{name} {{\n{to_text(value, indent + '  ')}{indent}}}\n"
    if isinstance(value, tuple):
        return f"{indent}{name}: [{', '.join(map(str, value))}]\n"
    if isinstance(value, Word):
        return f"{indent}{name}: {value.text}\n"
    return f"{indent}{name}: {quote(value) if isinstance(value, str) else value}\n"


def quote(text: str) -> str:
    r"""A string literal of text format, in ASCII.

    What is not printable ASCII is written as the octal escapes of its UTF-8, always three digits,
    so that a digit which follows cannot be taken for one of them.

    Raises:
        ValueError: the text has a lone surrogate.

    Example:
        >>> print(quote('say "é1"'))
        "say \"\303\2511\""
    """
    return '"' + "".join(map(_escape, text.encode())) + '"'


def _escape(byte: int) -> str:
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\{byte:03o}"


def _config(
    name: str, card: ModelCard, platform: Platform, heatmap: tuple[int, int], max_batch: int
) -> Message:
    """The whole of `config.pbtxt`; shapes are without the batch, which `max_batch_size` implies."""
    size = card.preprocess.size
    image: Message = [("data_type", Word("TYPE_UINT8")), ("dims", (size, size, 3))]
    # A batch of half the largest leaves at once; a smaller one waits for QUEUE_DELAY.
    preferred = tuple(sorted({max(1, max_batch // 2), max_batch}))
    batching: Message = [
        ("preferred_batch_size", preferred),
        ("max_queue_delay_microseconds", QUEUE_DELAY),
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
    """A batch of black images, inferred before the server calls the model ready."""
    black: Message = [*image, ("zero_data", Word("true"))]
    return [
        ("name", f"batch of {batch}"),
        ("batch_size", batch),
        ("inputs", [("key", "image"), ("value", black)]),
    ]


README = Template('''\
# $name

$model, $precision: tells faces made by StyleGAN-family generators from photographs. This folder is
one model of a Triton model repository; `config.pbtxt` describes it to the server.

## Serve

    tritonserver --model-repository=REPOSITORY

REPOSITORY is the absolute path of the folder that this one is in.
$note

| tensor | type, shape | meaning |
|---|---|---|
| in `image` | UINT8 [N, $size, $size, 3] | RGB, prepared as below; N at most $max_batch |
| out `probability` | FP32 [N, $count] | of the classes in `$labels`: $classes |
| out `heatmap` | FP32 [N, $height, $width] | where in the image the evidence is |

## Prepare an image

The network was trained on images prepared in exactly this way; anything else gives other answers.
`ffd_runtime`, a package of `ffd-edge`, does it with the numbers of the model card. The server
returns the card as the parameter `$key` of the model's configuration. By hand:

$preprocessing

What follows (scaling to the network's mean and deviation, the order of channels) the model does
itself.

## Ask

With `ffd-edge` installed, and `pip install "tritonclient[http]"`:

```python
"""Classify pictures: python client.py PICTURE..."""

import sys

import numpy as np
import tritonclient.http as triton

from ffd_runtime.model.card import CARD_KEY, ModelCard
from ffd_runtime.image.decode import decode, read_file
from ffd_runtime.image.preprocess import preprocess

MODEL = "$name"


def prepare(path, spec):
    """Uint8 [1, size, size, 3], RGB."""
    image = decode(read_file(path), at_least=spec.decode_side)
    return preprocess(image, spec)[np.newaxis]


def main():
    client = triton.InferenceServerClient("localhost:8000")
    parameters = client.get_model_config(MODEL)["parameters"]
    card = ModelCard.from_json(parameters[CARD_KEY]["string_value"])
    for path in sys.argv[1:]:
        pixels = prepare(path, card.preprocess)
        image = triton.InferInput("image", list(pixels.shape), "UINT8")
        image.set_data_from_numpy(pixels)
        answer = client.infer(MODEL, [image])
        score = float(answer.as_numpy("probability")[0, 0])
        print(path, round(score, 6), card.verdict(score))


if __name__ == "__main__":
    main()
```

The server gathers the requests of many clients into batches; one request may also hold up to
$max_batch images.

## Read the answer

The score is `probability[:, 0]`, P($first), after the model's own temperature. The verdict:

$verdicts

Where two answers are wanted, and no third: `$first` from $threshold on.

`heatmap` is evidence for `$first` in log-odds, cell by cell over the prepared image: positive for,
negative against. The sigmoid of a heatmap's mean is the score, to within the model's rounding.
''')


def _readme(
    name: str, card: ModelCard, platform: Platform, heatmap: tuple[int, int], max_batch: int
) -> str:
    """What a client's author needs to know."""
    return README.substitute(
        name=name,
        model=f"{_code(card.name)} ({_code(card.architecture)})",
        precision=card.precision.upper(),
        note=platform.note,
        size=card.preprocess.size,
        max_batch=max_batch,
        count=len(card.classes),
        labels=LABELS,
        classes=", ".join(f"`{label}`" for label in card.classes),
        height=heatmap[0],
        width=heatmap[1],
        key=CARD_KEY,
        preprocessing=_preprocessing(card.preprocess),
        first=card.classes[0],
        verdicts=_verdicts(card),
        threshold=card.threshold,
    )


def _preprocessing(spec: PreprocessSpec) -> str:
    """The steps of `ffd_runtime.image.preprocess`, with a card's numbers."""
    size, tiles = spec.size, spec.clahe_tiles
    return f"""\
1. Decode to 8 bits a channel, turned as EXIF says; transparent parts on white.
2. Cut out the largest square in the middle; or a face's box, made square and {spec.face_scale}
   times as large.
3. Resize to {size} x {size}: by area (`INTER_AREA`) down, linearly (`INTER_LINEAR_EXACT`) up.
4. In OpenCV's 8-bit LAB, on L alone: L' = (L - mean) * gain + {spec.target_mean}, where gain is
   {spec.target_deviation} / deviation but at most {spec.max_gain}, mean and deviation are those of
   L over the resized square, and L' is rounded (halves to even) and limited to 0..255; then CLAHE
   with clip limit {spec.clahe_clip} and {tiles} x {tiles} tiles.
5. Back to RGB: uint8, rows from the top, channels last."""


def _verdicts(card: ModelCard) -> str:
    """The rule of `ModelCard.verdict` in words, without the verdicts that no score gets."""
    low, high = card.unsure
    lines = []
    if low > 0:
        lines.append(f"- `groundtruth` below {low}")
    if high == 1:
        lines.append(f"- `unsure` from {low} on")
    else:
        if low < high:
            lines.append(f"- `unsure` from {low} on, below {high}")
        lines.append(f"- `generated` from {high} on")
    return "\n".join(lines)


def _code(text: str) -> str:
    """Any text as a code span of Markdown (CommonMark 6.1: a fence longer than what is inside)."""
    shown = printable(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {shown} {fence}" if longest else f"{fence}{shown}{fence}"

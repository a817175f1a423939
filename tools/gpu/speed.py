"""Measure images a second: of the network in several ways, and end to end over JPEGs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ffd_runtime.cli.bench_images import make_images
from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.pipeline import classify_items
from ffd_runtime.model.backends import EMBEDDED, Backend, open_backend
from ffd_runtime.model.backends.onnxruntime import TUNING, OnnxRuntime, open_model

from .check_models import LITE, RESNEXT, make_fp16, make_network, make_onnx, varied_images
from .claims import Setting

BATCHES = (1, 8, 32, 128)
SIDES = (256, 1024)
# Batch of the end-to-end rows, and images of a pass.
BATCH, PICTURES = 32, 512

Infer = Callable[[npt.NDArray[np.uint8]], object]


@dataclass(frozen=True)
class Rate:
    """A row of the performance table.

    Attributes:
        model: its name.
        way: backend and precision.
        pictures: `arrays` for only the network, otherwise a size such as `1024 px`.
        batch: number of images that are inferred together.
        images_per_second: None if the measurement failed.
        share: relative to the network's rate at that batch; None for this rate itself.
        note: why the measurement failed.
    """

    model: str
    way: str
    pictures: str
    batch: int
    images_per_second: float | None
    share: float | None = None
    note: str = ""


def measure(infer: Infer, images: npt.NDArray[np.uint8], seconds: float) -> float:
    """Measure images a second for a number of seconds, after three calls to warm up."""
    for _ in range(3):
        infer(images)
    calls = 0
    begin = time.perf_counter()
    while not calls or time.perf_counter() - begin < seconds:
        infer(images)
        calls += 1
    return calls * len(images) / (time.perf_counter() - begin)


def measure_batches(
    model: str, way: str, infer: Infer, setting: Setting, batches: Sequence[int] = BATCHES
) -> Iterator[Rate]:
    """Measure only the network, with copies to and from the device. A failure becomes a note."""
    for batch in batches:
        try:
            rate = measure(infer, varied_images(batch), setting.seconds)
            yield Rate(model, way, "arrays", batch, round(rate, 1))
        except Exception as error:  # a batch that is too large must not prevent the others
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            yield Rate(model, way, "arrays", batch, None, note=reason)


def settled(backend: Backend) -> Infer:
    """Return inference at the exact batch size, whatever was measured before."""

    def infer(images: npt.NDArray[np.uint8]) -> object:
        if isinstance(backend, OnnxRuntime):
            backend.settle(len(images))
        return backend.infer(images)

    return infer


def torch_ways(net: Any, device: str) -> Iterator[tuple[str, Infer]]:
    """Yield PyTorch's ways to run a network, from eager to compiled.

    Args:
        net: a `FaceNet` in evaluation mode.
        device: of PyTorch.
    """
    import torch

    kind = torch.device(device).type
    half = torch.float16 if kind == "cuda" else torch.bfloat16
    # Disable TF32. Shapes are constant.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True

    def run(model: Any, is_half: bool) -> Infer:
        def infer(images: npt.NDArray[np.uint8]) -> object:
            with torch.inference_mode(), torch.autocast(kind, half, enabled=is_half):
                logits = model(torch.from_numpy(images).to(device, non_blocking=True))
            return logits.float().softmax(1).cpu()

        return infer

    net = net.to(device)
    yield "PyTorch FP32, eager", run(net, False)
    net = net.to(memory_format=torch.channels_last)
    name = str(half).removeprefix("torch.")
    yield f"PyTorch {name} autocast, channels_last", run(net, True)
    # Compile for each batch size, as for an engine.
    compiled = torch.compile(net, dynamic=False)
    yield f"PyTorch {name} autocast, channels_last, torch.compile", run(compiled, True)


def measure_pictures(
    model: str, way: str, backend: Backend, alone: float, folder: Path, side: int
) -> Rate:
    """Measure the pipeline of `ffd-run`, end to end over JPEGs.

    Args:
        model: of the row.
        way: of the row.
        backend: to infer with.
        alone: images a second of only the network, at `BATCH`.
        folder: for the images.
        side: width and height of the images, in pixels.
    """
    folder = folder / f"pictures{side}"
    folder.mkdir(exist_ok=True)
    items = make_images(folder, 16, side)
    passes = list(chain.from_iterable(repeat(items, PICTURES // len(items))))
    workers = count_cores()
    if isinstance(backend, OnnxRuntime):
        backend.settle(BATCH)
    for _ in classify_items(items, backend, batch=BATCH, workers=workers):
        pass
    begin = time.perf_counter()
    rows = list(classify_items(passes, backend, batch=BATCH, workers=workers))
    rate = len(rows) / (time.perf_counter() - begin)
    share = round(rate / alone, 3) if alone else None
    return Rate(model, way, f"{side} px", BATCH, round(rate, 1), share)


def measure_model(name: str, network: str, fp32: Path, setting: Setting) -> Iterator[Rate]:
    """Measure a model in all ways.

    Args:
        name: of the rows.
        network: its name for `ffd-train --network`.
        fp32: its ONNX.
        setting: see `Setting`.
    """
    fp16 = make_fp16(setting.folder, fp32)
    for precision, path in (("FP32", fp32), ("FP16", fp16)):
        way = f"onnxruntime {precision}"
        opening: Callable[[], Backend] = partial(open_backend, path, "onnxruntime", setting.device)
        yield from measure_backend(name, way, opening, setting, SIDES)
        for tuning in ((TUNING[0],), (TUNING[1],), TUNING):
            tried = f"{way} + {' + '.join(tuning)}"
            tuned = partial(open_model, path, setting.device, tuning)
            yield from measure_backend(name, tried, tuned, setting)
    for way, infer in torch_ways(make_network(network), setting.device):
        yield from measure_batches(name, way, infer, setting)
    for kind in ("tensorrt", "rtx"):
        opening = partial(_open_engine, fp16, kind, setting)
        yield from measure_backend(name, f"{kind} FP16", opening, setting, SIDES)


def measure_backend(
    name: str,
    way: str,
    opening: Callable[[], Backend],
    setting: Setting,
    sides: Sequence[int] = (),
) -> Iterator[Rate]:
    """Measure only a backend, and end to end over images. A failure becomes a note.

    Args:
        name: of the rows' model.
        way: of the rows.
        opening: opens the backend.
        setting: see `Setting`.
        sides: of the images, in pixels; none to measure only the backend.
    """
    pictures = "arrays"
    try:
        with closing(opening()) as backend:
            rates = list(measure_batches(name, way, settled(backend), setting))
            yield from rates
            alone = next((r.images_per_second for r in rates if r.batch == BATCH), None) or 0.0
            for side in sides:
                pictures = f"{side} px"
                yield measure_pictures(name, way, backend, alone, setting.folder, side)
    except Exception as error:  # a missing backend must not prevent other ways
        yield Rate(name, way, pictures, BATCH, None, note=" ".join(str(error).split()))


def _open_engine(fp16: Path, kind: str, setting: Setting) -> Backend:
    from .engines import build_engine

    engine = build_engine(setting.folder, fp16, kind, max(BATCHES))
    return open_backend(engine, "tensorrt", setting.device)


def measure_all(setting: Setting) -> Iterator[Rate]:
    """Yield all rows of the performance table."""
    yield from measure_model("embedded", LITE, EMBEDDED, setting)
    yield from measure_model(RESNEXT, RESNEXT, make_onnx(setting.folder, RESNEXT), setting)

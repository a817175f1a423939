"""Checks of onnxruntime's CUDA provider."""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ffd_runtime.model.backends import EMBEDDED, Backend, open_backend
from ffd_runtime.model.backends.onnxruntime import OnnxRuntime, choose_providers
from ffd_runtime.model.devices import PinnedMemory

from .check_models import RESNEXT, make_fp16, make_onnx, varied_images
from .claims import Setting, Unmet, require
from .speed import measure, settled


def _fp16(setting: Setting) -> Path:
    return make_fp16(setting.folder, EMBEDDED)


def start(setting: Setting) -> str:
    """Run FP32 and FP16 with `--device auto`, which must choose CUDA."""
    descriptions = []
    for path in (EMBEDDED, _fp16(setting)):
        with closing(open_backend(path, "onnxruntime", "auto")) as backend:
            descriptions.append(backend.description)
            if not isinstance(backend, OnnxRuntime) or not backend.on_cuda:
                raise Unmet(backend.description)
    return descriptions[0]


def place(setting: Setting) -> str:
    """Profile a run, in which no node may be on the CPU."""
    import onnxruntime as ort

    kinds = set()
    for path in (EMBEDDED, _fp16(setting)):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(setting.folder / "profile")
        providers = choose_providers(path, setting.device)
        session = ort.InferenceSession(str(path), options, providers=providers)
        session.run(None, {"image": varied_images(2)})
        kinds |= find_nodes(json.loads(Path(session.end_profiling()).read_text()))
    elsewhere = sorted(
        operator
        for operator, provider in kinds
        if provider != "CUDAExecutionProvider" or operator.startswith("Memcpy")
    )
    return require(
        not elsewhere, f"{len(kinds)} kinds of nodes; not on CUDA: {elsewhere or 'none'}"
    )


def find_nodes(events: list[dict[str, object]]) -> set[tuple[str, str]]:
    """Return operators and providers of the nodes in a profile of onnxruntime."""
    found = set()
    for event in events:
        facts = event.get("args")
        if event.get("cat") == "Node" and isinstance(facts, dict) and facts.get("provider"):
            found.add((str(facts.get("op_name")), str(facts["provider"])))
    return found


def match_fp32(setting: Setting) -> str:
    """Compare FP32 on the device with FP32 on the CPU."""
    return compare(EMBEDDED, setting, 1e-4)


def match_fp16(setting: Setting) -> str:
    """Compare FP16 on the device with FP32 on the CPU."""
    return compare(_fp16(setting), setting, 1e-2)


def compare(path: Path, setting: Setting, limit: float, backend: str = "auto") -> str:
    """Compare probabilities with those of the embedded model on the CPU.

    Raises:
        Unmet: the largest difference exceeds the limit.
    """
    images = varied_images(64)
    with closing(open_backend(EMBEDDED, "onnxruntime", "cpu")) as reference:
        expected = reference.infer(images).probability
    with closing(open_backend(path, backend, setting.device)) as opened:
        worst = float(np.abs(opened.infer(images).probability - expected).max())
    return require(worst <= limit, f"largest difference {worst:.1e}, limit {limit:.0e}")


def compare_speeds(setting: Setting) -> str:
    """Compare the speed of FP16 and FP32. FP16 is only faster on tensor cores."""
    fp32 = make_onnx(setting.folder, RESNEXT)
    rates = []
    for path in (fp32, make_fp16(setting.folder, fp32)):
        with closing(open_backend(path, "onnxruntime", setting.device)) as backend:
            rates.append(measure(settled(backend), varied_images(32), setting.seconds))
    observed = f"{RESNEXT}, batch 32: FP32 {rates[0]:.0f}, FP16 {rates[1]:.0f} images/s"
    return require(rates[1] > rates[0], observed)


def vary_batches(setting: Setting) -> str:
    """Compare the speed of batches of 16 and 15 in turn with that of batches of 16."""
    images = varied_images(16)
    turn = [0]

    def alternate(given: npt.NDArray[np.uint8]) -> object:
        turn[0] ^= 1
        return backend.infer(given[turn[0] :])

    with closing(open_backend(_fp16(setting), "onnxruntime", setting.device)) as backend:
        steady = measure(settled(backend), images, setting.seconds)
        varied = measure(alternate, images, setting.seconds)
    observed = (
        f"{steady:.0f} images/s in batches of 16, {varied:.0f} in batches of 16 and 15 in turn"
    )
    # Other load may cost a fifth. Preparing the convolutions again would cost far more.
    return require(varied > 0.8 * steady, observed)


def mix_batches(setting: Setting) -> str:
    """Infer batches of many sizes from two threads; each image must get its own outputs."""
    with closing(open_backend(EMBEDDED, "onnxruntime", setting.device)) as backend:
        return mix(backend, (1, 2, 3, 5, 16, 17, 31, 33), 1e-4)


def mix(backend: Backend, counts: tuple[int, ...], limit: float, threads: int = 2) -> str:
    """Compare batches of many sizes, from several threads, with single images.

    Args:
        backend: to infer with.
        counts: sizes of the batches.
        limit: largest difference of a probability.
        threads: number of threads that infer concurrently.

    Raises:
        Unmet: an image got other outputs.
    """
    images = varied_images(max(counts) + threads, backend.card.preprocess.size)
    expected = np.concatenate(
        [backend.infer(images[i : i + 1]).probability for i in range(len(images))]
    )
    differences: list[float] = []

    def work(first: int) -> None:
        for count in counts:
            given: npt.NDArray[np.uint8] = images[first : first + count]
            outputs = backend.infer(given).probability
            differences.append(float(np.abs(outputs - expected[first : first + count]).max()))

    run_together([lambda first=first: work(first) for first in range(threads)])  # type: ignore[misc]
    done = f"{len(differences)} of {threads * len(counts)} batches"
    # Unlike Python's max, NumPy's passes a NaN on.
    worst = np.max(differences, initial=0)
    complete = len(differences) == threads * len(counts)
    return require(complete and worst <= limit, f"{done}, largest difference {worst:.1e}")


def run_together(works: list[Callable[[], None]]) -> None:
    """Run each function in its own thread, and wait for all."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def refuse_int8(setting: Setting) -> str:
    """Open a model with an INT8 card, which must run on the CPU."""
    from ffd_export.onnx_file import read_onnx, to_bytes

    graph, card = read_onnx(EMBEDDED)
    path = setting.folder / "embedded.int8.onnx"
    path.write_bytes(to_bytes(graph, card.replace(precision="int8")))
    with closing(open_backend(path, "onnxruntime", "auto")) as backend:
        return require("not the GPU" in backend.description, backend.description)


def free_elsewhere(setting: Setting) -> str:
    """Free page-locked memory in a thread without a CUDA context."""
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    memory = PinnedMemory(setting.index, 1 << 20)
    address = memory.address

    def ask() -> int:
        # 2 is CU_POINTER_ATTRIBUTE_MEMORY_TYPE in NVIDIA's cuda.h. For an unknown address the
        # result is CUDA_ERROR_INVALID_VALUE, 1.
        kind = ctypes.c_uint(0)
        return int(driver.cuPointerGetAttribute(ctypes.byref(kind), 2, ctypes.c_uint64(address)))

    before = ask()
    run_together([memory.close])
    return require(
        before == 0 and ask() == 1, f"CUDA error {before} before, {ask()} after; expected 0 and 1"
    )

"""The probes of ffd-doctor, each of which runs in its own process.

Importing this module loads neither NumPy nor OpenCV.
"""

from __future__ import annotations

import ctypes
import json
import logging
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from ..core.errors import BackendError, DeviceError
from ..core.install_hint import install_hint
from ..model.backend_registry import BACKENDS, Facts, find_extra, find_readers
from ..model.devices import count_gpus, describe_gpu, load_driver, start_driver
from .probe_process import RESULT_PREFIX


def main() -> None:
    """Run the probe named by the command line, and print its result for `run_probe`."""
    name, *arguments = sys.argv[1:]
    log = _RecordingHandler()
    logging.getLogger().addHandler(log)
    facts: Facts
    try:
        facts = {"outcome": "started", **PROBES[name](*arguments)}
    except ModuleNotFoundError as error:
        facts = _absent(error)
    except DeviceError as error:
        facts = {"outcome": "refused", "reason": str(error), "do": None}
    except Exception as error:  # a broken library may raise anything
        if isinstance(error.__context__, ModuleNotFoundError):
            # The backend has its own message for a library that is not installed.
            facts = _absent(error.__context__)
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
            facts = {"outcome": "failed", "reason": reason}
    facts["said"] = log.messages
    # On a separate line, because a library may print without a line break.
    print(f"\n{RESULT_PREFIX}{json.dumps(facts)}", flush=True)


class _RecordingHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(" ".join(record.getMessage().split()))


def _absent(error: ModuleNotFoundError) -> Facts:
    extra = find_extra((error.name or "").split(".")[0])
    do = install_hint(extra) if extra else install_hint(reinstall=True)
    return {"outcome": "absent", "reason": f"{error.name} is not installed", "do": do}


def probe_gpus() -> Facts:
    """Return what the driver reports; `reason` and `error` if it is installed but does not work."""
    cuda = load_driver()
    if cuda is None:
        return {"driver": None, "cuda": None, "devices": []}
    number = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    facts: Facts = {
        "driver": _driver_version("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"),
        # 13000 is CUDA 13.0.
        "cuda": f"{number.value // 1000}.{number.value % 1000 // 10}",
        "devices": [],
    }
    code, text = start_driver(cuda)
    if code:
        return {**facts, "reason": text, "error": code}
    facts["devices"] = [_describe_gpu(cuda, index) for index in range(count_gpus())]
    return facts


def _describe_gpu(cuda: Any, index: int) -> Facts:
    gpu = describe_gpu(index)
    device, size = ctypes.c_int(0), ctypes.c_size_t(0)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return {
        "name": gpu.name,
        "compute_capability": gpu.compute_capability,
        "memory_bytes": size.value,
    }


def _driver_version(library: str) -> str | None:
    """Return a version such as `580.65.06`; None without NVML, as on older Jetsons."""
    try:
        nvml: Any = ctypes.CDLL(library)
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode(errors="replace")
    except (OSError, AttributeError):
        pass
    return None


def _probe_opencv() -> Facts:
    import cv2
    import numpy as np

    from ..image.decode import decode

    grey = np.full((32, 32, 3), 128, np.uint8)

    def reads(ending: str) -> bool:
        # Decode a file of the format: the list of the build may be wrong.
        try:
            written, data = cv2.imencode(ending, grey)
            return written and decode(data.tobytes()).shape == grey.shape
        except Exception:  # OpenCV raises for a codec that is not built in
            return False

    built_in = re.findall(r"^\s*(\w+):\s+YES", cv2.getBuildInformation(), re.MULTILINE)
    formats = ("jpg", "png", "webp", "avif", "gif", "tiff", "bmp")
    return {
        "version": cv2.__version__,
        "numpy": np.__version__,
        "formats": {name: reads(f".{name}") for name in formats},
        "ffmpeg": "FFMPEG" in built_in,
        "gstreamer": "GStreamer" in built_in,
        "face_detector": hasattr(cv2, "FaceDetectorYN"),
    }


def _probe_library(name: str) -> Facts:
    """Run the probe of the backend that imports the library."""
    owner = next(spec for spec in BACKENDS.values() if name in spec.extras)
    facts: Facts = owner.load().probe(name)
    return facts


def _probe_model() -> Facts:
    from ..core.file_hash import hash_file
    from ..model.backends import find_embedded

    path = find_embedded()
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": hash_file(path),
        "backends": find_readers(path.suffix),
    }


def _start(backend: str, device: str) -> Facts:
    """Open the embedded model and classify an image."""
    begin = time.perf_counter()
    from ..model.backends import EMBEDDED, open_backend

    # To compare devices, all but `auto` use the same FP32 file.
    model = open_backend(None if backend == "auto" else EMBEDDED, backend, device)
    opened = time.perf_counter()
    from ..image.decode import decode
    from ..image.preprocess import preprocess

    image = preprocess(decode(make_test_image()), model.card.preprocess)
    ready = time.perf_counter()
    outputs = model.infer(image[None])
    ran = time.perf_counter()
    score = float(outputs.probability[0, 0])
    if not 0 <= score <= 1:
        raise BackendError(f"the model returned {score} instead of a probability")
    card = model.card
    return {
        "description": model.description,
        "model": f"{card.name} ({card.architecture}, {card.precision})",
        "open_ms": round(1000 * (opened - begin), 1),
        "first_ms": round(1000 * (ran - ready), 1),
        "score": round(score, 6),
        "log_odds": round(float(outputs.heatmap[0].mean()), 4),
    }


def make_test_image() -> bytes:
    """Return a PNG that is the same on every machine: integer arithmetic and a lossless codec."""
    import cv2
    import numpy as np

    y, x = np.mgrid[:320, :320]
    disc = ((x - 160) ** 2 + (y - 150) ** 2 < 110**2) * 60
    ripple = (x * y // 64) % 23
    image = np.stack([60 + x // 4 + ripple, 50 + y // 4 + disc, 70 + disc + ripple], axis=-1)
    return cv2.imencode(".png", image.astype(np.uint8))[1].tobytes()


PROBES: dict[str, Callable[..., Facts]] = {
    "gpu": probe_gpus,
    "opencv": _probe_opencv,
    "library": _probe_library,
    "model": _probe_model,
    "start": _start,
}

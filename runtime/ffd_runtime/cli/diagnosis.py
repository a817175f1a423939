"""What this machine has, and which backends really start on it.

Whatever may crash, hang or be half installed (a driver, a library, a backend) is asked in a
process of its own. Importing this module loads neither NumPy nor OpenCV, so that it can speak of a
machine where these are what is broken.
"""

from __future__ import annotations

import ctypes
import json
import logging
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from .. import __version__
from ..core.errors import BackendError, DeviceError
from ..core.install_hint import install_hint
from ..core.machine import FAMILIES, count_pci_gpus, describe_cpu, describe_memory, packages
from ..model.backend_registry import BACKENDS, Facts, find_owner, find_readers
from ..model.devices import count_gpus, describe_gpu

Traps = Iterator[tuple[str, str]]  # what is wrong, and what to do

# Seconds after which a question counts as hanging: a small board needs some for its first start.
PATIENCE = 120.0
# Of these, the first four are in order: it answered; it was imported, and there is no GPU to start
# it on; it is not installed; it is not made for that device.
OUTCOMES = ("started", "loaded", "absent", "refused", "failed", "crashed", "timeout")
HARMLESS = OUTCOMES[:4]
# How far apart the same picture's log-odds may be on two backends, as a part of their size (at
# least 1): scores near 0 and 1 would hide any difference. FP16 moves them by less.
TOLERANCE = 0.1

ADVICE = {
    r"lib(GL|EGL|gthread|glib|SM|Xext)[-.\w]*: cannot open": (
        "install what OpenCV's windows need (on Debian: apt install libgl1 libglib2.0-0), or "
        "replace opencv-python by opencv-python-headless"
    ),
    r"numpy\.?_?core\.multiarray|_ARRAY_API|compiled using NumPy|numpy\.dtype size changed": (
        "NumPy and a package that was compiled for another NumPy do not fit together: upgrade "
        "OpenCV and onnxruntime, or pip install 'numpy<2'"
    ),
}


def examine(tell: Callable[[str], None] = lambda _: None) -> Facts:
    """All that `ffd-doctor` reports, as JSON types; docs/bench.md describes the fields.

    Args:
        tell: is told what is being looked at.
    """
    tell("versions, processor, memory")
    report: Facts = {
        "ffd": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "os": platform.platform(),
        "packages": packages(),
        "cpu": describe_cpu(),
        "memory": describe_memory(),
    }
    for question in ("gpu", "opencv"):
        tell(question)
        report[question] = ask(question)
    report["gpu"]["pci"] = count_pci_gpus()
    portable, engines = list_libraries()
    for library in portable:
        tell(library)
        report[library] = ask("library", library)
    tell("model")
    report["model"] = ask("model")
    report["engines"] = {}
    for library in engines:
        tell(library)
        report["engines"][library] = ask("library", library)
    report["backends"] = list(_start_backends(report, tell))
    default = report["backends"][0]
    report["ok"] = default["outcome"] == "started"
    report["warnings"] = list(find_traps(report))
    return report


def list_libraries() -> tuple[list[str], list[str]]:
    """Libraries of the backends: those that run the embedded model, and those that run engines."""
    portable = find_readers(".onnx")
    names: tuple[list[str], list[str]] = ([], [])
    for spec in BACKENDS.values():
        names[spec.name not in portable].extend(spec.extras)
    return names


def _start_backends(report: Facts, tell: Callable[[str], None]) -> Iterator[Facts]:
    """What `auto` gives, then each backend that reads the embedded model on each device.

    TensorRT does not: its engines are built on the machine, so only its modules can be tried.
    """
    names = report["model"].get("backends", ["onnxruntime"])
    devices = ("cpu", "cuda") if report["gpu"].get("devices") else ("cpu",)
    pairs = [(name, device) for name in names for device in devices]
    for name, device in [("auto", "auto"), *pairs]:
        tell(f"starting {name} on {device}")
        yield {"backend": name, "device": device, **ask("start", name, device)}


# Questions, asked in a process of their own.


def ask(question: str, *arguments: str, seconds: float = PATIENCE) -> Facts:
    """Ask one of `QUESTIONS` in a fresh process, which may crash or hang.

    Returns:
        `outcome` (one of `OUTCOMES`), the facts where it started or was loaded, else `reason` and
        `do`; `said`: warnings that were logged.
    """
    code = "from ffd_runtime.cli.diagnosis import answer; answer()"
    command = [sys.executable, "-P", "-c", code, question, *arguments]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, and words of our own
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer within {seconds:g} s, so it was ended"
        return {"outcome": "timeout", "reason": reason, "do": None, "said": []}
    return _read_answer(done)


def _read_answer(done: subprocess.CompletedProcess[str]) -> Facts:
    facts: Facts = {"said": []}
    for line in done.stdout.splitlines():
        # What a dying process has left of a line is no answer.
        with suppress(ValueError):
            facts = json.loads(line.removeprefix(ANSWER)) if line.startswith(ANSWER) else facts
    if done.returncode or "outcome" not in facts:
        last = done.stderr.strip().splitlines()[-1:]
        reason = ": ".join([f"the process {_how_it_ended(done.returncode)}", *last])
        facts = {"outcome": "crashed", "reason": reason, "said": facts["said"], "do": None}
    if facts["outcome"] in ("failed", "crashed"):
        facts["do"] = find_advice(f"{facts['reason']}\n{done.stderr}")
    return facts


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:
        return f"died of signal {-code}"


def find_advice(text: str) -> str | None:
    """What to do about a known failure; None for an unknown one."""
    for pattern, advice in ADVICE.items():
        if re.search(pattern, text):
            return advice
    return None


ANSWER = "ffd-doctor answers "


def answer() -> None:
    """Answer the question on the command line, on standard output: the other side of `ask`."""
    question, *arguments = sys.argv[1:]
    said = _Remember()
    logging.getLogger().addHandler(said)
    facts: Facts
    try:
        facts = {"outcome": "started", **QUESTIONS[question](*arguments)}
    except ModuleNotFoundError as error:
        facts = _absent(error)
    except DeviceError as error:
        facts = {"outcome": "refused", "reason": str(error), "do": None}
    except Exception as error:  # what a broken library raises is anybody's guess
        if isinstance(error.__context__, ModuleNotFoundError):
            # A backend's own words for it; what is not installed is not broken.
            facts = _absent(error.__context__)
        else:
            facts = {"outcome": "failed", "reason": _one_line(error)}
    facts["said"] = said.messages
    # On a line of its own, whatever a library has printed.
    print(f"\n{ANSWER}{json.dumps(facts)}", flush=True)


class _Remember(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(" ".join(record.getMessage().split()))


def _absent(error: ModuleNotFoundError) -> Facts:
    extra = _extra_of((error.name or "").split(".")[0])
    do = install_hint(extra) if extra else install_hint(reinstall=True)
    return {"outcome": "absent", "reason": f"{error.name} is not installed", "do": do}


def _extra_of(library: str) -> str:
    owner = find_owner(library)
    return owner.extras[library] if owner else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def look_at_gpus() -> Facts:
    """The driver's own account; `reason` where it is installed but does not work."""
    windows = sys.platform == "win32"
    try:
        cuda: Any = ctypes.CDLL("nvcuda.dll" if windows else "libcuda.so.1")
    except OSError:
        return {"driver": None, "cuda": None, "devices": []}
    number = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(number))
    facts: Facts = {
        "driver": _driver_version("nvml.dll" if windows else "libnvidia-ml.so.1"),
        # 13000 is CUDA 13.0.
        "cuda": f"{number.value // 1000}.{number.value % 1000 // 10}",
        "devices": [],
    }
    failure = cuda.cuInit(0)
    if failure:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(failure, ctypes.byref(text))
        return {**facts, "reason": f"{(text.value or b'unknown').decode()} (error {failure})"}
    facts["devices"] = [_look_at_gpu(cuda, index) for index in range(count_gpus())]
    return facts


def _look_at_gpu(cuda: Any, index: int) -> Facts:
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
    """Such as `580.65.06`; None where NVML is not there, as on older Jetsons."""
    try:
        nvml: Any = ctypes.CDLL(library)
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode(errors="replace")
    except (OSError, AttributeError):
        pass
    return None


def _look_at_opencv() -> Facts:
    import cv2
    import numpy as np

    from ..image.decode import decode

    grey = np.full((32, 32, 3), 128, np.uint8)

    def reads(ending: str) -> bool:
        # Proved on a file of that format, not believed of the build's own list.
        try:
            written, data = cv2.imencode(ending, grey)
            return written and decode(data.tobytes()).shape == grey.shape
        except Exception:  # a codec that is not built in raises
            return False

    build = cv2.getBuildInformation()
    formats = ("jpg", "png", "webp", "avif", "gif", "tiff", "bmp")
    return {
        "version": cv2.__version__,
        "numpy": np.__version__,
        "formats": {name: reads(f".{name}") for name in formats},
        "ffmpeg": _is_built_in("FFMPEG", build),
        "gstreamer": _is_built_in("GStreamer", build),
        "face_detector": hasattr(cv2, "FaceDetectorYN"),
    }


def _is_built_in(library: str, build: str) -> bool:
    return re.search(rf"^\s*{library}:\s+YES", build, re.MULTILINE) is not None


def _look_at_library(name: str) -> Facts:
    """The account of the backend that imports the library."""
    owner = find_owner(name)
    assert owner, name
    facts: Facts = owner.load().probe(name)
    return facts


def _look_at_model() -> Facts:
    import hashlib

    from ..model.backends import find_embedded

    path = find_embedded()
    data = path.read_bytes()
    return {
        "path": str(path),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "backends": find_readers(path.suffix),
    }


def _start(backend: str, device: str) -> Facts:
    """Open the embedded model and run a picture through it."""
    begin = time.perf_counter()
    from ..model.backends import EMBEDDED, open_backend

    # Devices are compared on the same file: FP32, which each of them runs. `auto` takes its own.
    model = open_backend(None if backend == "auto" else EMBEDDED, backend, device)
    opened = time.perf_counter()
    from ..image.decode import decode
    from ..image.preprocess import preprocess

    image = preprocess(decode(make_picture()), model.card.preprocess)
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


def make_picture() -> bytes:
    """A PNG that is the same on every machine: whole numbers, and a codec without loss."""
    import cv2
    import numpy as np

    y, x = np.mgrid[:320, :320]
    disc = ((x - 160) ** 2 + (y - 150) ** 2 < 110**2) * 60
    ripple = (x * y // 64) % 23
    image = np.stack([60 + x // 4 + ripple, 50 + y // 4 + disc, 70 + disc + ripple], axis=-1)
    return cv2.imencode(".png", image.astype(np.uint8))[1].tobytes()


QUESTIONS: dict[str, Callable[..., Facts]] = {
    "gpu": look_at_gpus,
    "opencv": _look_at_opencv,
    "library": _look_at_library,
    "model": _look_at_model,
    "start": _start,
}


# What is wrong, and what to do.


def find_traps(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Warnings of a report, each `{"what", "do"}`."""
    for finder in (_default_traps, _package_traps, _opencv_traps, _gpu_traps, _cpu_traps):
        for what, do in finder(report):
            yield {"what": what, "do": do}
    for what, do in _start_traps(report):
        yield {"what": what, "do": do}


def _default_traps(report: Mapping[str, Any]) -> Traps:
    default = report["backends"][0]
    if default["outcome"] != "started":
        yield (
            f"the embedded model does not run: {default['reason']}",
            default["do"] or install_hint(reinstall=True),
        )
    for message in default["said"]:
        yield message, "do what it names, or give --device cpu to run without this warning"


def _package_traps(report: Mapping[str, Any]) -> Traps:
    for family, pattern in FAMILIES.items():
        names = [name for name in report["packages"] if re.fullmatch(pattern, name)]
        if len(names) > 1:
            both = " and ".join(names)
            yield (
                f"{both} are installed at once: they overwrite each other's {family} files",
                f"pip uninstall -y {' '.join(names)}, then install the one that you want",
            )
    engines = report["engines"]
    modules = [name for name in BACKENDS["tensorrt"].extras if name != "cuda"]
    installed = [name for name in modules if engines[name]["outcome"] != "absent"]
    if installed and engines["cuda"]["outcome"] == "absent":
        yield (
            f"{installed[0]} is installed, but not cuda-bindings, without which no engine runs",
            install_hint(_extra_of(installed[0])),
        )


def _opencv_traps(report: Mapping[str, Any]) -> Traps:
    opencv = report["opencv"]
    if opencv["outcome"] != "started":
        yield (
            f"OpenCV cannot be loaded: {opencv['reason']}",
            opencv["do"] or install_hint(reinstall=True),
        )
        return
    missing = [name for name, reads in opencv["formats"].items() if not reads]
    if missing:
        yield (
            f"this OpenCV does not read {', '.join(missing)}: such files become errors",
            "install another one: pip install --upgrade opencv-python",
        )


def _gpu_traps(report: Mapping[str, Any]) -> Traps:
    gpu, ort = report["gpu"], report["onnxruntime"]
    if gpu["outcome"] != "started":
        yield f"NVIDIA's driver cannot be asked: {gpu['reason']}", "reinstall the driver"
        return
    # A CUDA image on a machine without a GPU has the library too: no trap.
    if gpu.get("reason") and gpu["pci"]:
        yield (
            f"NVIDIA's driver is installed but does not start: {gpu['reason']}",
            "restart the machine after a driver update; in a container, give it the GPU "
            "(docker run --gpus all)",
        )
    if gpu["driver"] is None and gpu["cuda"] is None and gpu["pci"]:
        yield (
            "there is an NVIDIA GPU, but no driver that this process can see",
            "install NVIDIA's driver; in a container, give it the GPU (docker run --gpus all)",
        )
    wanted = ort.get("cuda")
    if gpu["devices"] and wanted and _major(gpu["cuda"]) < _major(wanted):
        yield (
            f"the driver offers CUDA {gpu['cuda']}, this onnxruntime is built for CUDA {wanted}",
            "install a newer driver of NVIDIA's, or an onnxruntime-gpu for the older CUDA",
        )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _cpu_traps(report: Mapping[str, Any]) -> Traps:
    cpu = report["cpu"]
    quota, usable = cpu["cores_quota"], cpu["cores_usable"]
    if quota is not None and quota < usable:
        yield (
            f"this container may use {quota:g} cores' time but is shown {usable} cores: threads "
            "for all of them slow each other down",
            "give it whole cores instead (docker run --cpuset-cpus, taskset)",
        )


def _start_traps(report: Mapping[str, Any]) -> Traps:
    """Backends that are installed and do not start, or answer something else than the CPU.

    A GPU that onnxruntime refuses is what the default has warned of already.
    """
    default, *backends = report["backends"]
    reference = next((b for b in backends if b["backend"] == "onnxruntime"), None)
    for started in backends:
        name = f"{started['backend']} on {started['device']}"
        if started["outcome"] not in HARMLESS:
            if started["reason"] == default.get("reason"):
                continue  # Said already.
            do = started["do"] or "use another backend until it is repaired"
            yield f"{name} does not start: {started['reason']}", do
        elif reference and _disagree(started, reference):
            yield (
                f"{name} gives the test picture log-odds of {started['log_odds']:.2f}, "
                f"onnxruntime on the CPU {reference['log_odds']:.2f}",
                "use onnxruntime on the CPU, and report this output",
            )
    yield from _engine_traps(report)


def _disagree(one: Facts, other: Facts) -> bool:
    if "log_odds" not in one or "log_odds" not in other:
        return False
    apart: float = abs(one["log_odds"] - other["log_odds"])
    return not apart <= TOLERANCE * max(1, abs(other["log_odds"]))


def _engine_traps(report: Mapping[str, Any]) -> Traps:
    for name, engine in report["engines"].items():
        if engine["outcome"] not in HARMLESS:
            do = engine["do"] or install_hint(_extra_of(name), reinstall=True)
            yield f"{name} is installed but does not start: {engine['reason']}", do

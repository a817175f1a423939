"""Examine this machine: its parts, the backends that start on it, and problems with advice.

Whatever may crash, hang or be incomplete (a driver, a library, a backend) is probed in its own
process. This module imports neither NumPy nor OpenCV, so that it works where they are broken.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import __version__
from ..core.install_hint import install_hint
from ..core.machine import FAMILIES, count_pci_gpus, describe_cpu, describe_memory, packages
from ..model.backend_registry import BACKENDS, Facts, find_extra, find_readers
from ..model.devices import INSTALL_BINDINGS, NO_GPU_CODES
from .probe_process import HARMLESS, run_probe

Problems = Iterator[tuple[str, str]]  # what is wrong, and what to do

# Maximum difference of two backends' log-odds for the same image, relative to their size (at least
# 1). Scores near 0 and 1 would hide a difference. FP16 changes log-odds by less.
MAX_LOG_ODDS_DIFFERENCE = 0.1
# The name of CUDA's error for a driver that is older than the libraries.
OLD_DRIVER = "cudaErrorInsufficientDriver"


def examine(on_step: Callable[[str], None] = lambda _: None) -> Facts:
    """Return the report of `ffd-doctor`, as JSON types; docs/bench.md describes the fields."""

    def probe(*arguments: str) -> Facts:
        on_step(arguments[-1])
        return run_probe(*arguments)

    on_step("versions, processor, memory")
    report: Facts = {
        "ffd": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "os": platform.platform(),
        "packages": packages(),
        "cpu": describe_cpu(),
        "memory": describe_memory(),
    }
    portable, engines = list_libraries()
    report["gpu"] = probe("gpu") | {"pci": count_pci_gpus()}
    report["opencv"] = probe("opencv")
    report |= {library: probe("library", library) for library in portable}
    report["model"] = probe("model")
    report["engines"] = {library: probe("library", library) for library in engines}
    report["backends"] = list(_start_backends(report, on_step))
    report["ok"] = report["backends"][0]["outcome"] == "started"
    report["warnings"] = list(find_warnings(report))
    return report


def list_libraries() -> tuple[list[str], list[str]]:
    """Return the libraries of backends that run the embedded model, and of those for engines."""
    portable = find_readers(".onnx")
    names: tuple[list[str], list[str]] = ([], [])
    for spec in BACKENDS.values():
        names[spec.name not in portable].extend(spec.extras)
    return names


def _start_backends(report: Facts, on_step: Callable[[str], None]) -> Iterator[Facts]:
    """Start `auto`, then each backend that reads the embedded model on each device.

    TensorRT reads only engines, which are built on the machine. Only its modules are probed.
    """
    names = report["model"].get("backends", ["onnxruntime"])
    devices = ("cpu", "cuda") if report["gpu"].get("devices") else ("cpu",)
    pairs = [(name, device) for name in names for device in devices]
    for name, device in [("auto", "auto"), *pairs]:
        on_step(f"starting {name} on {device}")
        yield {"backend": name, "device": device, **run_probe("start", name, device)}


def find_warnings(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the warnings for a report, each `{"what", "do"}`."""
    for find in (
        _default_problems,
        _package_problems,
        _opencv_problems,
        _gpu_problems,
        _cpu_problems,
        _start_problems,
        _engine_problems,
    ):
        for what, do in find(report):
            yield {"what": what, "do": do}


def _default_problems(report: Mapping[str, Any]) -> Problems:
    default = report["backends"][0]
    if default["outcome"] != "started":
        yield (
            f"the embedded model does not run: {default['reason']}",
            default["do"] or install_hint(reinstall=True),
        )
    for message in default["said"]:
        # _gpu_problems reports the driver.
        if (report["gpu"].get("reason") or "\n") not in message:
            yield message, "follow it, or give --device cpu to run without this warning"


def _package_problems(report: Mapping[str, Any]) -> Problems:
    for family, pattern in FAMILIES.items():
        names = [name for name in report["packages"] if re.fullmatch(pattern, name)]
        if len(names) > 1:
            both = " and ".join(names)
            yield (
                f"{both} are installed together: they overwrite each other's {family} files",
                f"pip uninstall -y {' '.join(names)}, then install the one you need",
            )
    engines = report["engines"]
    modules = [name for name in BACKENDS["tensorrt"].extras if name != "cuda"]
    installed = [name for name in modules if engines[name]["outcome"] != "absent"]
    if installed and engines["cuda"]["outcome"] == "absent":
        yield (
            f"{installed[0]} is installed, but no engine runs without cuda-bindings",
            INSTALL_BINDINGS,
        )


def _opencv_problems(report: Mapping[str, Any]) -> Problems:
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
            f"this OpenCV does not read {', '.join(missing)}: such files are errors",
            "pip install --upgrade opencv-python",
        )


def _gpu_problems(report: Mapping[str, Any]) -> Problems:
    gpu, ort = report["gpu"], report["onnxruntime"]
    if gpu["outcome"] != "started":
        yield f"NVIDIA's driver cannot be queried: {gpu['reason']}", "reinstall the driver"
        return
    # A container image with CUDA has the library even without a GPU, which is not a problem.
    if gpu.get("reason") and (gpu["pci"] or gpu["error"] not in NO_GPU_CODES):
        yield (
            f"NVIDIA's driver is installed but does not start: {gpu['reason']}",
            "restart the machine after a driver update; on a Jetson, add the user to the group "
            "video; in a container, give it the GPU (docker run --gpus all)",
        )
    if gpu["driver"] is None and gpu["cuda"] is None and gpu["pci"]:
        yield (
            "there is an NVIDIA GPU, but this process finds no driver",
            "install NVIDIA's driver; in a container, give it the GPU (docker run --gpus all)",
        )
    wanted = ort.get("cuda")
    if gpu["devices"] and wanted and _major(gpu["cuda"]) < _major(wanted):
        yield (
            f"the driver supports CUDA {gpu['cuda']}, but this onnxruntime needs CUDA {wanted}",
            "install a newer NVIDIA driver, or an onnxruntime-gpu for the older CUDA",
        )


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _cpu_problems(report: Mapping[str, Any]) -> Problems:
    cpu = report["cpu"]
    quota, usable = cpu["cores_quota"], cpu["cores_usable"]
    if quota is not None and quota < usable:
        yield (
            f"this container has the time of {quota:g} cores but sees {usable} cores: threads for "
            "all of them slow each other down",
            "limit it to whole cores instead (docker run --cpuset-cpus, taskset)",
        )


def _start_problems(report: Mapping[str, Any]) -> Problems:
    """Report backends that are installed but do not start, or differ from the CPU's result.

    The default backend already reports a GPU that onnxruntime refuses.
    """
    default, *backends = report["backends"]
    reference = next((b for b in backends if b["backend"] == "onnxruntime"), None)
    for started in backends:
        name = f"{started['backend']} on {started['device']}"
        if started["outcome"] not in HARMLESS:
            if started["reason"] == default.get("reason"):
                continue  # The default backend reported it.
            do = started["do"] or "use another backend until this one is repaired"
            yield f"{name} does not start: {started['reason']}", do
        elif reference and _disagree(started, reference):
            yield (
                f"{name} returns log-odds of {started['log_odds']:.2f} for the test image, "
                f"but onnxruntime on the CPU {reference['log_odds']:.2f}",
                "use onnxruntime on the CPU, and report this output",
            )


def _disagree(one: Facts, other: Facts) -> bool:
    if "log_odds" not in one or "log_odds" not in other:
        return False
    difference: float = abs(one["log_odds"] - other["log_odds"])
    return not difference <= MAX_LOG_ODDS_DIFFERENCE * max(1, abs(other["log_odds"]))


def _engine_problems(report: Mapping[str, Any]) -> Problems:
    for name, engine in report["engines"].items():
        if engine["outcome"] not in HARMLESS:
            do = engine["do"] or install_hint(find_extra(name), reinstall=True)
            if OLD_DRIVER in str(engine["reason"]):
                do = "install a newer NVIDIA driver, or the cuda-bindings for its version of CUDA"
            yield f"{name} is installed but does not start: {engine['reason']}", do

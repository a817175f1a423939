"""Examine this machine: its parts, and the backends that start on it.

Whatever may crash, hang or be incomplete (a driver, a library, a backend) is probed in its own
process. This module imports neither NumPy nor OpenCV, so that it works where they are broken.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator

from .. import __version__
from ..core.machine import count_pci_gpus, describe_cpu, describe_memory, packages
from ..model.backend_registry import BACKENDS, Facts, find_readers
from .diagnosis_warnings import find_warnings
from .probe_process import run_probe


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

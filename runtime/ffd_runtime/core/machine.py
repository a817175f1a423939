"""Facts about the machine, read from the system without importing any library."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from .cores import count_cores

# Distributions that affect how ffd runs. Those of one family install the same files.
FAMILIES = {
    "onnxruntime": r"onnxruntime(-gpu|-directml|-openvino|-qnn|-rocm)?",
    "OpenCV": r"opencv(-contrib)?-python(-headless)?",
}
PACKAGES = "|".join(
    (
        *FAMILIES.values(),
        r"numpy|openvino|torch|cuda-bindings|nvidia-cudnn-cu\d+|nvidia-cuda-runtime(-cu\d+)?",
        r"tensorrt(-lean|-rtx|-dispatch)?(-cu\d+)?",
    )
)
# Flags in /proc/cpuinfo, and their common names.
X86 = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
}
ARM = {"asimd": "NEON", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "BF16", "sve": "SVE"}


def packages() -> dict[str, str]:
    """Return the versions of installed distributions that affect ffd, by name."""
    found = {}
    for distribution in metadata.distributions():
        # The metadata of a damaged installation has no name.
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if re.fullmatch(PACKAGES, name):
            found[name] = distribution.version
    return dict(sorted(found.items()))


def describe_cpu() -> dict[str, Any]:
    """Return name, cores and features of the processor."""
    info = _read(Path("/proc/cpuinfo"))
    features = find_features(info)
    model = re.search(r"^model name\s*:\s*(.+)", info, re.MULTILINE)
    board = _read(Path("/proc/device-tree/model")).strip("\0\n ")
    return {
        # On ARM, cpuinfo often has no processor name, and the device tree names the board.
        "name": model[1].strip() if model else board or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores_present": os.cpu_count(),
        "cores_usable": count_cores(),
        "cores_quota": cgroup_cores(),
        "features": features,
        "int8": None if features is None else explain_int8(features),
    }


def find_features(info: str) -> list[str] | None:
    """Return the features that speed up inference, from `/proc/cpuinfo`; None if it lists none."""
    match = re.search(r"^(flags|Features)\s*:\s*(.*)", info, re.MULTILINE)
    if not match:
        return None
    words = set(match[2].split())
    return [name for word, name in (X86 if match[1] == "flags" else ARM).items() if word in words]


def explain_int8(features: Iterable[str]) -> str:
    """Return how fast a processor with these features runs an INT8 model, and why."""
    has = set(features)
    if "AMX INT8" in has:
        return "fast: AMX multiplies INT8 matrices in hardware"
    if has & {"AVX-VNNI", "AVX-512 VNNI"}:
        return "fast: VNNI sums four INT8 products in one instruction"
    if "i8mm" in has:
        return "fast: i8mm multiplies INT8 matrices in hardware"
    if "dotprod" in has:
        return "fast: dotprod sums four INT8 products in one instruction"
    if "AVX2" in has:
        return (
            "slower without VNNI: INT8 products are summed in 16 bits, which may overflow in "
            "models of older versions of ffd-export"
        )
    return "slow: no instructions for INT8 dot products; measure it against FP32"


def describe_memory() -> dict[str, Any]:
    """Return total and available memory, and the limit of the container, in bytes."""
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE))
    total = int(info["MemTotal"]) << 10 if "MemTotal" in info else _physical_memory()
    available = int(info["MemAvailable"]) << 10 if "MemAvailable" in info else None
    limit = cgroup_memory()
    # Without a limit, control groups of version 1 give a number near 2**63.
    if limit is not None and total is not None and limit >= total:
        limit = None
    return {"total_bytes": total, "available_bytes": available, "limit_bytes": limit}


def peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes; None where it is unknown."""
    # getrusage includes the memory of the parent process when it forked.
    if match := re.search(r"VmHWM:\s+(\d+) kB", _read(Path("/proc/self/status"))):
        return int(match[1]) << 10
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def cgroup_cores(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> float | None:
    """Return the quota of this process's control groups, in processors; None without one.

    `root` is where they are mounted; `own` is the text of `/proc/self/cgroup`, None to read it.
    """
    quotas = []
    for folder in _cgroups(root, own, "cpu"):
        text = _read(folder / "cpu.max") or " ".join(
            (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
        )
        match = re.fullmatch(r"(\d+)\s+(\d+)", text.strip())
        if match and int(match[2]):
            quotas.append(int(match[1]) / int(match[2]))
    return min(quotas, default=None)


def cgroup_memory(root: Path = Path("/sys/fs/cgroup"), own: str | None = None) -> int | None:
    """Return the memory limit of this process's control groups, in bytes; see `cgroup_cores`."""
    limits = []
    for folder in _cgroups(root, own, "memory"):
        text = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if text.strip().isdecimal():
            limits.append(int(text))
    return min(limits, default=None)


def _cgroups(root: Path, own: str | None, controller: str) -> Iterator[Path]:
    """Yield the folders of the control group and of its parents, for version 1 or 2."""
    for line in (_read(Path("/proc/self/cgroup")) if own is None else own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if number == "0" or controller in names:
            top = root if number == "0" else root / controller
            # In a container the path may not exist, but the mount point holds its limits.
            below = Path(path.strip("/"))
            yield from (top / part for part in (below, *below.parents) if ".." not in part.parts)


def count_pci_gpus() -> int:
    """Count NVIDIA's display controllers on the PCI bus; needs no driver."""
    return sum(
        _read(folder / "vendor").strip() == "0x10de" and _read(folder / "class").startswith("0x03")
        for folder in Path("/sys/bus/pci/devices").glob("*")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""

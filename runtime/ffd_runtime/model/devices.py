"""Devices: parse the requested one, and query NVIDIA's driver for GPUs."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from typing import Any

from ..core.errors import DeviceError, DeviceMemoryError


def parse_device(text: str) -> tuple[str, int]:
    """Parse `auto`, `cpu`, `cuda` or `cuda:N` into kind and index.

    Raises:
        DeviceError: the text has another form.
    """
    match = re.fullmatch(r"(auto|cpu|cuda)(?:(?<=cuda):(\d{1,3}))?", text)
    if not match:
        raise DeviceError(f"unknown device {text!r}: use auto, cpu, cuda or cuda:N")
    return match[1], int(match[2] or 0)


@dataclass(frozen=True)
class Gpu:
    """A GPU, as described by the driver; the compute capability is such as `8.9`."""

    name: str
    compute_capability: str


INSTALL_BINDINGS = (
    "pip install 'cuda-bindings>=13', or 'cuda-bindings>=12.9.1,<13' where CUDA is of version 12, "
    "as in JetPack 6"
)
# Error codes in NVIDIA's cuda.h with which nothing is wrong: no GPU; the toolkit's stub library.
NO_GPU_CODES = (100, 34)


def count_gpus() -> int:
    """Count the GPUs of NVIDIA's driver; needs no CUDA toolkit."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def describe_gpu(index: int) -> Gpu:
    """Return name and compute capability of a GPU.

    Raises:
        DeviceError: the driver has no such GPU.
    """
    driver = _driver()
    device = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), index) != 0:
        raise DeviceError(f"NVIDIA's driver offers no GPU {index} on this machine")
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    numbers = []
    # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in NVIDIA's cuda.h.
    for attribute in (75, 76):
        number = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(str(number.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(numbers))


def load_driver() -> Any:
    """Load NVIDIA's driver library; None if it is absent."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    return driver if hasattr(driver, "cuInit") else None


def start_driver(driver: Any) -> tuple[int, str]:
    """Initialise the driver; return CUDA's error code, 0 for none, and its text."""
    code: int = driver.cuInit(0)
    text = ctypes.c_char_p()
    if code:
        driver.cuGetErrorString(code, ctypes.byref(text))
    return code, f"{(text.value or b'unknown').decode(errors='replace')} (error {code})"


def explain_missing_gpu(otherwise: str) -> str:
    """Return that NVIDIA's driver does not start, with its error, or else the given text.

    A driver may be unable to start after an update or after the machine slept, or if the user may
    not open the GPU. Without a driver or without a GPU, nothing is wrong.
    """
    driver = load_driver()
    code, text = start_driver(driver) if driver else (0, "")
    if code and code not in NO_GPU_CODES:
        return f"NVIDIA's driver does not start: {text}"
    return otherwise


def _driver() -> Any:
    """Load and initialise NVIDIA's driver library; None if that fails."""
    driver = load_driver()
    return driver if driver and start_driver(driver)[0] == 0 else None


class PinnedMemory:
    """Page-locked memory of the host, which a GPU copies from and to directly.

    NVIDIA's driver allocates it, so no CUDA toolkit is needed. The size is in bytes.

    Raises:
        DeviceError: the driver cannot use the GPU.
        DeviceMemoryError: the memory cannot be allocated.
    """

    def __init__(self, index: int, size: int) -> None:
        self._driver = _driver()
        self._device = ctypes.c_int(0)
        self._context = ctypes.c_void_p()
        if (
            self._driver is None
            or self._driver.cuDeviceGet(ctypes.byref(self._device), index) != 0
            # CUDA's runtime, and so onnxruntime, uses the same context.
            or self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), self._device) != 0
        ):
            raise DeviceError(f"NVIDIA's driver cannot start GPU {index}")
        address = ctypes.c_void_p()
        self._driver.cuCtxPushCurrent_v2(self._context)
        # CU_MEMHOSTALLOC_PORTABLE in NVIDIA's cuda.h: page-locked for every context.
        error = self._driver.cuMemHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), 1)
        self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        self.address = address.value or 0
        if error or not self.address:
            self._driver.cuDevicePrimaryCtxRelease_v2(self._device)
            raise DeviceMemoryError(
                f"NVIDIA's driver cannot allocate {size} bytes of page-locked memory "
                f"(CUDA error {error})"
            )

    def close(self) -> None:
        """Free the memory, from any thread; a second call does nothing."""
        if self.address:
            # Without a current context, the driver frees nothing.
            self._driver.cuCtxPushCurrent_v2(self._context)
            self._driver.cuMemFreeHost(ctypes.c_void_p(self.address))
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            self._driver.cuDevicePrimaryCtxRelease_v2(self._device)
            self.address = 0

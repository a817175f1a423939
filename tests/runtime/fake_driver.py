"""A fake of NVIDIA's driver library, compiled in C, for processes that load it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="needs a C compiler on Linux"
)
SOURCE = """
#include <string.h>
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuInit(unsigned f) { return FAILS; }
int cuGetErrorString(int e, const char **s) { *s = "driver mismatch"; return 0; }
int cuDeviceGetCount(int *n) { *n = 2; return FAILS; }
int cuDeviceGet(int *d, int i) { *d = 7 + i; return 0; }
int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d == 7 ? "one" : "two", n); return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : d; return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = (size_t)d << 30; return 0; }
int cuTensorMapEncodeTiled(void) { return 999; }
"""


def install_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    """Compile a driver for CUDA 12.4 with two GPUs, which new processes load.

    Args:
        folder: where the library is written.
        monkeypatch: changes the environment of new processes.
        code: with which the driver fails to start; 0 if it starts.
    """
    (folder / "driver.c").write_text(SOURCE)
    command = ["cc", "-shared", "-fPIC", f"-DFAILS={code}", "driver.c", "-o", "libcuda.so.1"]
    subprocess.run(command, cwd=folder, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))

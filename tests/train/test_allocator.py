"""Freed memory stays in the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of allocating and writing 64 MB a second time.
COUNT_FAULTS = """
import resource, sys
from ffd_train.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
bytearray(b"x") * (1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(b"x") * (1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_was_freed_is_used_again() -> None:
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", COUNT_FAULTS, mode]))
        for mode in ("keep", "return")
    }
    assert faults["return"] > 10_000
    assert faults["keep"] < 100


def test_other_libraries_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from ffd_train import allocator

    monkeypatch.setattr(allocator, "ctypes", type("Other", (), {"pythonapi": object()}))
    allocator.keep_freed_memory()

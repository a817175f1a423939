"""Keep freed memory in the process, for work that allocates the same large tensors repeatedly."""

from __future__ import annotations

import ctypes

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system.

    By default, it returns blocks of more than 32 MB at once, and the system clears each of their
    pages again at the next use. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.pythonapi, "mallopt", None)
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)

"""Detection of out-of-memory errors of a GPU."""

from __future__ import annotations

import re

import torch

# Messages of cuBLAS and cuDNN, of the driver, and of the allocator inside another error.
_MESSAGES = re.compile(r"ALLOC_FAILED|CUDA error: out of memory|CUDA out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a smaller batch may succeed."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_MESSAGES.search(str(error)))

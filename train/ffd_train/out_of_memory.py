"""Whether a failure of PyTorch was for want of a GPU's memory."""

from __future__ import annotations

import re

import torch

# cuBLAS and cuDNN; the driver; and the allocator, quoted by an error of another type.
_SAID = re.compile(r"ALLOC_FAILED|CUDA error: out of memory|CUDA out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether fewer images at once may succeed."""
    return isinstance(error, torch.OutOfMemoryError) or bool(_SAID.search(str(error)))

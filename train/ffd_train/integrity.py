"""Verification of a packed data set."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.errors import DataError, InputError

from .face_data import FaceData, Sample


def require_intact(data: FaceData) -> None:
    """Read all images of train and val once, and compare them with their sha256.

    A scan decodes the images of folders, but checks only the sizes of shards. Without this check,
    a damaged image would end the run when it is first drawn.

    Raises:
        DataError: images are damaged; the message names the first one.
    """
    if data.shards is None:
        return

    def is_damaged(sample: Sample) -> bool:
        try:
            data.read(sample)
        except InputError:
            return True
        return False

    used = [*data.split("train"), *data.split("val")]
    with ThreadPoolExecutor(count_cores()) as pool:
        damaged = [s for s, bad in zip(used, pool.map(is_damaged, used), strict=True) if bad]
    if damaged:
        raise DataError(
            f"{len(damaged)} of {len(used)} packed images are damaged, the first is "
            f"{data.root / damaged[0].path}: copy the data set again"
        )

"""Whether a packed data set still holds what was packed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.model.devices import count_cores

from .data import FaceData, Sample


def require_whole(data: FaceData) -> None:
    """Read every picture to be trained on once, and compare it with its sha256.

    A folder's were decoded when it was scanned; of shards only the sizes are known by then, and a
    damaged picture would end a run in the night.

    Raises:
        DataError: pictures are damaged; the message names one.
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
            f"{len(damaged)} of {len(used)} packed pictures are damaged, the first: "
            f"{data.root / damaged[0].path}: copy the data set again"
        )

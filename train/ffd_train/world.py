"""The processes that train together, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ffd_runtime.core.errors import DataError, DeviceError
from ffd_runtime.core.text import counted


@dataclass(frozen=True)
class World:
    """All training processes, seen from one of them.

    Attributes:
        rank: rank of this process; rank 0 writes files and messages.
        size: number of processes on all machines (world size).
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> World:
        """Read torchrun's environment variables; a single process without them.

        Raises:
            DataError: the machines run different numbers of processes.
        """
        environment = os.environ
        if "WORLD_SIZE" not in environment or "LOCAL_WORLD_SIZE" not in environment:
            return cls()
        world = cls(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment["LOCAL_WORLD_SIZE"]),
        )
        if world.size % world.local_size:
            raise DataError("start torchrun with the same --nproc-per-node on every machine")
        return world

    def require_gpus(self, count: int) -> None:
        """Raise a `DeviceError` if this machine has more processes than its `count` of GPUs."""
        if self.local_size > count:
            raise DeviceError(
                f"{self.local_size} processes for {counted(count, 'GPU')}: start torchrun with "
                f"--nproc-per-node {count}"
            )

    @property
    def is_main(self) -> bool:
        """Whether this process has rank 0."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size

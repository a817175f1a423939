"""The processes that train together, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ffd_runtime.core.errors import DataError


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: of this one, 0 for the one that writes and speaks.
        count: of all machines together.
        local_count: of this machine.
    """

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @classmethod
    def here(cls) -> Processes:
        """By the environment that torchrun gives; alone without it.

        Raises:
            DataError: machines have different numbers of processes.
        """
        environment = os.environ
        if "WORLD_SIZE" not in environment or "LOCAL_WORLD_SIZE" not in environment:
            return cls()
        own = cls(
            int(environment["RANK"]),
            int(environment["WORLD_SIZE"]),
            int(environment["LOCAL_WORLD_SIZE"]),
        )
        if own.count % own.local_count:
            raise DataError("start torchrun with the same --nproc-per-node on every machine")
        return own

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return self.count // self.local_count

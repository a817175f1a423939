"""The script that torchrun starts in a test: train the network `plain` on all ranks."""

from __future__ import annotations

import sys
from pathlib import Path

from ffd_train.scanning import scan
from ffd_train.training import train
from ffd_train.world import World
from tests.train.test_distributed import SETTINGS

if __name__ == "__main__":
    data, folder = map(Path, sys.argv[1:])
    first = World.from_environment().is_main
    say = print if first else lambda _: None
    # Only rank 0 has a bar, and must not wait for the other rank in it.
    train(scan(data, ("train", "val")), SETTINGS, folder, progress=first, say=say)

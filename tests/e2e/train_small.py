"""Run ffd-train with tiny networks, for torchrun in a test."""

from __future__ import annotations

from ffd_train.cli.train import main
from ffd_train.network_registry import NETWORKS
from tests import tiny

if __name__ == "__main__":
    for name in NETWORKS:
        NETWORKS[name] = tiny.build_tiny
    main(prog_name="ffd-train")

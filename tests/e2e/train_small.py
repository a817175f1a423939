"""ffd-train, for torchrun in a test: the networks behind the names are tiny ones."""

from __future__ import annotations

from ffd_train import networks
from ffd_train.cli.train import main
from tests import tiny

if __name__ == "__main__":
    for name in networks.NETWORKS:
        networks.NETWORKS[name] = tiny.build_tiny
    main(prog_name="ffd-train")

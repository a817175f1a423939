"""The options of ffd-run that only a cluster run has."""

from __future__ import annotations

import click

from ffd_runtime.cli.command import option

# The value of --ray without an address.
LOCAL = "local"

OPTIONS = (
    option(
        "--ray",
        group="Cluster",
        is_flag=False,
        flag_value=LOCAL,
        metavar="[HOST:PORT]",
        help="Run on this Ray cluster. Without an address, use the cluster that runs on this "
        "machine, or start one. SOURCEs may be s3:// and gs:// addresses; --output is a folder.",
    ),
    option(
        "--actors",
        group="Cluster",
        type=click.IntRange(1),
        help="Processes that hold the model. Default: one per GPU, or one per core.",
    ),
    option(
        "--part",
        group="Cluster",
        type=click.IntRange(1),
        default=10_000,
        show_default=True,
        help="Inputs in each Parquet file of --output.",
    ),
)

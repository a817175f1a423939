"""The options of ffd-run that only a cluster run has."""

from __future__ import annotations

from functools import partial

import click

from ffd_runtime.cli.command import option

cluster_option = partial(option, group="Cluster")

# The value of --ray without an address.
LOCAL = "local"

OPTIONS = (
    cluster_option(
        "--ray",
        is_flag=False,
        flag_value=LOCAL,
        metavar="[HOST:PORT]",
        help="Run on this Ray cluster. Without an address, use the cluster that runs on this "
        "machine, or start one. SOURCEs may be s3:// and gs:// addresses; --output is a folder.",
    ),
    cluster_option(
        "--actors",
        type=click.IntRange(1),
        help="Processes that hold the model. Default: one per GPU, or one per core.",
    ),
    cluster_option(
        "--part",
        type=click.IntRange(1),
        default=10_000,
        show_default=True,
        help="Inputs in each Parquet file of --output.",
    ),
)

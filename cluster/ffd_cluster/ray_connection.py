"""Connect to a Ray cluster, or start Ray on this machine, without its output."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any

from ffd_runtime.core.errors import BackendError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.core.text import first_line, printable

# Pixels that one block carries from stage to stage: about 250 images.
BLOCK_BYTES = 1 << 26
# After this time without progress, a run plans again for the current machines. A slow core needs
# minutes for a block with a large network, and shows no progress until the block is complete.
STALL_TIMEOUT_S = 1800.0


@contextmanager
def connected(address: str | None, verbose: bool) -> Iterator[Any]:
    """Connect to a cluster, or start Ray on this machine, and yield the module.

    Args:
        address: of the cluster's head. None for RAY_ADDRESS, else for a cluster that runs on this
            machine, else to start Ray on this machine only.
        verbose: show the output of Ray and of the machines.

    Raises:
        BackendError: Ray is not installed, or there is no cluster at the address.
    """
    # Send no usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendError(
            f"--ray needs Ray ({first_line(error)}): {install_hint('ray')}, and install "
            "the extra ray on every machine of the cluster"
        ) from None
    handler = signal.getsignal(signal.SIGTERM)
    _init(ray, address, verbose)
    if threading.current_thread() is threading.main_thread():
        # Ray installs a handler that ends the process at once.
        signal.signal(signal.SIGTERM, handler)
    try:
        # Ray prints warnings about resources to stdout.
        with open(os.devnull, "w") as null, redirect_stdout(sys.stderr if verbose else null):
            yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, address: str | None, verbose: bool) -> None:
    """Connect or start Ray, and configure it."""
    level = logging.INFO if verbose else logging.CRITICAL
    if not verbose:
        warnings.filterwarnings("ignore", module=r"ray\b")
        # Ray's native code logs to the file descriptor of stderr.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if cluster := address or os.environ.get("RAY_ADDRESS"):
        _require_listening(cluster)
    elif recorded := _recorded_address():
        _require_listening(recorded, " (run ray stop if that cluster of this machine has ended)")
    try:
        with nullcontext() if verbose else _silent_stderr():
            ray.init(
                address=address,
                include_dashboard=None if cluster else False,
                logging_level=level,
                log_to_driver=verbose,
            )
    except (RuntimeError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
        reason = printable(first_line(error))[:200]
        raise BackendError(
            f"cannot join Ray at {cluster or 'this machine'}: {reason} (if the cluster has a "
            "token, give it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH)"
        ) from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(level)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK_BYTES
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = STALL_TIMEOUT_S


def _recorded_address() -> str | None:
    """Return the address of the cluster that was started on this machine last, if Ray has it."""
    with suppress(ImportError, AttributeError, OSError):
        from ray._private.utils import read_ray_address

        return read_ray_address() or None
    return None


def _require_listening(address: str, advice: str = "") -> None:
    """Raise a BackendError if a port is closed: Ray would retry for minutes and ignore Ctrl-C."""
    if address.startswith("ray://"):
        raise BackendError(
            f"cannot join Ray at {address}: Ray Data does not support Ray's client; give "
            "HOST:PORT on a machine of the cluster"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        # Ray reports an invalid address.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BackendError(f"cannot join Ray at {address}: {reason}{advice}") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard stderr, including the output of Ray's native code."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)

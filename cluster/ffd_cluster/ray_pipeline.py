"""Ray: starting it quietly, the stages as a Ray Data pipeline, and what its errors mean."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import Any

from ffd_runtime.core.errors import BackendError, FfdError, InputError, StorageError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.core.text import first_line, printable
from ffd_runtime.image.faces import FaceDetector
from ffd_runtime.inputs.files import ignore
from ffd_runtime.model.card import ModelCard, PreprocessSpec

from .output_parts import COUNTS, Parts
from .plan import WRITING, Plan
from .stages import Infer, Model, describe_model, prepare_block, write_block
from .storage import UNREACHABLE, Storage

# Bytes of pixels that go from one stage to the next at a time: some 250 pictures.
BLOCK = 1 << 26
# Inputs of one task that prepares, at least where there are many, and at most: from a block on.
LEAST_INPUTS = BLOCK // (PreprocessSpec().size ** 2 * 3)
MOST_INPUTS = 1024
# Seconds without any progress after which machines are looked at again. A slow core takes minutes
# for a block of pictures with a large network, and until then nothing seems to move.
STALLED = 1800.0
# Seconds in which a first machine must have started the model: one may have to be made first.
START = 900.0


class BrokenError(Exception):
    """The engine lost what it needs to go on: machines, processes, objects, or the store."""


@contextmanager
def connected(address: str | None, verbose: bool) -> Iterator[Any]:
    """Ray, joined or started on this machine.

    Args:
        address: of a cluster's head; None for RAY_ADDRESS or a cluster that runs here, and without
            one, to start Ray on this machine alone.
        verbose: show what Ray and the machines say.

    Raises:
        BackendError: Ray is not installed, or there is none at the address.
    """
    # Nothing is reported to anybody.
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
    _join(ray, address, verbose)
    if threading.current_thread() is threading.main_thread():
        # Ray puts one in its place that ends the process at once.
        signal.signal(signal.SIGTERM, handler)
    try:
        # Ray says on stdout what it misses of machines.
        with redirect_stdout(sys.stderr if verbose else Nowhere()):
            yield ray
    finally:
        ray.shutdown()


def _join(ray: Any, address: str | None, verbose: bool) -> None:
    """Join or start Ray, set as we need it; say what it says only if that is wanted."""
    level = logging.INFO if verbose else logging.CRITICAL
    if not verbose:
        warnings.filterwarnings("ignore", module=r"ray\b")
        # What its native part logs goes to stderr, past all of Python's means.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if there := address or os.environ.get("RAY_ADDRESS"):
        _require_answer(there)
    try:
        with nullcontext() if verbose else _silent():
            ray.init(
                address=address,
                include_dashboard=None if there else False,
                logging_level=level,
                log_to_driver=verbose,
            )
    except (RuntimeError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
        said = printable(first_line(error))[:200]
        raise BackendError(
            f"cannot join Ray at {there or 'this machine'}: {said} (if the cluster has a token, "
            "give it with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH)"
        ) from None
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(level)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = BLOCK
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = STALLED


class Nowhere(io.TextIOBase):
    """Text that nobody reads."""

    def write(self, text: str, /) -> int:
        return len(text)


def _require_answer(address: str) -> None:
    """See that a cluster listens there: Ray itself would try for minutes, deaf to Ctrl-C."""
    if address.startswith("ray://"):
        raise BackendError(
            f"cannot join Ray at {address}: Ray Data does not run through Ray's client; give "
            "HOST:PORT on a machine of the cluster"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        # Not an address that could be tried; Ray says what is wrong with it.
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BackendError(f"cannot join Ray at {address}: {reason}") from None


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing on stderr: Ray's native part says there how little it will say."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def explaining(ray: Any) -> Iterator[None]:
    """What Ray says of a failure, as one error of ours.

    Raises:
        BrokenError: what remains may go on with another plan.
        FfdError: it may not.
    """
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.RayActorError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.ObjectLostError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectStoreFullError,
        ray.exceptions.OutOfDiskError,
        ray.exceptions.LocalRayletDiedError,
        ray.exceptions.RaySystemError,
        ray.exceptions.RpcError,
        ray.exceptions.ObjectRefStreamEndOfStreamError,
        ray.data.exceptions.ExecutionTimeoutError,
    )
    try:
        yield
    except Exception as error:  # Ray wraps what tasks raise in classes made for the purpose
        cause = _unwrap(error)
        said = f"{type(cause).__name__}: {printable(first_line(cause))}"
        if isinstance(cause, StorageError) and cause.code == UNREACHABLE:
            raise BrokenError(first_line(cause)) from None
        if isinstance(cause, StorageError):
            raise StorageError(first_line(cause), cause.code) from None
        if isinstance(cause, FfdError) and not isinstance(cause, InputError):
            # Ray adds lines of its own to what we said.
            raise type(cause)(first_line(cause)) from None
        if isinstance(cause, ModuleNotFoundError):
            raise BackendError(
                f"a machine of the cluster cannot import what it needs ({said}): "
                "install ffd with the extra ray there, as here"
            ) from None
        if isinstance(cause, lost):
            raise BrokenError(said) from None
        raise BackendError(f"Ray failed: {said}") from error


def _unwrap(error: BaseException) -> BaseException:
    """What a task raised, out of what Ray made of it.

    Python's own chain leads elsewhere: to errors that Ray met and dealt with on its way.
    """
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    return error


@dataclass(frozen=True)
class Work:
    """What is done with inputs, wherever they are.

    Attributes:
        model: that classifies them.
        spec: of its card.
        parts: the output.
        max_pixels: larger images are refused.
        batch: images that are inferred together.
        part: inputs in a part of the output.
        detector: finds faces; None to judge pictures as they are.
    """

    model: Model
    spec: PreprocessSpec
    parts: Parts
    max_pixels: int
    batch: int
    part: int
    detector: FaceDetector | None = None


def try_model(ray: Any, model: Model, plan: Plan) -> tuple[str, ModelCard]:
    """Start a model on a machine of the cluster, as an actor will.

    Returns:
        Backend and device that really run, and the model's card.

    Raises:
        FfdError: it does not start there.
    """
    task = ray.remote(**plan.inference, max_retries=0)(describe_model)
    try:
        with explaining(ray):
            description, card = ray.get(task.remote(model, plan.cores), timeout=START)
    except BackendError as error:
        if isinstance(error.__cause__, ray.exceptions.GetTimeoutError):
            reason = f"no machine of the cluster could start the model within {START:.0f} s"
            raise BackendError(f"{reason}: they are busy, or have not come") from None
        raise
    except BrokenError as broken:
        raise BackendError(f"the model cannot be tried on the cluster: {broken}") from None
    return description, ModelCard.from_json(card)


def run(
    ray: Any,
    work: Work,
    plan: Plan,
    inputs: Sequence[Any],
    storages: dict[str, Storage],
    tally: Any,
    skip: Callable[[str], object] = ignore,
) -> Iterator[tuple[str, int, Counter[str]]]:
    """Classify inputs; name, inputs and counts of each part that has been written.

    Args:
        ray: the module, connected.
        work: what is done.
        plan: what of the cluster is used.
        inputs: Arrow tables, as `prepare_block` takes them.
        storages: what their sources are in, by place.
        tally: the actor that machines tell of their work.
        skip: is given each file that is not a picture.

    Raises:
        BrokenError: what remains may go on with another plan.
        FfdError: it may not.
    """
    with explaining(ray):
        for row in _pipeline(ray, work, plan, inputs, storages, tally).iter_rows():
            for name in row["skipped"]:
                skip(name.decode("utf-8", "surrogateescape"))
            if row["part"]:
                counts = Counter({kind: row[kind] for kind in COUNTS})
                yield row["part"], row["inputs"], counts


def _pipeline(
    ray: Any,
    work: Work,
    plan: Plan,
    inputs: Sequence[Any],
    storages: dict[str, Storage],
    tally: Any,
) -> Any:
    model = ray.put(work.model)
    prepare = partial(
        prepare_block,
        spec=work.spec,
        max_pixels=work.max_pixels,
        storages=storages,
        detector=work.detector,
        tally=tally,
    )
    return (
        ray.data.from_arrow(list(inputs))
        .map_batches(
            prepare,
            batch_format="pyarrow",
            # A picture may hold several faces.
            batch_size=max(1, BLOCK // (work.spec.size**2 * 3) // (4 if work.detector else 1)),
            **plan.preparation,
        )
        .map_batches(
            Opened,
            fn_constructor_args=(model, work.batch, plan.cores, tally),
            batch_format="pyarrow",
            batch_size=None,
            concurrency=plan.actors,
            **plan.inference,
        )
        .map_batches(
            write_block,
            fn_kwargs={"folder": work.parts.folder, "storage": work.parts.storage},
            batch_format="pyarrow",
            batch_size=work.part,
            num_cpus=WRITING,
        )
    )


class Opened(Infer):
    """`Infer`, of a model that Ray keeps."""

    def __init__(self, model: Any, *args: Any) -> None:
        import ray

        self._failure: Exception | None = None
        try:
            super().__init__(ray.get(model), *args)
        except Exception as error:  # what is raised here, Ray would give on as text
            self._failure = error

    def __call__(self, block: Any) -> Any:
        if self._failure:
            raise self._failure
        return super().__call__(block)

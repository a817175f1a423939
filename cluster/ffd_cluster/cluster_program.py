"""ffd-run --ray: classify images on a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ffd_runtime.cli.command import say, wants_more
from ffd_runtime.cli.program import Program, RunOptions
from ffd_runtime.cli.run_progress import progress, summarise
from ffd_runtime.core.errors import DeviceError
from ffd_runtime.outputs import FILE_SINKS

from .cluster_options import LOCAL
from .object_address import bucket_of, is_object, require_no_credentials

if TYPE_CHECKING:
    from ffd_runtime.image.faces import FaceDetector

    from .output_parts import Parts
    from .plan import Plan
    from .ray_pipeline import Work
    from .seen_inputs import Seen


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(RunOptions):
    """The options of a cluster run; see `ffd-run --help`."""

    ray: str
    actors: int | None
    part: int
    batch: int
    max_pixels: int
    null: bool
    resume: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        address = self.address or ""
        if address.startswith("ray://"):
            raise click.UsageError(
                "--ray ray://: Ray Data does not support Ray's client. Give HOST:PORT on a machine "
                "of the cluster, or submit ffd-run --ray with 'ray job submit'"
            )
        if is_object(address) or os.path.lexists(address):
            raise click.UsageError(
                "--ray uses the next argument as its address: put SOURCEs before --ray"
            )

    @property
    def address(self) -> str | None:
        """The cluster's address; None for a cluster on this machine, or to start Ray here."""
        return None if self.ray == LOCAL else self.ray


def accepts(sources: Sequence[str], values: Mapping[str, Any]) -> bool:
    """Return whether --ray is given; without it, addresses of objects are wrong usage."""
    if values["ray"] is not None:
        return True
    if any(map(is_object, [*sources, values["output"] or ""])):
        raise click.UsageError(
            "s3:// and gs:// addresses need --ray (without a cluster, --ray uses this machine)"
        )
    return False


def run(sources: Sequence[str], options: ClusterOptions) -> None:
    """Classify images on a Ray cluster."""
    output = _check_output(options.output)
    from concurrent.futures import Future

    from ffd_runtime.model.backends import find_model
    from ffd_runtime.model.devices import parse_device

    from .cluster_inputs import counted_into, find_inputs
    from .cluster_run import ClusterRun
    from .plan import Plan
    from .ray_connection import connected

    device, _ = parse_device(options.device)
    if device != options.device:
        raise click.UsageError(
            f"--device {options.device}: with --ray, give cuda; each actor has its own GPU"
        )
    # Report a wrong path before waiting for the cluster.
    find_model(options.model, device)
    detector = options.open_detector()
    with connected(options.address, wants_more()) as ray:
        plan, work, seen = _start(ray, options, device, output, detector)

        def replan() -> Plan:
            # Keep the device on which the model has started.
            return Plan.of(ray.nodes(), plan.device, options.actors)

        parts = work.parts
        if earlier := parts.inputs:
            say(f"resuming after {earlier} inputs with rows in {output}")
        begin = time.monotonic()
        total: Future[int] = Future()
        items = counted_into(total, find_inputs(sources, output, options.null))
        with _reporting_rows(parts), _progress(ray, earlier, total.result) as tally:
            cluster_run = ClusterRun(ray, work, parts, seen, replan, tally)
            cluster_run.classify(items)
        seconds, faces = time.monotonic() - begin, options.detect_faces
        say(summarise(parts.counts, earlier, seconds, cluster_run.skipped, faces))
    if parts.counts["errors"]:
        click.get_current_context().exit(3)


def _start(
    ray: Any, options: ClusterOptions, device: str, output: str, detector: FaceDetector | None
) -> tuple[Plan, Work, Seen]:
    """Plan the run and start the model: with `auto` on CPUs, if it does not start on a GPU."""
    from .plan import Plan

    plan = Plan.of(ray.nodes(), device, options.actors)
    say(f"Ray {ray.__version__}: {plan}")
    try:
        return plan, *_prepare(ray, options, plan, output, detector)
    except DeviceError as error:
        if device != "auto" or plan.device == "cpu":
            raise
        # Ray also counts GPUs that onnxruntime cannot use, such as those of other vendors.
        say(f"the model does not start on a GPU of the cluster: using CPUs ({error})")
    return _start(ray, options, "cpu", output, detector)


def _prepare(
    ray: Any, options: ClusterOptions, plan: Plan, output: str, detector: FaceDetector | None
) -> tuple[Work, Seen]:
    """Start the model once on the cluster, and open the output with the inputs of earlier runs."""
    from ffd_runtime.model.backends import find_model
    from ffd_runtime.outputs.provenance import RunProvenance

    from .output_parts import Parts
    from .ray_pipeline import Work, try_model
    from .stages import Model
    from .storage import storage_of

    path = find_model(options.model, plan.device)
    model = Model.read(path, options.backend, plan.device)
    description, card = try_model(ray, model, plan)
    say(f"{card.name} ({card.architecture}, {card.precision}), {description}")
    origin = RunProvenance.of(path, card, (), faces=detector.settings if detector else None)
    parts = Parts(output, storage_of(bucket_of(output)))
    seen = parts.begin(origin, options.resume)
    work = Work(
        model,
        card.preprocess,
        parts,
        max_pixels=options.max_pixels,
        batch=options.batch,
        part=options.part,
        detector=detector,
    )
    return work, seen


def _check_output(output: str | None) -> str:
    if not output:
        raise click.UsageError("--ray needs an --output: a folder, or s3://BUCKET/FOLDER/")
    if output.lower().endswith(tuple(FILE_SINKS)):
        raise click.UsageError("with --ray, --output is a folder of Parquet files, not a file")
    require_no_credentials(output)
    return output


@contextmanager
def _progress(ray: Any, earlier: int, count: Callable[[], int]) -> Iterator[Any]:
    """Start the actor that counts progress; show a progress bar on a terminal."""
    from rich.console import Console

    from .tally import following, start_tally

    tally = start_tally(ray)
    console = Console(stderr=True, highlight=False)
    with (
        progress(console, count, earlier) as advance,
        following(ray, tally, advance) if console.is_terminal else nullcontext(),
    ):
        yield tally


@contextmanager
def _reporting_rows(parts: Parts) -> Iterator[None]:
    """If the run fails, report where its rows are."""
    from .output_parts import TakenError

    try:
        yield
    except BaseException as error:
        if parts.inputs and not isinstance(error, TakenError):
            say(f"{parts.inputs} inputs have rows in {parts.folder}; resume with --resume")
        raise


PROGRAM = Program("images", ClusterOptions, accepts, run, flag="--ray")

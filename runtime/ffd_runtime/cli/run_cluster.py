"""ffd-run --ray: the same command over a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from .options import say, together, wants_more
from .run_streams import STREAMS_ALONE, open_detector

if TYPE_CHECKING:
    from ffd_cluster.output_parts import Parts

LOCAL = "local"
# Options of ffd-run that a cluster has no use for.
HERE_ALONE = "workers annotate heatmap report as_json timeout allow_private overwrite".split()
CLUSTER_ALONE = "actors part".split()


def cluster_options() -> Callable[[Any], Any]:
    """The options that are about clusters alone."""
    return together(
        click.option(
            "--ray",
            is_flag=False,
            flag_value=LOCAL,
            metavar="[ADDRESS]",
            help="Run on a Ray cluster: HOST:PORT; without it, the one that this machine is in, or "
            "else this machine. SOURCEs may be s3:// and gs:// addresses, --output is a folder.",
        ),
        click.option(
            "--actors",
            type=click.IntRange(1),
            help="Processes that hold the model. Default: one a GPU, or else one a core.",
        ),
        click.option(
            "--part",
            type=click.IntRange(1),
            default=10_000,
            show_default=True,
            help="Inputs in each Parquet file of a cluster's --output.",
        ),
    )


def wants_cluster(sources: Sequence[str], options: dict[str, Any]) -> bool:
    """Whether a cluster is to do it.

    Raises:
        click.UsageError: an option does not fit, or a source needs a cluster.
    """
    from ffd_cluster.object_address import is_object

    given = click.get_current_context().get_parameter_source
    cluster = options["ray"] is not None
    if cluster:
        _check_address(options["ray"])
    for name in [*HERE_ALONE, *STREAMS_ALONE] if cluster else CLUSTER_ALONE:
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-').replace('as-json', 'json/--table')}"
            raise click.UsageError(f"{option} {'does not go with' if cluster else 'needs'} --ray")
    addresses = [*sources, options["output"] or ""]
    if not cluster and any(map(is_object, addresses)):
        raise click.UsageError(
            "s3:// and gs:// addresses need --ray (without a cluster it runs on this machine)"
        )
    return cluster


def _check_address(address: str) -> None:
    from ffd_cluster.object_address import is_object

    if address.startswith("ray://"):
        raise click.UsageError(
            "--ray ray://: Ray Data does not run through Ray's client; give HOST:PORT on a machine "
            "of the cluster, or submit ffd-run --ray by 'ray job submit'"
        )
    if is_object(address) or os.path.lexists(address):
        raise click.UsageError("--ray takes a SOURCE for its ADDRESS: put SOURCEs before --ray")


def run_on_cluster(sources: Sequence[str], options: dict[str, Any]) -> None:
    """Classify pictures on a Ray cluster."""
    output = _check_output(options)
    device = _check_device(options["device"])
    from ffd_cluster.classify import Counted, Run, find_inputs
    from ffd_cluster.object_address import place_of
    from ffd_cluster.output_parts import Parts
    from ffd_cluster.plan import Plan
    from ffd_cluster.ray_pipeline import Work, connected, try_model
    from ffd_cluster.stages import Model
    from ffd_cluster.storage import storage_of

    from ..model.backends import find_model
    from ..outputs.provenance import Origin
    from .run import summarise

    # A wrong path is an error before the cluster is waited for.
    find_model(options["model"], device)
    detector = open_detector(options) if options["faces"] else None
    address = None if options["ray"] == LOCAL else options["ray"]
    with connected(address, wants_more()) as ray:
        plan = Plan.of(ray.nodes(), device, options["actors"])
        say(f"Ray {ray.__version__}: {plan}")

        def replan() -> Plan:
            # The model is opened on what it was tried on.
            return Plan.of(ray.nodes(), plan.device, options["actors"])

        path = find_model(options["model"], plan.device)
        model = Model.read(path, options["backend"], plan.device)
        description, card = try_model(ray, model, plan)
        say(f"{card.name} ({card.architecture}, {card.precision}), {description}")
        origin = Origin.of(path, card, (), faces=detector.settings if detector else None)
        parts = Parts(output, storage_of(place_of(output)))
        seen = parts.begin(origin, options["resume"])
        if earlier := parts.inputs:
            say(f"going on after {earlier} inputs that have rows in {output}")
        limits = {name: options[name] for name in ("max_pixels", "batch", "part")}
        work = Work(model, card.preprocess, parts, **limits, detector=detector)
        begin = time.monotonic()
        items = Counted(find_inputs(sources, output, options["null"]))
        with _say_where_rows_are(parts), _progress(ray, earlier, items.total) as tally:
            run = Run(ray, work, parts, seen, replan, tally)
            run.classify(items)
        say(summarise(parts.counts, earlier, time.monotonic() - begin, run.skipped))
    if parts.counts["errors"]:
        click.get_current_context().exit(3)


def _check_device(device: str) -> str:
    from ..model.devices import parse_device

    kind, _ = parse_device(device)
    if device != kind:
        raise click.UsageError(f"--device {device}: with --ray, it is cuda; each actor has a GPU")
    return kind


def _check_output(options: dict[str, Any]) -> str:
    from ..outputs import FILE_SINKS

    output: str | None = options["output"]
    if not output:
        raise click.UsageError("--ray needs an --output: a folder, or s3://BUCKET/FOLDER/")
    if output.lower().endswith(tuple(FILE_SINKS)):
        raise click.UsageError("with --ray, --output is a folder of Parquet files, not a file")
    from ffd_cluster.storage import require_no_credentials

    require_no_credentials(output)
    return output


@contextmanager
def _progress(ray: Any, earlier: int, count: Callable[[], int]) -> Iterator[Any]:
    """The actor that machines tell of their work, and a bar of it where there is a terminal."""
    from rich.console import Console

    from ffd_cluster.tally import following, start_tally

    from .run import progress

    tally = start_tally(ray)
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield tally
        return
    with progress(console, count, earlier) as advance, following(ray, tally, advance):
        yield tally


@contextmanager
def _say_where_rows_are(parts: Parts) -> Iterator[None]:
    from ffd_cluster.output_parts import TakenError

    try:
        yield
    except BaseException as error:
        if parts.inputs and not isinstance(error, TakenError):
            say(f"{parts.inputs} inputs have rows in {parts.folder}; --resume goes on with it")
        raise

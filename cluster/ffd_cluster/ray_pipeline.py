"""The stages of a run as a Ray Data pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ffd_runtime.core.errors import BackendError
from ffd_runtime.image.faces import FaceDetector
from ffd_runtime.inputs.files import ignore
from ffd_runtime.model.card import ModelCard, PreprocessSpec

from .output_parts import COUNTS, Parts
from .plan import WRITING_CPUS, Plan
from .ray_connection import BLOCK_BYTES
from .ray_errors import RetryableError, translate_ray_errors
from .stages import Infer, Model, describe_model, prepare_block, write_block
from .storage import Storage

# Inputs of one task that prepares: a block if there are enough inputs, and at most MAX_TASK_INPUTS.
MIN_TASK_INPUTS = BLOCK_BYTES // (PreprocessSpec().size ** 2 * 3)
MAX_TASK_INPUTS = 1024
# One machine must start the model within this time, which includes adding it to the cluster.
START_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Work:
    """How inputs are classified.

    Attributes:
        spec: preprocessing of the model's card.
        batch: images of one inference.
        part: inputs of one part of the output.
        detector: detects faces; None to classify whole images.
    """

    model: Model
    spec: PreprocessSpec
    parts: Parts
    max_pixels: int
    batch: int
    part: int
    detector: FaceDetector | None = None


def try_model(ray: Any, model: Model, plan: Plan) -> tuple[str, ModelCard]:
    """Start a model on a machine of the cluster, as an actor will; return description and card.

    Raises:
        FfdError: the model does not start there.
    """
    task = ray.remote(**plan.inference, max_retries=0)(describe_model)
    try:
        with translate_ray_errors(ray):
            description, card = ray.get(task.remote(model, plan.cores), timeout=START_TIMEOUT_S)
    except BackendError as error:
        if isinstance(error.__cause__, ray.exceptions.GetTimeoutError):
            reason = f"no machine of the cluster started the model within {START_TIMEOUT_S:.0f} s"
            raise BackendError(f"{reason}: all are busy or missing") from None
        raise
    except RetryableError as error:
        raise BackendError(f"the model cannot be started on the cluster: {error}") from None
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
    """Classify inputs, and yield the name, number of inputs and counts of each written part.

    `inputs` are Arrow tables for `prepare_block`, and `storages` has the storage of each of their
    buckets. `skip` is called with each file that is not an image.

    Raises:
        RetryableError: a retry with another plan may succeed.
        FfdError: a retry would fail again.
    """
    with translate_ray_errors(ray):
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
        version=work.model.version,
    )
    # An image may contain several faces.
    most = BLOCK_BYTES // (work.spec.size**2 * 3) // (4 if work.detector else 1)
    # Ray joins tables until they have `batch_size` rows, which would leave machines without a task.
    batch_size = max(1, min(most, len(inputs[0])))
    return (
        ray.data.from_blocks(list(inputs))
        .map_batches(
            prepare,
            batch_format="pyarrow",
            batch_size=batch_size,
            compute=ray.data.TaskPoolStrategy(max(1, plan.cpus)),
            num_cpus=plan.preparation_cpus,
        )
        .map_batches(
            InferActor,
            fn_constructor_args=(model, work.batch, plan.cores, tally),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=plan.actors),
            **plan.inference,
        )
        .map_batches(
            write_block,
            fn_args=(work.parts.folder, work.parts.storage, work.model.version),
            batch_format="pyarrow",
            batch_size=work.part,
            num_cpus=WRITING_CPUS,
        )
    )


class InferActor(Infer):
    """`Infer` with a model from Ray's object store."""

    def __init__(self, model: Any, *args: Any) -> None:
        import ray

        self._failure: Exception | None = None
        try:
            super().__init__(ray.get(model), *args)
        except Exception as error:  # Ray passes on errors of a constructor only as text
            self._failure = error

    def __call__(self, block: Any) -> Any:
        if self._failure:
            raise self._failure
        return super().__call__(block)

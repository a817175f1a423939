"""The stages that run on a cluster's machines: images to pixels, pixels to rows, rows to a part.

Each stage takes and returns Arrow tables with one row per input, so that Ray never splits an input
between blocks. Names are bytes, because a file's name may be invalid text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from ffd_runtime import __version__
from ffd_runtime.core.cores import limit_cores
from ffd_runtime.core.errors import InputError, ModelError, StorageError
from ffd_runtime.core.ordered_map import map_in_order
from ffd_runtime.core.pipeline import Batches, Prepared, prepare_views
from ffd_runtime.image.faces import FaceDetector
from ffd_runtime.inputs import Item
from ffd_runtime.inputs.files import ignore
from ffd_runtime.model.backends import Backend, open_backend
from ffd_runtime.model.card import PreprocessSpec
from ffd_runtime.outputs.jsonlines import to_line
from ffd_runtime.outputs.parquet_file import to_parquet

from .object_address import bucket_of
from .output_parts import COUNTS, part_name
from .seen_inputs import digest
from .storage import Storage

# Concurrent reads of one task: an object store needs tens of milliseconds for any object.
MAX_READS = 16
# A block that was started more often may crash its process, so a separate process decodes its
# images. A block also starts again after its machine fails.
MAX_DIRECT_STARTS = 2

Prepare = Callable[[Item], list[Prepared]]


@dataclass(frozen=True)
class Model:
    """The files of a model, to send to the machines.

    Attributes:
        files: name to content; the model comes first, then an engine's manifest.
        backend: `auto` or a name, as for `open_backend`.
        device: `cpu` or `cuda`.
        version: of ffd on the machine that sends the model.
    """

    files: dict[str, bytes]
    backend: str
    device: str
    version: str = __version__

    @classmethod
    def read(cls, path: Path, backend: str, device: str) -> Model:
        """Read the files of a model."""
        manifest = path.with_name(path.name + ".json")
        files = [path, manifest] if manifest.is_file() else [path]
        return cls({file.name: file.read_bytes() for file in files}, backend, device)

    def open(self, cores: int) -> Backend:
        """Start the model on this machine, where it may use `cores` CPU cores.

        Raises:
            ModelError: this machine has another version of ffd, whose results may differ.
        """
        _require_version(self.version)
        limit_cores(cores)
        with TemporaryDirectory(prefix="ffd-") as folder:
            paths = [Path(folder, name) for name in self.files]
            for path in paths:
                path.write_bytes(self.files[path.name])
            return open_backend(paths[0], self.backend, self.device)


def _require_version(version: str) -> None:
    """Raise a ModelError if this machine has another version of ffd, whose rows may differ."""
    if version != __version__:
        raise ModelError(
            f"a machine of the cluster has ffd-edge {__version__}, and this machine has {version}: "
            "install the same version on all machines"
        )


def describe_model(model: Model, cores: int) -> tuple[str, str]:
    """Start a model, and return a description of backend and device, and the card as JSON."""
    with closing(model.open(cores)) as backend:
        return backend.description, backend.card.to_json()


def prepare_block(
    block: Any,
    spec: PreprocessSpec,
    max_pixels: int,
    storages: dict[str, Storage],
    detector: FaceDetector | None = None,
    tally: Any = None,
    version: str = __version__,
) -> Any:
    """Read, decode and preprocess images: the first stage.

    Args:
        block: Arrow table with the columns `source`, `named` (by the user), and for inputs that are
            known to be unreadable, `code` and `message`.
        spec: the preprocessing of the model's card.
        max_pixels: larger images are refused.
        storages: the storage of each bucket of the sources.
        detector: detects faces, each of which is classified; None to classify whole images.
        tally: the actor that counts the starts of this block; None to count none. A block that was
            started too often is decoded in a separate process, which its images may crash.
        version: of ffd on the machine that sends the task.

    Returns:
        Arrow table with the columns `source`; `pixels`, the bytes of uint8 [size, size, 3] RGB
        images, one for each view; `faces` and `reasons` of the views; `code` and `message` of an
        error; and `skipped`, whether the file is not an image.

    Raises:
        ModelError: this machine has another version of ffd.
    """
    _require_version(version)
    # Each machine runs many tasks, so each task uses one thread.
    cv2.setNumThreads(1)
    starts = _count_starts(tally, block) if tally else 0
    items = [_item(row, storages) for row in block.to_pylist()]
    prepare = partial(prepare_views, spec=spec, max_pixels=max_pixels, detector=detector)
    with (
        _isolating(prepare) if starts > MAX_DIRECT_STARTS else nullcontext(prepare) as prepare_item,
        ThreadPoolExecutor(MAX_READS, "ffd-read") as pool,
    ):
        read = map_in_order(pool, _read, items, ahead=MAX_READS)
        return _to_table(block["source"], list(map(prepare_item, read)))


def _to_table(sources: Any, inputs: list[list[Prepared]]) -> Any:
    import pyarrow as pa

    firsts = [views[0].image if views else None for views in inputs]
    errors = [first if isinstance(first, InputError) else None for first in firsts]
    messages = [error and error.message.encode("utf-8", "surrogateescape") for error in errors]
    images = [
        [view.image for view in views if not isinstance(view.image, InputError)] for views in inputs
    ]
    pixels = np.concatenate([np.empty(0, np.uint8), *(i.ravel() for some in images for i in some)])
    sizes = [len(some) * (some[0].size if some else 0) for some in images]
    offsets = np.cumsum([0, *sizes], dtype=np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(pixels)]
    faces = [[view.face for view in views] for views in inputs]
    reasons = [[view.reason for view in views] for views in inputs]
    return pa.table(
        {
            "source": sources,
            "pixels": pa.Array.from_buffers(pa.large_binary(), len(inputs), buffers),
            "faces": pa.array(faces, pa.list_(pa.list_(pa.int32()))),
            "reasons": pa.array(reasons, pa.list_(pa.string())),
            "code": pa.array([error and error.code for error in errors], pa.string()),
            "message": pa.array(messages, pa.binary()),
            "skipped": pa.array([not views for views in inputs], pa.bool_()),
        }
    )


class Infer:
    """Classify images, and return rows as lines of JSON: the second stage, which holds the model.

    The model may use `cores` CPU cores. `tally` is the actor that counts classified inputs.
    """

    def __init__(self, model: Model, batch: int, cores: int, tally: Any = None) -> None:
        self._backend = model.open(cores)
        self._batches = Batches(self._backend, batch)
        self._batch = batch
        self._tally = tally

    def __call__(self, block: Any) -> Any:
        """Classify the inputs of a table from `prepare_block`.

        Returns:
            Arrow table with the columns `lines`, the rows of each input, and `skipped`, the name of
            a file that is not an image.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        inputs = list(_prepared(block, self._backend.card.preprocess.size))
        views = iter([view for views in inputs for view in views])
        lines: list[str] = []
        while some := list(islice(views, self._batch)):
            lines += map(to_line, self._batches.infer(some))
        if self._tally:
            self._tally.add.remote(len(inputs))
        rest = iter(lines)
        texts = ["".join(islice(rest, len(views))) for views in inputs]
        names = pc.if_else(block["skipped"], block["source"], pa.scalar(None, pa.binary()))
        return pa.table({"lines": pa.array(texts, pa.string()), "skipped": names})


def write_block(block: Any, folder: str, storage: Storage, version: str = __version__) -> Any:
    """Write a part of the output atomically: the last stage.

    The part is named by a digest of its inputs, so that a retry writes the same file.

    Returns:
        Arrow table of one row: the name of the `part`, empty if there are no rows; the number of
        `inputs` and of rows with each label; and the `skipped` names.

    Raises:
        ModelError: this machine has another version of ffd than `version`.
    """
    import pyarrow as pa

    _require_version(version)
    lines = [line for text in block["lines"].to_pylist() for line in text.splitlines()]
    rows = list(map(json.loads, lines))
    skipped = block["skipped"].drop_null().to_pylist()
    name = part_name(row["source"] for row in rows) if rows else ""
    if rows:
        storage.write(folder, name, to_parquet(lines))
    labels = Counter(row["label"] or "errors" for row in rows)
    counts = {kind: [labels[kind]] for kind in COUNTS}
    columns = {"part": [name], "inputs": [len(block) - len(skipped)], **counts}
    return pa.table(columns | {"skipped": pa.array([skipped], pa.list_(pa.binary()))})


def _count_starts(tally: Any, block: Any) -> int:
    import ray

    count: int = ray.get(tally.begin.remote(digest(block["source"].to_pylist())))
    return count


def _item(row: dict[str, Any], storages: dict[str, Storage]) -> Item:
    source = _decode(row["source"])
    skip = None if row["named"] else ignore
    if row["code"]:
        return Item(source, InputError(row["code"], _decode(row["message"])), skip=skip)
    return Item(source, fetch=partial(storages[bucket_of(source)].read, source), skip=skip)


def _read(item: Item) -> Item:
    try:
        return replace(item, fetch=partial(bytes, item.read()))
    except InputError as error:
        return replace(item, error=error)
    except MemoryError:
        return Item(item.source, InputError("too_large", "not enough memory to read it"))
    except StorageError:
        raise
    except Exception as error:  # one name must not end the run
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Item(item.source, InputError("read_failed", f"it cannot be read ({reason})"))


@contextmanager
def _isolating(prepare: Prepare) -> Iterator[Prepare]:
    """Yield a function that calls `prepare` in another process, which an image may crash."""
    pool = None

    def isolated(item: Item) -> list[Prepared]:
        nonlocal pool
        pool = pool or ProcessPoolExecutor(1, get_context("spawn"))
        try:
            return pool.submit(prepare, item).result()
        except BrokenProcessPool:
            pool = None
            return [Prepared(item.source, InputError("corrupt", "decoding it crashes the process"))]

    try:
        yield isolated
    finally:
        if pool:
            pool.shutdown()


def _prepared(block: Any, size: int) -> Iterator[list[Prepared]]:
    """Yield the views of each input of a table, without copying their pixels."""
    names = ("source", "pixels", "faces", "reasons", "code", "message", "skipped")
    for batch in block.to_batches():
        for row in zip(*map(batch.column, names), strict=True):
            source, pixels, faces, reasons, code, message, skipped = row
            if skipped.as_py():
                yield []
                continue
            name = _decode(source.as_py())
            if code.is_valid:
                yield [Prepared(name, InputError(code.as_py(), _decode(message.as_py())))]
                continue
            images = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(-1, size, size, 3)
            yield [
                Prepared(name, image, face=face and tuple(face), reason=reason)
                for image, face, reason in zip(images, faces.as_py(), reasons.as_py(), strict=True)
            ]


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")

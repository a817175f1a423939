"""What runs on a cluster's machines: pictures to pixels, pixels to rows, rows to a part.

Each stage takes and gives Arrow tables, one row an input, so that an input stays whole however the
engine cuts its blocks. Names are bytes, since a file's name need not be text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
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
from ffd_runtime.core.errors import InputError, ModelError, StorageError
from ffd_runtime.core.ordered_map import map_in_order
from ffd_runtime.core.pipeline import Batches, Prepared, prepare_views
from ffd_runtime.image.faces import FaceDetector
from ffd_runtime.inputs import Item
from ffd_runtime.inputs.files import ignore
from ffd_runtime.model.backends import open_backend
from ffd_runtime.model.card import PreprocessSpec
from ffd_runtime.model.devices import limit_cores
from ffd_runtime.outputs.jsonlines import to_line
from ffd_runtime.outputs.parquet_file import to_parquet

from .object_address import place_of
from .output_parts import COUNTS, digest, part_name
from .storage import Storage

# Reads under way in one task: an object store answers in tens of milliseconds, whatever it gives.
READS = 16
# Times that pictures are decoded in the process of a task, before they are suspected of ending it.
# A machine that dies takes its tasks with it, too.
TRIES = 2


Work = Callable[[Item], list[Prepared]]


@dataclass(frozen=True)
class Model:
    """A model's files, on their way to machines that do not have them.

    Attributes:
        files: name to content, the model's own first; an engine's manifest stands beside it.
        backend: `auto` or a name, as for `open_backend`.
        device: `cpu` or `cuda`.
        version: of ffd on the machine that sends it.
    """

    files: dict[str, bytes]
    backend: str
    device: str
    version: str = __version__

    @classmethod
    def read(cls, path: Path, backend: str, device: str) -> Model:
        """The files of a model."""
        manifest = path.with_name(path.name + ".json")
        files = [path, manifest] if manifest.is_file() else [path]
        return cls({file.name: file.read_bytes() for file in files}, backend, device)

    @contextmanager
    def saved(self) -> Iterator[Path]:
        """The model's path on this machine, for as long as it takes to load it.

        Raises:
            ModelError: this machine has another version of ffd, which might see pictures otherwise.
        """
        if self.version != __version__:
            raise ModelError(
                f"a machine of the cluster has ffd-edge {__version__}, this one {self.version}: "
                "install the same on all"
            )
        with TemporaryDirectory(prefix="ffd-") as folder:
            paths = [Path(folder, name) for name in self.files]
            for path in paths:
                path.write_bytes(self.files[path.name])
            yield paths[0]


def describe_model(model: Model, cores: int) -> tuple[str, str]:
    """Start a model on a machine of the cluster: backend and device there, and the card as JSON."""
    limit_cores(cores)
    with model.saved() as path:
        backend = open_backend(path, model.backend, model.device)
    try:
        return backend.description, backend.card.to_json()
    finally:
        backend.close()


def prepare_block(
    block: Any,
    spec: PreprocessSpec,
    max_pixels: int,
    storages: dict[str, Storage],
    detector: FaceDetector | None = None,
    tally: Any = None,
) -> Any:
    """The first stage: read, decode and preprocess.

    Args:
        block: Arrow table of `source`, whether it was `named` by the user, and `code` and
            `message` of what is known to be unreadable.
        spec: of the model's card.
        max_pixels: larger images are refused.
        storages: what sources are in, by their place.
        detector: finds faces, each of which is judged; None to judge pictures as they are.
        tally: the actor that knows how often this block was begun; None if it never was. What ends
            the process that decodes it, again and again, is decoded in another.

    Returns:
        Arrow table of `source`; `pixels`: of each view, uint8 [size, size, 3], RGB, as bytes, one
        after the other, none if there is no picture; `faces` and `reasons` of the views; `code` and
        `message` of what went wrong; and whether it is `skipped`, as it is not a picture.
    """
    # Machines are shared by many of us: each works with one thread.
    cv2.setNumThreads(1)
    careful = tally is not None and _count_beginnings(tally, block) > TRIES
    items = [_item(row, storages) for row in block.to_pylist()]
    work = partial(prepare_views, spec=spec, max_pixels=max_pixels, detector=detector)
    with _guarding(work) if careful else nullcontext(work) as guarded:
        return _to_table(block["source"], list(map(guarded, _read_ahead(items))))


def _to_table(sources: Any, inputs: list[list[Prepared]]) -> Any:
    import pyarrow as pa

    firsts = [views[0].image if views else None for views in inputs]
    errors = [first if isinstance(first, InputError) else None for first in firsts]
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
            "message": pa.array(
                [error and _encode(error.message) for error in errors], pa.binary()
            ),
            "skipped": pa.array([not views for views in inputs], pa.bool_()),
        }
    )


class Infer:
    """The second stage, which holds the model: rows as lines of JSON.

    Args:
        model: to open.
        batch: images that are inferred together.
        cores: of the processor that it may use.
        tally: the actor that counts what is done; None without one.
    """

    def __init__(self, model: Model, batch: int, cores: int, tally: Any = None) -> None:
        limit_cores(cores)
        with model.saved() as path:
            self._backend = open_backend(path, model.backend, model.device)
        self._batches = Batches(self._backend, batch)
        self._batch = batch
        self._tally = tally

    def __call__(self, block: Any) -> Any:
        """Rows of inputs.

        Args:
            block: Arrow table that `prepare_block` gave.

        Returns:
            Arrow table of `lines`, the rows of each input, and of `skipped`: its name, if it has
            none because it is not a picture.
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


def write_block(block: Any, folder: str, storage: Storage) -> Any:
    """The last stage: a part of the output, whole or not at all.

    Its name comes from its inputs, so that a stage that runs again writes the same part again.

    Args:
        block: Arrow table of `lines` and `skipped`.
        folder: the output.
        storage: what it is in.

    Returns:
        Arrow table of one row: the `part`'s name, empty if there are no rows, its number of
        `inputs` and of each label, and the names that are `skipped`.
    """
    import pyarrow as pa

    lines = [line for text in block["lines"].to_pylist() for line in text.splitlines()]
    rows = list(map(json.loads, lines))
    skipped = block["skipped"].drop_null().to_pylist()
    name = part_name(row["source"] for row in rows) if rows else ""
    if rows:
        storage.write(folder, name, to_parquet(lines))
    labels = Counter(row["label"] or "errors" for row in rows)
    counts = {kind: [labels[kind]] for kind in COUNTS}
    told = {"part": [name], "inputs": [len(block) - len(skipped)], **counts}
    return pa.table(told | {"skipped": pa.array([skipped], pa.list_(pa.binary()))})


def _count_beginnings(tally: Any, block: Any) -> int:
    import ray

    count: int = ray.get(tally.begin.remote(digest(block["source"].to_pylist())))
    return count


def _item(row: dict[str, Any], storages: dict[str, Storage]) -> Item:
    source = row["source"].decode("utf-8", "surrogateescape")
    skip = None if row["named"] else ignore
    if row["code"]:
        return Item(source, InputError(row["code"], _decode(row["message"])), skip=skip)
    return Item(source, fetch=partial(storages[place_of(source)].read, source), skip=skip)


def _read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order, read by threads."""
    with ThreadPoolExecutor(READS, "ffd-read") as pool:
        yield from map_in_order(pool, _read, items, ahead=READS)


def _read(item: Item) -> Item:
    try:
        return replace(item, fetch=partial(bytes, item.read()))
    except InputError as error:
        return replace(item, error=error)
    except MemoryError:
        return Item(item.source, InputError("too_large", "not enough memory for it"))
    except StorageError:
        raise
    except Exception as error:  # whatever one name does, the run goes on
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Item(item.source, InputError("read_failed", f"it cannot be read ({reason})"))


@contextmanager
def _guarding(work: Work) -> Iterator[Work]:
    """Do the work in another process, which an item may end."""
    pool = None

    def guarded(item: Item) -> list[Prepared]:
        nonlocal pool
        pool = pool or ProcessPoolExecutor(1, get_context("spawn"))
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            pool = None
            return [Prepared(item.source, InputError("corrupt", "decoding it ends the program"))]

    try:
        yield guarded
    finally:
        if pool:
            pool.shutdown()


def _prepared(block: Any, size: int) -> Iterator[list[Prepared]]:
    """The views of each of a table's inputs; their pixels are not copied."""
    names = ("source", "pixels", "faces", "reasons", "code", "message", "skipped")
    for batch in block.to_batches():
        for row in zip(*map(batch.column, names), strict=True):
            source, pixels, faces, reasons, code, message, skipped = row
            if skipped.as_py():
                yield []
                continue
            name = source.as_py().decode("utf-8", "surrogateescape")
            if code.is_valid:
                yield [Prepared(name, InputError(code.as_py(), _decode(message.as_py())))]
                continue
            images = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(-1, size, size, 3)
            yield [
                Prepared(name, image, face=face and tuple(face), reason=reason)
                for image, face, reason in zip(images, faces.as_py(), reasons.as_py(), strict=True)
            ]


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")

"""What runs on a cluster's machines: pictures to pixels, pixels to rows, rows to a part.

Each stage takes and gives Arrow tables, one row an input, so that an input stays whole however the
engine cuts its blocks. Names are bytes, since a file's name need not be text.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from .. import __version__
from ..backends import open_backend
from ..card import PreprocessSpec
from ..decode import Image
from ..devices import limit_cores
from ..errors import InputError, ModelError
from ..pipeline import Batches, Prepared, prepare_views
from ..sinks.jsonlines import to_line
from ..sinks.parquet import to_parquet
from ..sources import Item
from .address import place_of
from .parts import COUNTS, digest, part_name
from .storage import Storage

# Reads under way in one task: an object store answers in tens of milliseconds, whatever it gives.
READS = 16
# Times that pictures are decoded in the process of a task, before they are suspected of ending it.
# A machine that dies takes its tasks with it, too.
TRIES = 2


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
    tally: Any = None,
) -> Any:
    """The first stage: read, decode and preprocess.

    Args:
        block: Arrow table of `source`, and `code` and `message` of what is known to be unreadable.
        spec: of the model's card.
        max_pixels: larger images are refused.
        storages: what sources are in, by their place.
        tally: the actor that knows how often this block was begun; None if it never was. What ends
            the process that decodes it, again and again, is decoded in another.

    Returns:
        Arrow table of `source`, `pixels` (uint8 [size, size, 3], RGB, as bytes; none if there is no
        picture), and `code` and `message` of what went wrong.
    """
    import pyarrow as pa

    # Machines are shared by many of us: each works with one thread.
    cv2.setNumThreads(1)
    careful = tally is not None and _count_beginnings(tally, block) > TRIES
    items = [_item(row, storages) for row in block.to_pylist()]
    pixels = np.empty((len(items), spec.size, spec.size, 3), np.uint8)
    ends = [0]
    errors: list[InputError | None] = []
    work = partial(_prepare, spec=spec, max_pixels=max_pixels)
    with _guarding(work) if careful else nullcontext(work) as guarded:
        for image in map(guarded, _read_ahead(items)):
            if isinstance(image, InputError):
                errors.append(image)
                ends.append(ends[-1])
            else:
                pixels[ends[-1]] = image
                errors.append(None)
                ends.append(ends[-1] + 1)
    offsets = np.array(ends, np.int64) * (spec.size * spec.size * 3)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(pixels[: ends[-1]])]
    return pa.table(
        {
            "source": block["source"],
            "pixels": pa.Array.from_buffers(pa.large_binary(), len(items), buffers),
            "code": pa.array([error and error.code for error in errors], pa.string()),
            "message": pa.array([error and _encode(error.message) for error in errors]),
        }
    )


class Infer:
    """The second stage, which holds the model: a line of JSON for each input.

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
        """Arrow table of `line`, in the order of the table that `prepare_block` gave."""
        import pyarrow as pa

        prepared = iter(_prepared(block, self._backend.card.preprocess.size))
        lines: list[str] = []
        while some := list(islice(prepared, self._batch)):
            lines += map(to_line, self._batches.infer(some))
        if self._tally:
            self._tally.add.remote(len(lines))
        return pa.table({"line": pa.array(lines, pa.string())})


def write_block(block: Any, folder: str, storage: Storage) -> Any:
    """The last stage: a part of the output, whole or not at all.

    Its name comes from its inputs, so that a stage that runs again writes the same part again.

    Args:
        block: Arrow table of `line`.
        folder: the output.
        storage: what it is in.

    Returns:
        Arrow table of one row: the `part`'s name, and its number of `inputs` and of each label.
    """
    import pyarrow as pa

    lines = block["line"].to_pylist()
    rows = list(map(json.loads, lines))
    name = part_name(row["source"] for row in rows)
    storage.write(folder, name, to_parquet(lines))
    labels = Counter(row["label"] or "errors" for row in rows)
    counts = {kind: [labels[kind]] for kind in COUNTS}
    return pa.table({"part": [name], "inputs": [len({row["source"] for row in rows})], **counts})


def _count_beginnings(tally: Any, block: Any) -> int:
    import ray

    count: int = ray.get(tally.begin.remote(digest(block["source"].to_pylist())))
    return count


def _item(row: dict[str, Any], storages: dict[str, Storage]) -> Item:
    source = row["source"].decode("utf-8", "surrogateescape")
    if row["code"]:
        return Item(source, InputError(row["code"], _decode(row["message"])))
    return Item(source, fetch=partial(storages[place_of(source)].read, source))


def _read_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The items in their order, read by threads."""
    with ThreadPoolExecutor(READS, "ffd-read") as pool:
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(pool.submit(_read, item))
            if len(waiting) > READS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(item: Item) -> Item:
    try:
        return Item(item.source, fetch=partial(bytes, item.read()))
    except InputError as error:
        return Item(item.source, error)
    except MemoryError:
        return Item(item.source, InputError("too_large", "not enough memory for it"))


def _prepare(item: Item, spec: PreprocessSpec, max_pixels: int) -> Image | InputError:
    (prepared,) = prepare_views(item, spec, max_pixels)
    return prepared.image


@contextmanager
def _guarding(
    work: Callable[[Item], Image | InputError],
) -> Iterator[Callable[[Item], Image | InputError]]:
    """Do the work in another process, which an item may end."""
    pool = None

    def guarded(item: Item) -> Image | InputError:
        nonlocal pool
        pool = pool or ProcessPoolExecutor(1, get_context("spawn"))
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            pool = None
            return InputError("corrupt", "decoding it ends the program")

    try:
        yield guarded
    finally:
        if pool:
            pool.shutdown()


def _prepared(block: Any, size: int) -> Iterator[Prepared]:
    """A table's inputs; their pixels are not copied."""
    names = ("source", "pixels", "code", "message")
    for batch in block.to_batches():
        for source, pixels, code, message in zip(*map(batch.column, names), strict=True):
            name = source.as_py().decode("utf-8", "surrogateescape")
            if code.is_valid:
                yield Prepared(name, InputError(code.as_py(), _decode(message.as_py())))
            else:
                image = np.frombuffer(pixels.as_buffer(), np.uint8)
                yield Prepared(name, image.reshape(size, size, 3))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")

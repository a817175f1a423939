"""Batches that run on a backend while the host prepares the next ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest

from ffd_runtime.core import pipeline
from ffd_runtime.core.errors import BackendError, DeviceMemoryError, InputError
from ffd_runtime.core.pipeline import Batches, Prepared, classify_items
from ffd_runtime.model.backends import Asynchronous, Backend, Outputs, open_backend
from ffd_runtime.model.within_memory import WithinMemory

from ..models import CARD
from .fake_cuda import FakeCuda
from .fake_tensorrt import ICudaEngine, assert_right, images, save_engine

PACES = {"both at once": {0, 1}, "late inference": {1}, "late copies": {0}, "both late": set[int]()}


def prepare(count: int, seed: int = 0) -> list[Prepared]:
    return [Prepared(f"{seed}/{i}", image) for i, image in enumerate(images(count, seed))]


def expected(prepared: list[Prepared]) -> list[float]:
    pixels = [entry.image for entry in prepared if not isinstance(entry.image, InputError)]
    return [float(image[0, :, 0].mean() / 255) for image in pixels]


def ready_at_once(given: list[Prepared]) -> type:
    """Return a `_PrepareAhead` whose next image is always ready."""

    class Ahead:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> Iterator[list[Prepared]]:
            return ([entry] for entry in given)

    return Ahead


def test_the_device_is_never_idle_while_the_host_has_work(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches are at most as large as the engine's, as in ffd-run.

    The fake device works only while a thread waits for it. Whenever the host waits or uses rows,
    work must therefore be queued for the device.
    """
    cuda.eager = set()
    opened = open_backend(save_engine(tmp_path))
    opened.infer(images(16))  # captures the graphs that are launched below
    given = prepare(30)
    monkeypatch.setattr(pipeline, "_PrepareAhead", ready_at_once(given))
    started = cuda.launches
    waits = []

    def left() -> int:
        return 7 - (cuda.launches - started)

    def on_wait() -> None:
        waits.append(left())
        # The batch that the host waits for, and the next one.
        assert cuda.waiting_inferences() == 2 or not left()

    cuda.on_wait = on_wait
    rows = []
    for row in classify_items([], opened, batch=4, workers=1):
        assert cuda.waiting_inferences() >= 1 or not left()
        rows.append(row)
    assert waits == [5, 4, 3, 2, 1, 0, 0, 0]
    assert [row.source for row in rows] == [entry.source for entry in given]
    assert np.allclose([row.score or 0 for row in rows], expected(given), atol=1e-6)


def test_rows_do_not_wait_for_the_next_batch(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    cuda.eager = set()
    batches = Batches(open_backend(save_engine(tmp_path)), 4)
    given = prepare(4)
    assert list(batches.submit(given)) == []
    assert list(batches.ready()) == []
    for stream in cuda.streams.values():  # the GPU finishes
        stream.run(None, force=True)
    assert [row.source for row in batches.ready()] == [entry.source for entry in given]


def test_rows_are_returned_before_the_next_batch_is_full(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host needs longer for an image than the GPU for a batch."""
    cuda.eager = set()
    given = prepare(7)
    seen: list[int] = []
    rows: list[Any] = []

    def iterate(_: object) -> Iterator[list[Prepared]]:
        for entry in given:
            seen.append(len(rows))
            for stream in cuda.streams.values():
                stream.run(None, force=True)
            yield [entry]

    ahead = ready_at_once(given)
    monkeypatch.setattr(ahead, "__iter__", iterate)
    monkeypatch.setattr(pipeline, "_PrepareAhead", ahead)
    opened = open_backend(save_engine(tmp_path))
    for row in classify_items([], opened, batch=4, workers=1):
        rows.append(row)
    assert seen == [0, 0, 0, 0, 0, 4, 4]
    assert len(rows) == 7


@pytest.mark.parametrize("pace", PACES)
@pytest.mark.parametrize("seed", range(2))
def test_batches_in_any_order_get_their_own_outputs(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, pace: str, seed: int
) -> None:
    """Submit, query and collect at random; some batches are collected twice, some never."""
    cuda.eager = PACES[pace]
    opened: Any = open_backend(save_engine(tmp_path))
    random = Random(seed)
    under_way: list[tuple[Any, Any]] = []
    for step in range(20):
        action = random.choice(("submit", "submit", "collect", "done", "infer", "forget"))
        given = images(random.randint(1, 9), 100 * seed + step)
        if action == "infer":
            assert_right(given, opened.infer(given))
        elif action == "submit" or not under_way:
            reused = given.copy()
            under_way.append((given, opened.submit(reused)))
            reused[:] = 0
        else:
            place = random.randrange(len(under_way))
            sent, pending = under_way[place]
            if action == "forget":
                del under_way[place]
            elif action == "collect" or pending.done():
                assert_right(sent, pending.collect())
                assert pending.done()
    for sent, pending in under_way:
        assert_right(sent, pending.collect())
    opened.close()
    assert not cuda.taken()


def test_batches_of_a_closed_model_fail(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine
) -> None:
    cuda.eager = set()
    opened: Any = open_backend(save_engine(tmp_path))
    pending = opened.submit(images(3))
    opened.close()
    assert not cuda.taken()
    assert pending.done()
    with pytest.raises(BackendError, match="was closed before the batch finished"):
        pending.collect()


def test_rows_of_earlier_batches_come_before_a_failure(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.eager = set()
    batches = Batches(open_backend(save_engine(tmp_path)), 4)
    first = prepare(4)
    assert list(batches.submit(first)) == []
    engine.works = False
    rows = []
    with pytest.raises(BackendError, match="TensorRT failed"):
        for row in batches.submit(prepare(4, 1)):
            rows.append(row)
    assert [row.source for row in rows] == [entry.source for entry in first]


def test_batches_run_one_at_a_time_if_memory_is_short(
    tmp_path: Path, cuda: FakeCuda, engine: ICudaEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no memory for the second lane; the batch size does not change."""
    cuda.eager = set()
    batches = Batches(open_backend(save_engine(tmp_path)), 4)
    engine.contexts = 0
    engine.said = "OutOfMemory"
    given = [prepare(4, seed) for seed in range(4)]
    rows = [row for some in given for row in batches.submit(some)]
    rows += batches.infer([])
    assert {count for count, _ in engine.enqueued} == {4}
    assert [row.source for row in rows] == [entry.source for some in given for entry in some]
    scores = [row.score or 0 for row in rows]
    assert np.allclose(scores, [score for some in given for score in expected(some)], atol=1e-6)
    (message,) = caplog.messages
    assert message.endswith("continuing with one batch at a time")


class Late:
    """An asynchronous backend without a device; its memory holds `most` images."""

    card = CARD
    description = "late"
    lanes = 2

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise DeviceMemoryError("out of memory")
        score = images[:, 0, :, 0].mean(1, dtype=np.float32) / 255
        return Outputs(np.stack([score, 1 - score], 1), images[:, :3, :3, 2].astype(np.float32))

    def submit(self, images: npt.NDArray[np.uint8]) -> Any:
        if len(images) > self.most:
            self.sizes.append(len(images))
            raise DeviceMemoryError("out of memory")
        copied = images.copy()

        class Later:
            def done(_) -> bool:
                return False

            def collect(_) -> Outputs:
                return self.infer(copied)

        return Later()

    def close(self) -> None: ...


def test_a_batch_that_does_not_fit_is_halved() -> None:
    backend = Late(3)
    assert isinstance(backend, Asynchronous)
    batches = Batches(backend, 8)
    given = [prepare(8), prepare(5, 1)]
    unreadable = Prepared("x", InputError("empty", "it is empty"))
    given[1].insert(2, unreadable)
    rows = [row for some in given for row in batches.submit(some)]
    rows += batches.infer([])
    assert [row.source for row in rows] == [entry.source for some in given for entry in some]
    scores = [row.score for row in rows if row.score is not None]
    assert np.allclose(scores, expected(given[0] + given[1]), atol=1e-6)
    assert max(backend.sizes[-2:]) <= 3


class Plain:
    """A synchronous backend, with the required methods only."""

    card = CARD
    description = "plain"

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def infer(self, images: npt.NDArray[np.uint8]) -> Outputs:
        self.sizes.append(len(images))
        score = images[:, 0, :, 0].mean(1, dtype=np.float32) / 255
        return Outputs(np.stack([score, 1 - score], 1), images[:, :3, :3, 2].astype(np.float32))

    def close(self) -> None: ...


def test_a_backend_may_be_synchronous() -> None:
    plain = Plain()
    backend: Backend = plain
    assert not isinstance(backend, Asynchronous)
    assert WithinMemory(backend).lanes == 1
    given = images(3)
    pending = WithinMemory(backend).submit(given)
    assert plain.sizes == [3]
    assert pending.done()
    assert_right(given, pending.collect())
    # Rows are returned by the same call, and the batches stay as submitted.
    batches = Batches(backend, 4)
    for seed in range(3):
        some = prepare(4, seed)
        assert [row.source for row in batches.submit(some)] == [entry.source for entry in some]
    assert plain.sizes == [3, 4, 4, 4]

"""Measure each stage of the pipeline, and compare the whole with the sum of its stages.

The code under test is that of `ffd-run`. Each round measures every stage, backend and batch size
once, so that a change in the machine's speed affects all of them. A ratio is always computed within
one round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.cores import count_cores
from ..core.errors import FfdError, InputError
from ..core.pipeline import classify_items
from ..image.decode import Image, decode
from ..image.preprocess import preprocess
from ..inputs import Item
from ..model.backends import Backend
from ..model.backends.onnxruntime import OnnxRuntime
from .bench_images import BenchImages

# With fewer times, a percentile is one or two outliers.
MIN_TIMES = {95: 20, 99: 100}

Seconds = float


@dataclass
class Samples:
    """Times of one stage.

    Attributes:
        stage: `decode`, `preprocess`, `infer` or `end_to_end`.
        images: number of images of each call.
        backend: name; None for stages before inference, like `batch`.
        batch: images of each inference.
        rounds: for each round, the seconds of every call.
    """

    stage: str
    images: int
    backend: str | None = None
    batch: int | None = None
    rounds: list[list[Seconds]] = field(default_factory=list)

    def per_image(self) -> list[Seconds]:
        """Return the mean seconds per image of each round."""
        return [statistics.fmean(seconds) / self.images for seconds in self.rounds]

    def to_dict(self) -> dict[str, Any]:
        """Return percentiles of a call in milliseconds, and images per second."""
        seconds = [second for one_round in self.rounds for second in one_round]
        return {
            "stage": self.stage,
            "backend": self.backend,
            "batch": self.batch,
            "images_per_call": self.images,
            "n": len(seconds),
            **{f"p{rank}_ms": percentile(seconds, rank) for rank in (50, 95, 99)},
            "images_per_second": round(self.images / statistics.fmean(seconds), 2),
        }


def percentile(seconds: Sequence[Seconds], rank: int) -> float | None:
    """Return a percentile in milliseconds; None if there are too few times."""
    if len(seconds) < MIN_TIMES.get(rank, 1):
        return None
    return round(1000 * float(np.percentile(seconds, rank)), 3)


def find_floors(
    decode: Seconds, preprocess: Seconds, infer: Seconds, threads: int
) -> dict[str, tuple[str, Seconds]]:
    """Return the shortest possible time per image under two assumptions.

    The arguments are seconds per image: on one thread, or for `infer` in its batch. `threads`
    workers with a core each share decode and preprocess.

    Returns:
        A name and seconds per image for `slowest_stage`, where each stage has its own hardware and
        all run in parallel, and for `sum_of_stages`, where all share the same cores.
    """
    stages = {"decode": decode / threads, "preprocess": preprocess / threads, "infer": infer}
    slowest = max(stages, key=lambda name: stages[name])
    return {
        "slowest_stage": (slowest, stages[slowest]),
        "sum_of_stages": ("decode + preprocess + infer", sum(stages.values())),
    }


class Bench:
    """Measure open backends that run the same model; `workers` threads decode and preprocess."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        images: BenchImages,
        batches: Sequence[int],
        workers: int,
    ) -> None:
        self._backends = backends
        self._items = images.items
        self._spec = next(iter(backends.values())).card.preprocess
        self._threads = min(workers, count_cores())
        self._workers = workers
        self._decode = Samples("decode", 1)
        self._preprocess = Samples("preprocess", 1)
        self._infer: dict[tuple[str, int], Samples] = {}
        self._end_to_end: dict[tuple[str, int], Samples] = {}
        for name in backends:
            for batch in batches:
                key = name, batch
                self._infer[key] = Samples("infer", batch, name, batch)
                self._end_to_end[key] = Samples("end_to_end", len(self._pass(batch)), name, batch)

    def run(
        self,
        rounds: int | None = None,
        seconds: float = 20.0,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> int:
        """Measure `rounds` rounds, or start rounds for `seconds`, and return their number."""
        on_step("warming up")
        inputs = self._prepare_all(timed=False)
        for name, batch in self._infer:
            self._backends[name].infer(_stack(inputs, batch))
        done = 0
        end = time.perf_counter() + seconds
        while done < rounds if rounds else (done == 0 or time.perf_counter() < end):
            done += 1
            on_step(f"round {done}")
            self._round()
        return done

    def _round(self) -> None:
        inputs = self._prepare_all()
        for (name, batch), samples in self._infer.items():
            backend, images = self._backends[name], _stack(inputs, batch)
            if isinstance(backend, OnnxRuntime) and backend.on_cuda:
                # Do not pad to the previous batch size, and do not time CUDA's preparation for a
                # new size.
                backend.settle(batch)
                backend.infer(images)
            # 16 images for each batch size, but at least two calls.
            calls = range(max(2, 16 // batch))
            times = []
            for _ in calls:
                begin = time.perf_counter()
                backend.infer(images)
                times.append(time.perf_counter() - begin)
            samples.rounds.append(times)
            self._end_to_end[name, batch].rounds.append([self._time_end_to_end(backend, batch)])

    def _prepare_all(self, timed: bool = True) -> list[Image]:
        """Decode and preprocess each image on this thread."""
        times: tuple[list[Seconds], list[Seconds]] = ([], [])
        inputs = []
        for item in self._items:
            begin = time.perf_counter()
            try:
                image = decode(item.read(), at_least=self._spec.decode_side)
            except InputError as error:
                raise FfdError(f"{item.source} is no longer readable: {error}") from None
            decoded = time.perf_counter()
            inputs.append(preprocess(image, self._spec))
            times[0].append(decoded - begin)
            times[1].append(time.perf_counter() - decoded)
        if timed:
            self._decode.rounds.append(times[0])
            self._preprocess.rounds.append(times[1])
        return inputs

    def _time_end_to_end(self, backend: Backend, batch: int) -> Seconds:
        begin = time.perf_counter()
        rows = list(classify_items(self._pass(batch), backend, batch=batch, workers=self._workers))
        seconds = time.perf_counter() - begin
        for row in rows:
            if row.error:
                raise FfdError(f"{row.source} could not be classified: {row.error.message}")
        return seconds

    def _pass(self, batch: int) -> list[Item]:
        """Repeat the images, so that the start and the end of a pass matter little."""
        least = max(32, 8 * batch)
        return list(self._items) * -(-least // len(self._items))

    def stages(self) -> list[dict[str, Any]]:
        """Return a row for each stage, backend and batch size."""
        rows = [self._decode.to_dict(), self._preprocess.to_dict()]
        for key in self._infer:
            rows += [self._infer[key].to_dict(), self._end_to_end[key].to_dict()]
        return rows

    def distances(self) -> list[dict[str, Any]]:
        """Return end-to-end time and floors, for each backend and batch size."""
        return [self._distance(name, batch) for name, batch in self._infer]

    def _distance(self, name: str, batch: int) -> dict[str, Any]:
        end_to_end = self._end_to_end[name, batch].per_image()
        times = zip(
            self._decode.per_image(),
            self._preprocess.per_image(),
            self._infer[name, batch].per_image(),
            strict=True,
        )
        by_round = [find_floors(*one, threads=self._threads) for one in times]
        median = statistics.median(end_to_end)
        return {
            "backend": name,
            "batch": batch,
            "ms_per_image": round(1000 * median, 3),
            "images_per_second": round(1 / median, 2),
            "floors": {
                kind: _compare(end_to_end, [floors[kind] for floors in by_round])
                for kind in ("slowest_stage", "sum_of_stages")
            },
        }


def _compare(end_to_end: list[Seconds], floors: list[tuple[str, Seconds]]) -> dict[str, Any]:
    """Return a floor, and the median of the rounds' ratios to it."""
    above = [seconds / floor - 1 for seconds, (_, floor) in zip(end_to_end, floors, strict=True)]
    return {
        # If two stages are close, the slowest one may differ between rounds.
        "stage": statistics.mode(stage for stage, _ in floors),
        "ms_per_image": round(1000 * statistics.median(floor for _, floor in floors), 3),
        "above_percent": round(100 * statistics.median(above), 1),
    }


def _stack(inputs: list[Image], batch: int) -> npt.NDArray[np.uint8]:
    return np.stack(list(islice(cycle(inputs), batch)))

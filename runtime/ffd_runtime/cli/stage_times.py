"""How fast each stage is, and how far the whole is from what its stages allow.

Everything goes through the code that `ffd-run` uses. A round measures every stage and every
backend and batch once, so that a machine that slows down or speeds up does so for all of them; a
ratio is always taken within one round.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..core.errors import BackendError, FfdError, InputError
from ..core.machine import describe_cpu, packages
from ..core.pipeline import classify_items
from ..image.decode import Image, decode
from ..image.preprocess import preprocess
from ..inputs import Item
from ..model.backend_registry import find_readers
from ..model.backends import EMBEDDED, Backend, find_model
from ..model.backends.onnxruntime import OnnxRuntime, choose_providers
from ..model.devices import count_cores, count_gpus, describe_gpu

# More pictures make a round longer and tell nothing new.
MOST_PICTURES = 32
# Below so many times a percentile is one or two outliers.
LEAST = {95: 20, 99: 100}

Seconds = float


def make_pictures(folder: Path, count: int = 16, side: int = 1024) -> list[Item]:
    """Synthetic JPEGs of the size and weight of profile pictures, the same at every call.

    Args:
        folder: where they are written.
        count: how many.
        side: width and height in pixels.
    """
    rng = np.random.default_rng(0)
    items = []
    for number in range(count):
        image = np.full((side, side, 3), 128, np.float32)
        # Structure at every scale, weaker the finer, as in photographs.
        for cells, strength in ((4, 90), (32, 40), (256, 14), (side, 5)):
            coarse = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
            image += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        path = folder / f"{number:02}.jpg"
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        items.append(Item(str(path)))
    return items


@dataclass(frozen=True)
class Pictures:
    """What is measured with.

    Attributes:
        items: readable pictures.
        unreadable: inputs that were met before these were together, and left out.
        pixels: mean of width times height.
        size: mean of the files' bytes.
    """

    items: tuple[Item, ...]
    unreadable: int
    pixels: float
    size: float


def choose_pictures(items: Iterable[Item]) -> Pictures:
    """The first `MOST_PICTURES` readable pictures.

    Raises:
        FfdError: there is none.
    """
    readable: list[tuple[Item, int, int]] = []
    unreadable = 0
    for item in items:
        try:
            data = item.read()
            height, width = decode(data).shape[:2]
        except InputError:
            unreadable += 1
            continue
        readable.append((item, height * width, len(data)))
        if len(readable) == MOST_PICTURES:
            break
    if not readable:
        raise FfdError(
            f"no readable picture among the sources ({unreadable} unreadable): name pictures, or "
            "no source to measure with pictures made for it"
        )
    chosen, pixels, sizes = zip(*readable, strict=True)
    return Pictures(chosen, unreadable, statistics.fmean(pixels), statistics.fmean(sizes))


@dataclass
class Samples:
    """Times of one stage.

    Attributes:
        stage: `decode`, `preprocess`, `infer` or `end_to_end`.
        backend: its name; None for stages that come before.
        batch: images inferred together; None for stages that come before.
        pictures: how many a time is of.
        rounds: seconds of every call, by round.
    """

    stage: str
    pictures: int
    backend: str | None = None
    batch: int | None = None
    rounds: list[list[Seconds]] = field(default_factory=list)

    def add(self, seconds: list[Seconds]) -> None:
        """The times of one round."""
        self.rounds.append(seconds)

    def each(self) -> list[Seconds]:
        """Mean seconds a picture, by round."""
        return [statistics.fmean(seconds) / self.pictures for seconds in self.rounds]

    def to_row(self) -> dict[str, Any]:
        """Percentiles of a call in milliseconds, and pictures a second."""
        seconds = [second for one_round in self.rounds for second in one_round]
        return {
            "stage": self.stage,
            "backend": self.backend,
            "batch": self.batch,
            "pictures_per_call": self.pictures,
            "n": len(seconds),
            **{f"p{rank}_ms": percentile(seconds, rank) for rank in (50, 95, 99)},
            "images_per_second": round(self.pictures / statistics.fmean(seconds), 2),
        }


def percentile(seconds: Sequence[Seconds], rank: int) -> float | None:
    """A percentile in milliseconds; None where there are too few times to tell it."""
    if len(seconds) < LEAST.get(rank, 1):
        return None
    return round(1000 * float(np.percentile(seconds, rank)), 3)


def find_floors(
    decode: Seconds, preprocess: Seconds, infer: Seconds, threads: int
) -> dict[str, tuple[str, Seconds]]:
    """The least time a picture can take, by two readings of its stages' times.

    Args:
        decode: seconds a picture takes on one thread.
        preprocess: the same.
        infer: seconds a picture takes, in its batch.
        threads: workers that have a core each; decode and preprocess are spread over them.

    Returns:
        `slowest_stage`, where all stages run at the same time on hardware of their own, and
        `sum_of_stages`, where they take turns on the same cores: a name and seconds a picture.
    """
    stages = {"decode": decode / threads, "preprocess": preprocess / threads, "infer": infer}
    slowest = max(stages, key=lambda name: stages[name])
    return {
        "slowest_stage": (slowest, stages[slowest]),
        "sum_of_stages": ("decode + preprocess + infer", sum(stages.values())),
    }


class Bench:
    """Measures backends that read the same model.

    Args:
        backends: open ones, by name.
        pictures: what to measure with.
        batches: sizes of batches.
        workers: threads that decode and preprocess.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        pictures: Pictures,
        batches: Sequence[int],
        workers: int,
    ) -> None:
        self._backends = backends
        self._items = pictures.items
        self._spec = next(iter(backends.values())).card.preprocess
        self._threads = min(workers, count_cores())
        self._workers = workers
        self._decode = Samples("decode", 1)
        self._preprocess = Samples("preprocess", 1)
        self._infer: dict[tuple[str, int], Samples] = {}
        self._whole: dict[tuple[str, int], Samples] = {}
        for name in backends:
            for batch in batches:
                key = name, batch
                self._infer[key] = Samples("infer", batch, name, batch)
                self._whole[key] = Samples("end_to_end", len(self._pass(batch)), name, batch)

    def run(
        self,
        rounds: int | None = None,
        seconds: float = 20.0,
        tell: Callable[[str], None] = lambda _: None,
    ) -> int:
        """Measure.

        Args:
            rounds: how many; None for as many as begin within `seconds`, at least one.
            seconds: see `rounds`.
            tell: is told what is being measured.

        Returns:
            How many rounds it was.
        """
        tell("warming up")
        inputs = self._prepare_alone(timed=False)
        for (name, batch), _ in self._infer.items():
            self._backends[name].infer(_stack(inputs, batch))
        done = 0
        end = time.perf_counter() + seconds
        while done < rounds if rounds else (done == 0 or time.perf_counter() < end):
            done += 1
            tell(f"round {done}")
            self._round()
        return done

    def _round(self) -> None:
        inputs = self._prepare_alone()
        for (name, batch), samples in self._infer.items():
            backend, images = self._backends[name], _stack(inputs, batch)
            if isinstance(backend, OnnxRuntime) and backend.on_cuda:
                # The size that was measured before must not be the one that this is padded to, and
                # what CUDA prepares for a new size is not part of an inference.
                backend.settle(batch)
                backend.infer(images)
            samples.add([_time_inference(backend, images) for _ in _calls(batch)])
            self._whole[name, batch].add([self._run_whole(backend, batch)])

    def _prepare_alone(self, timed: bool = True) -> list[Image]:
        """Decode and preprocess each picture on this thread."""
        times: tuple[list[Seconds], list[Seconds]] = ([], [])
        inputs = []
        for item in self._items:
            begin = time.perf_counter()
            try:
                image = decode(item.read(), at_least=self._spec.decode_side)
            except InputError as error:
                raise FfdError(f"{item.source} was readable a moment ago: {error}") from None
            decoded = time.perf_counter()
            inputs.append(preprocess(image, self._spec))
            times[0].append(decoded - begin)
            times[1].append(time.perf_counter() - decoded)
        if timed:
            self._decode.add(times[0])
            self._preprocess.add(times[1])
        return inputs

    def _run_whole(self, backend: Backend, batch: int) -> Seconds:
        begin = time.perf_counter()
        rows = list(classify_items(self._pass(batch), backend, batch=batch, workers=self._workers))
        seconds = time.perf_counter() - begin
        for row in rows:
            if row.error:
                raise FfdError(f"{row.source} could not be classified: {row.error.message}")
        return seconds

    def _pass(self, batch: int) -> list[Item]:
        """All pictures as often as it takes for filling and draining to matter little."""
        least = max(32, 8 * batch)
        return list(self._items) * -(-least // len(self._items))

    def stages(self) -> list[dict[str, Any]]:
        """A row for each stage, backend and batch."""
        rows = [self._decode.to_row(), self._preprocess.to_row()]
        for key in self._infer:
            rows += [self._infer[key].to_row(), self._whole[key].to_row()]
        return rows

    def distances(self) -> list[dict[str, Any]]:
        """How far the whole is above its floors, by backend and batch."""
        return [self._distance(name, batch) for name, batch in self._infer]

    def _distance(self, name: str, batch: int) -> dict[str, Any]:
        whole = self._whole[name, batch].each()
        by_round = [
            find_floors(decode, preprocess, infer, self._threads)
            for decode, preprocess, infer in zip(
                self._decode.each(),
                self._preprocess.each(),
                self._infer[name, batch].each(),
                strict=True,
            )
        ]
        return {
            "backend": name,
            "batch": batch,
            "ms_per_picture": round(1000 * statistics.median(whole), 3),
            "images_per_second": round(1 / statistics.median(whole), 2),
            "floors": {
                kind: _compare(whole, [floors[kind] for floors in by_round])
                for kind in ("slowest_stage", "sum_of_stages")
            },
        }


def _compare(whole: list[Seconds], floors: list[tuple[str, Seconds]]) -> dict[str, Any]:
    """A floor, and how far the whole is above it: the median of the rounds' ratios."""
    above = [ours / floor - 1 for ours, (_, floor) in zip(whole, floors, strict=True)]
    return {
        # Which stage it is may change from round to round where two are close.
        "stage": statistics.mode(stage for stage, _ in floors),
        "ms_per_picture": round(1000 * statistics.median(floor for _, floor in floors), 3),
        "above_percent": round(100 * statistics.median(above), 1),
    }


def _stack(inputs: list[Image], batch: int) -> npt.NDArray[np.uint8]:
    return np.stack(list(islice(cycle(inputs), batch)))


def _calls(batch: int) -> range:
    """Inferences a round: as many pictures for each batch, where that is not too few calls."""
    return range(max(2, 16 // batch))


def _time_inference(backend: Backend, images: npt.NDArray[np.uint8]) -> Seconds:
    begin = time.perf_counter()
    backend.infer(images)
    return time.perf_counter() - begin


def describe_machine() -> dict[str, Any]:
    """What it is measured on."""
    cpu = describe_cpu()
    return {
        "cpu": cpu["name"],
        "cores": cpu["cores_usable"],
        "features": cpu["features"],
        "gpus": [describe_gpu(index).name for index in range(count_gpus())],
        "python": sys.version.split()[0],
        "packages": packages(),
    }


def peak_memory() -> int | None:
    """Bytes of memory that this process held at most; None where the system does not tell."""
    try:
        # getrusage also counts what the parent held when it started this process.
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) << 10
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


# A fresh ffd-run, which says on stderr what memory it held at most.
FRESH = """
from ffd_runtime.cli.run import main
try:
    main()
finally:
    import sys
    from ffd_runtime.cli.stage_times import peak_memory
    print(peak_memory(), file=sys.stderr)
"""
# What no runtime over the same libraries can do without, with the session's options that ours has.
BARE = """
import json, sys
import cv2, numpy, onnxruntime
path, size, threads, providers = sys.argv[1], *map(json.loads, sys.argv[2:])
if len(providers) > 1:
    sys.stdout, out = sys.stderr, sys.stdout
    onnxruntime.preload_dlls()
    sys.stdout = out
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = threads
providers = [tuple(provider) if isinstance(provider, list) else provider for provider in providers]
session = onnxruntime.InferenceSession(path, options, providers=providers)
session.run(None, {"image": numpy.zeros((1, size, size, 3), numpy.uint8)})
print("ran", flush=True)
"""


def bare_session(model: str | None, device: str, size: int) -> list[str]:
    """`BARE` and its arguments, for the session that `ffd-run` makes with onnxruntime.

    Args:
        model: path; None for the embedded one.
        device: as for `open_backend`.
        size: side of the network's input.
    """
    path = find_model(model, device)
    providers = json.dumps(choose_providers(path, device))
    return [BARE, str(path), str(size), str(count_cores()), providers]


def measure_cold_start(
    model: str | None, name: str, device: str, size: int, picture: Item, pairs: int = 5
) -> dict[str, Any]:
    """Time from the start of a fresh process to its first verdict, and of a bare one beside it.

    Args:
        model: path; None for the embedded one.
        name: of the backend, or `auto`.
        device: as for `open_backend`.
        size: side of the network's input.
        picture: the one that is classified.
        pairs: processes of each kind, in turn, after one of each that is not counted.

    Raises:
        BackendError: one of them fails.
    """
    options = ["--backend", name, "--device", device, "--batch", "1", "--json"]
    options += ["--model", model] if model else []
    fresh = [FRESH, *options, "--", picture.source]
    # A backend that is not onnxruntime has no bare time by onnxruntime.
    suffix = Path(model or EMBEDDED).suffix
    is_bare = (find_readers(suffix)[0] if name == "auto" else name) == "onnxruntime"
    bare = bare_session(model, device, size) if is_bare else []
    ours: list[Seconds] = []
    theirs: list[Seconds] = []
    memory: list[int] = []
    for turn in range(pairs + 1):
        seconds, said = _first_line(fresh)
        if turn:
            ours.append(seconds)
            memory += [int(word) for word in said.split()[-1:] if word.isdecimal()]
        if is_bare:
            seconds, _ = _first_line(bare)
            theirs += [seconds] if turn else []
    ratios = [our / their for our, their in zip(ours, theirs, strict=False)]
    return {
        "backend": name,
        "pairs": pairs,
        "first_verdict_ms": round(1000 * statistics.median(ours), 1),
        "bare_ms": round(1000 * statistics.median(theirs), 1) if theirs else None,
        "ratio": round(statistics.median(ratios), 3) if ratios else None,
        "peak_memory_bytes": max(memory, default=None),
    }


def _first_line(script: Sequence[str]) -> tuple[Seconds, str]:
    """Seconds until a fresh Python's first line on stdout, and all that it said on stderr."""
    code, *arguments = script
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as said:
        begin = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and scripts of our own
            [sys.executable, "-P", "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        with process:
            try:
                assert process.stdout
                line = process.stdout.readline()
                seconds = time.perf_counter() - begin
                process.stdout.read()
            except BaseException:
                process.kill()
                raise
        said.seek(0)
        text = said.read()
    if process.returncode or not line:
        last = (text.strip().splitlines() or [f"it ended with code {process.returncode}"])[-1]
        raise BackendError(f"a fresh process gave no verdict: {last}")
    return seconds, text

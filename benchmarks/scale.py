"""Measure the cost of Ray for ffd-run on this machine, and compute the limits of larger clusters.

Usage: python benchmarks/scale.py FACES [PICTURES] [ROUNDS] > benchmarks/scale.csv
       python benchmarks/scale.py --simulate benchmarks/scale.csv > benchmarks/scale_simulation.csv

The first form runs ffd-run with and without --ray in turns, as complete processes, and measures the
cost of each stage. The second form computes larger clusters from these costs and prints its
assumptions first.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from machine import describe

from ffd_cluster.cluster_run import WAVE_INPUTS, make_tables
from ffd_cluster.output_parts import Parts
from ffd_cluster.plan import Plan
from ffd_cluster.ray_connection import BLOCK_BYTES, connected
from ffd_cluster.ray_pipeline import MAX_TASK_INPUTS, MIN_TASK_INPUTS, Work, run, try_model
from ffd_cluster.seen_inputs import Seen, identify
from ffd_cluster.stages import MAX_READS, Infer, Model, prepare_block
from ffd_cluster.storage import Storage
from ffd_cluster.tally import start_tally
from ffd_runtime.core.cores import count_cores
from ffd_runtime.core.errors import InputError
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.card import ModelCard, PreprocessSpec

COMMAND = Path(sys.executable).with_name("ffd-run")
PICTURES = 20_000
MAX_PIXELS = 1 << 27
# Images whose stages are timed. Blocks of a short and a long run of empty tasks.
SAMPLE = 600
BLOCKS = (40, 400)
# Inputs that are known before another is added.
KNOWN = 4_000_000

# --- assumptions of the simulation ---
TOTAL = 200_000_000
NODES = tuple(2**power for power in range(9))
CORES = 16
# Amazon S3 user guide, "Best practices design patterns: optimizing Amazon S3 performance": lower
# limit of GET and HEAD requests a second for a prefix.
REQUESTS = 5_500
# pyarrow requests an object's size before its content: HEAD and GET.
REQUESTS_EACH = 2
# Seconds. Amazon S3's performance guidelines: the median of requests below 512 KB is often tens of
# milliseconds.
LATENCY = 0.05
# S3 API reference, ListObjectsV2: largest number of names in a response. The seconds are assumed.
LISTED, LISTING = 1_000, 0.1
# Bytes a second of a machine with 16 cores: 5 Gbit/s.
BANDWIDTH = 5e9 / 8


@dataclass(frozen=True)
class Stages:
    """Measured costs of a run. `ROWS` describes each with its unit."""

    prepare: float
    infer: float
    size: float
    begin: float
    block: float
    each: float
    known: float


ROWS = {
    "prepare": "CPU ms a picture: read and decode and preprocess",
    "infer": "CPU ms a picture: inference with one thread",
    "size": "bytes a picture",
    "begin": "seconds of a wave with hardly any inputs",
    "block": "driver's CPU ms a block of pictures",
    "each": "driver's CPU us an input",
    "known": "driver's CPU ms a wave for each million inputs before it",
}
CORES_HERE = "cores of this machine"
RATE = "images a second: --ray --actors {actors} / plain"


def time_run(folder: Path, pictures: int, *options: str) -> float:
    """Measure seconds of a complete ffd-run."""
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "out" if options else "out.parquet")
        command = [str(COMMAND), str(folder), "--device", "cpu", "--output", str(output), *options]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        assert done.returncode == 0, done.stderr
        rows = pyarrow.parquet.read_table(output, columns=["source", "label"])
        assert len(set(rows["source"].to_pylist())) == len(rows) == pictures, len(rows)
        assert rows["label"].null_count == 0
    return seconds


def whole_runs(faces: list[Path], pictures: int, rounds: int) -> list[float]:
    """Measure median seconds of ffd-run: without Ray, with one actor, and with two."""
    ways = ((), ("--ray", "--actors", "1"), ("--ray", "--actors", "2"))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "pictures")
        folder.mkdir()
        for number in range(pictures):
            # Links, so that the run opens many files and the disk stores few.
            (folder / f"{number:06}.jpg").symlink_to(faces[number % len(faces)])
        for face in faces[:pictures]:
            face.read_bytes()
        times = [[time_run(folder, pictures, *way) for way in ways] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def cpu(work: Callable[[], object]) -> float:
    """Measure this process's CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_stages(faces: list[Path]) -> Stages:
    """Measure the cost of each stage on this machine."""
    model = Model.read(EMBEDDED, "auto", "cpu")
    begin, block, spec = measure_driver(model)
    each, known = measure_names()
    some = faces[:: max(1, len(faces) // SAMPLE)][:SAMPLE]
    per_block = pictures_in_block(spec)
    plan = Plan(1, -(-len(some) // (8 * per_block)), 0, 1, "cpu")
    tables = make_tables([Item(str(face)) for face in some], plan)
    storages = {"": Storage.of("")}
    prepared = [prepare_block(table, spec, MAX_PIXELS, storages) for table in tables]
    infer = Infer(model, batch=16, cores=1)
    infer(prepared[0])
    prepare_seconds = cpu(
        lambda: [prepare_block(table, spec, MAX_PIXELS, storages) for table in tables]
    )
    return Stages(
        prepare=1e3 * prepare_seconds / len(some),
        infer=1e3 * cpu(lambda: [infer(table) for table in prepared]) / len(some),
        size=statistics.mean(face.stat().st_size for face in some),
        begin=begin,
        block=1e3 * block,
        each=1e6 * each,
        known=1e3 * known,
    )


def measure_driver(model: Model) -> tuple[float, float, PreprocessSpec]:
    """Measure seconds of a small wave and the driver's CPU seconds a block; return the spec, too.

    The pipeline is that of a run. Its inputs are marked as unreadable, so that its tasks are empty
    and the driver is the bottleneck.
    """
    with tempfile.TemporaryDirectory() as scratch, connected(None, verbose=False) as ray:
        plan = Plan.of(ray.nodes(), "cpu")
        card: ModelCard = try_model(ray, model, plan)[1]
        folder = Path(scratch, "out")
        folder.mkdir()
        parts = Parts(str(folder), Storage.of(str(folder)))
        work = Work(model, card.preprocess, parts, MAX_PIXELS, batch=16, part=10_000)
        tally = start_tally(ray)

        def run_blocks(blocks: int) -> None:
            error = InputError("empty", "no bytes")
            count = blocks * pictures_in_block(card.preprocess)
            items = [Item(f"pictures/{number:09}.jpg", error) for number in range(count)]
            tables = make_tables(items, replace(plan, cpus=blocks // 8))
            assert len(tables) == blocks
            rows = sum(told[1] for told in run(ray, work, plan, tables, {}, tally))
            assert rows == count

        start = time.perf_counter()
        run_blocks(8)
        begin = time.perf_counter() - start
        short, long = (cpu(partial(run_blocks, count)) for count in BLOCKS)
        return begin, (long - short) / (BLOCKS[1] - BLOCKS[0]), card.preprocess


def measure_names() -> tuple[float, float]:
    """Measure the driver's CPU seconds an input, and a wave for each million known inputs."""
    seen = Seen()
    count = 100_000
    items = [Item(f"s3://bucket/folder/{number:012}.jpg") for number in range(count)]
    plan = Plan(1, count // 8 // 64, 0, 1, "cpu")

    def take() -> None:
        # The same work as in ClusterRun.classify between waves.
        new = seen.find_new(item.source for item in items)
        fresh = [item for item, is_new in zip(items, new, strict=True) if is_new]
        seen.add(item.source for item in fresh)
        pending = {identify(item.source): item for item in fresh}
        make_tables(list(pending.values()), plan)

    each = cpu(take) / count
    seen.add(str(number) for number in range(KNOWN))
    return each, cpu(lambda: seen.add(["one more"])) / (KNOWN / 1e6)


def pictures_in_block(spec: PreprocessSpec) -> int:
    """Return the number of images in a block between two stages."""
    return BLOCK_BYTES // (spec.size**2 * 3)


def simulate(stages: Stages, nodes: int, prefixes: int, walked: bool) -> tuple[float, str]:
    """Compute hours for `TOTAL` images on a cluster, and the bottleneck.

    Within a wave, all stages overlap, and the slowest decides. Between waves, the cluster waits for
    the driver, which processes names. The names of the next wave are listed meanwhile.

    Args:
        stages: measured costs.
        nodes: number of machines with `CORES` cores.
        prefixes: of the store that are read concurrently.
        walked: names come from LIST requests, otherwise from a list.
    """
    cores = nodes * CORES
    in_task = max(MIN_TASK_INPUTS, min(MAX_TASK_INPUTS, -(-WAVE_INPUTS // (8 * cores))))
    in_block = min(in_task, pictures_in_block(PreprocessSpec()))
    picture = (stages.prepare + stages.infer) / 1e3
    within = {
        "compute": picture / cores,
        "store: latency": REQUESTS_EACH * LATENCY / (MAX_READS * cores),
        "store: requests": REQUESTS_EACH / (REQUESTS * prefixes),
        "network": stages.size / (BANDWIDTH * nodes),
        "driver: tasks": stages.block / 1e3 / in_block,
    }
    slowest = max(within, key=lambda name: within[name])
    # On average, machines are idle for half of the time of the last tasks.
    pause = stages.begin + in_task * picture / 2 + WAVE_INPUTS * stages.each / 1e6
    listing = WAVE_INPUTS * LISTING / LISTED if walked else 0.0
    seconds = dict.fromkeys([*within, "between waves", "store: listing"], 0.0)
    for wave in range(TOTAL // WAVE_INPUTS):
        between = pause + wave * stages.known / 1e3 * WAVE_INPUTS / 1e6
        work = WAVE_INPUTS * within[slowest]
        if listing > work + between:
            seconds["store: listing"] += listing
        else:
            seconds[slowest] += work
            seconds["between waves"] += between
    return sum(seconds.values()) / 3600, max(seconds, key=lambda name: seconds[name])


def read_values(path: Path) -> dict[str, float]:
    """Read measured values by name from a CSV of this script."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {row["what"]: float(row["ours"]) for row in csv.DictReader(lines)}


def print_simulation(path: Path) -> None:
    """Print a CSV of clusters: assumptions, then a row for each cluster."""
    values = read_values(path)
    stages = Stages(**{name: values[what] for name, what in ROWS.items()})
    print(f"# computed, not run: {TOTAL} pictures, from the stages in {path.name}:")
    for field in fields(Stages):
        print(f"#   {getattr(stages, field.name):.6g} {ROWS[field.name]}")
    cores, done = values[CORES_HERE], values[RATE.format(actors=2)]
    alone = 1e3 * cores / (stages.prepare + stages.infer)
    print(
        f"# a check: on the {cores:g} cores that they were measured on, these stages would give "
        f"{alone:.1f} images a second; --ray did {done:g} there, Ray's start included"
    )
    print(
        f"# assumed: {CORES} cores a machine as fast as those, {BANDWIDTH * 8 / 1e9:g} Gbit/s; "
        f"S3 with {REQUESTS} requests a second a prefix, {REQUESTS_EACH} requests a picture, "
        f"{LATENCY:g} s each, {MAX_READS} at a time a core; LIST {LISTED} names in {LISTING:g} s, "
        f"one at a time; waves of {WAVE_INPUTS} inputs"
    )
    print("names,prefixes_at_a_time,machines,images_a_second,hours,limit")
    for names, prefixes in (("walked", 1), ("list", 64)):
        for nodes in NODES:
            hours, limit = simulate(stages, nodes, prefixes, names == "walked")
            print(f"{names},{prefixes},{nodes},{TOTAL / hours / 3600:.0f},{hours:.1f},{limit}")


def main() -> None:
    """Print a CSV: what, our value, the reference, their ratio, and its limit."""
    if sys.argv[1] == "--simulate":
        print_simulation(Path(sys.argv[2]))
        return
    faces = [Path(item.source).resolve() for item in find_files([sys.argv[1]])]
    faces = [face for face in faces if face.suffix in (".jpg", ".png")]
    pictures = int(sys.argv[2]) if len(sys.argv) > 2 else PICTURES
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    # Do not connect to a running cluster.
    os.environ.pop("RAY_ADDRESS", None)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        os.environ["RAY_TMPDIR"] = folder
        measure(faces, pictures, rounds)


def measure(faces: list[Path], pictures: int, rounds: int) -> None:
    """Print the costs of a run with and without Ray, and of its stages."""
    print(f"# {describe()}; {pictures} pictures, whole processes; {rounds} rounds")
    print("what,ours,reference,ratio,must_be", flush=True)
    plain, *by_ray = whole_runs(faces, pictures, rounds)
    for actors, seconds in enumerate(by_ray, 1):
        pair = f"{pictures / seconds:.1f},{pictures / plain:.1f},{plain / seconds:.3f}"
        print(f"{RATE.format(actors=actors)},{pair},")
        limit = "<= 1.15" if actors == len(by_ray) else ""
        ratio = f"{seconds:.1f},{plain:.1f},{seconds / plain:.3f},{limit}"
        print(f"seconds: --ray --actors {actors} / plain,{ratio}")
    print(f"{CORES_HERE},{count_cores()},,,", flush=True)
    stages = measure_stages(faces)
    for field in fields(Stages):
        print(f"{ROWS[field.name]},{getattr(stages, field.name):.6g},,,")


if __name__ == "__main__":
    main()

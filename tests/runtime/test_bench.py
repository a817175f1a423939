"""The numbers of ffd-bench (percentiles, floors, distances) and its images."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.cli.bench import TUNING as commands_tuning
from ffd_runtime.cli.bench import main
from ffd_runtime.cli.bench_images import MAX_IMAGES, choose_images, make_images
from ffd_runtime.cli.cold_start import FRESH, _time_first_line, bare_session, measure_cold_start
from ffd_runtime.cli.stage_times import Bench, Samples, find_floors, percentile
from ffd_runtime.core.errors import BackendError, FfdError
from ffd_runtime.image.decode import decode
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.model.backends import Backend, onnxruntime, open_backend
from ffd_runtime.model.card import PreprocessSpec

from ..models import CARD, save_colour_model
from .test_imports import HEAVY, RUNTIME, loaded_by


def test_help_imports_nothing_heavy() -> None:
    code = "from ffd_runtime.cli.bench import main\nmain(['--help'], standalone_mode=False)"
    assert not loaded_by(code) & {*HEAVY, *RUNTIME}


def test_a_percentile_needs_enough_times() -> None:
    times = [0.001 * number for number in range(1, 101)]
    assert percentile(times[:1], 50) == 1
    assert percentile(times[:19], 95) is None
    assert percentile(times[:20], 95) == pytest.approx(19.05)
    assert percentile(times[:99], 99) is None
    assert percentile(times, 99) == pytest.approx(99.01)


def test_floors_of_known_stages() -> None:
    floors = find_floors(decode=0.004, preprocess=0.006, infer=0.004, threads=2)
    assert floors["slowest_stage"] == ("infer", 0.004)
    assert floors["sum_of_stages"][1] == pytest.approx(0.009)
    assert find_floors(0.004, 0.006, 0.004, threads=1)["slowest_stage"] == ("preprocess", 0.006)


TIME = st.floats(1e-6, 10)


@given(TIME, TIME, TIME, st.integers(1, 256))
def test_the_sum_is_at_least_the_slowest_stage(
    decode: float, preprocess: float, infer: float, threads: int
) -> None:
    floors = find_floors(decode, preprocess, infer, threads)
    slowest, total = floors["slowest_stage"][1], floors["sum_of_stages"][1]
    assert slowest <= total <= 3 * slowest * (1 + 1e-9)
    assert slowest >= infer


def test_a_row_counts_calls_and_images() -> None:
    samples = Samples("infer", 8, "onnxruntime", 8)
    samples.rounds.append([0.1, 0.3])
    samples.rounds.append([0.2])
    assert samples.per_image() == pytest.approx([0.025, 0.025])
    assert samples.to_dict() == {
        "stage": "infer",
        "backend": "onnxruntime",
        "batch": 8,
        "images_per_call": 8,
        "n": 3,
        "p50_ms": 200.0,
        "p95_ms": None,
        "p99_ms": None,
        "images_per_second": 40.0,
    }


def test_synthetic_images_are_the_same_each_time_and_as_large_as_photographs(
    tmp_path: Path,
) -> None:
    first, again = (make_images(_folder(tmp_path, name), count=2) for name in "ab")
    for one, other in zip(first, again, strict=True):
        data = one.read()
        assert data == other.read()
        assert decode(data).shape == (1024, 1024, 3)
        # Photographs of these dimensions have 100 to 600 kB; smooth images decode too fast.
        assert 100_000 < len(data) < 600_000
    assert first[0].read() != first[1].read()


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def test_unreadable_images_are_counted_and_left_out(portraits: Path) -> None:
    (portraits / "0-broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (portraits / "notes.txt").write_text("no picture")
    chosen = choose_images(find_files([str(portraits), "absent.jpg"]))
    assert [Path(item.source).name for item in chosen.items] == [
        "0-red.png",
        "1-blue.png",
        "2-red.png",
    ]
    assert chosen.unreadable == 3
    assert chosen.pixels == 120 * 100
    sizes = [Path(item.source).stat().st_size for item in chosen.items]
    assert chosen.size == statistics.fmean(sizes)


def test_the_number_of_images_is_limited(portraits: Path) -> None:
    names = [str(portraits / "0-red.png")] * (MAX_IMAGES + 5) + ["absent.jpg"]
    chosen = choose_images(find_files(names))
    assert len(chosen.items) == MAX_IMAGES
    assert chosen.unreadable == 0


def test_sources_without_readable_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(FfdError, match=r"no readable image among the sources \(1 unreadable\)"):
        choose_images(find_files([str(tmp_path)]))


def test_a_cold_start_reads_a_member_of_an_archive(colour_model: Path, portraits: Path) -> None:
    data = (portraits / "0-red.png").read_bytes()
    member = Item("a.zip!/a.png", fetch=lambda: data)
    found = measure_cold_start(str(colour_model), "onnxruntime", "cpu", 299, member, pairs=1)
    assert found["first_verdict_ms"] > 0
    assert found["peak_memory_bytes"] > 1 << 25


def test_a_failed_cold_start_states_the_cause(portraits: Path) -> None:
    with pytest.raises(BackendError, match=r"printed no result: .*absent\.onnx"):
        _time_first_line([FRESH, str(portraits / "0-red.png"), "--json", "--model", "absent.onnx"])


def test_every_stage_of_every_batch_is_measured(colour_model: Path, portraits: Path) -> None:
    backend = open_backend(colour_model, "onnxruntime", "cpu")
    images = choose_images(find_files([str(portraits)]))
    bench = Bench({"onnxruntime": backend}, images, [1, 5], workers=2)
    assert bench.run(rounds=2) == 2
    rows = {(row["stage"], row["batch"]): row for row in bench.stages()}
    assert {key: row["n"] for key, row in rows.items()} == {
        ("decode", None): 6,
        ("preprocess", None): 6,
        ("infer", 1): 32,
        ("end_to_end", 1): 2,
        ("infer", 5): 6,
        ("end_to_end", 5): 2,
    }
    # Three images, repeated to at least 32 images and 8 batches.
    assert rows["end_to_end", 1]["images_per_call"] == 33
    assert rows["end_to_end", 5]["images_per_call"] == 42
    assert all(row["images_per_second"] > 0 for row in rows.values())
    assert [(row["backend"], row["batch"]) for row in bench.distances()] == [
        ("onnxruntime", 1),
        ("onnxruntime", 5),
    ]


def test_a_distance_is_computed_within_its_round(colour_model: Path, portraits: Path) -> None:
    backend = open_backend(colour_model, "onnxruntime", "cpu")
    images = choose_images(find_files([str(portraits)]))
    bench = Bench({"auto": backend}, images, [2], workers=1)
    bench.run(rounds=1)
    (row,) = bench.distances()
    for floor in row["floors"].values():
        expected = 100 * (row["ms_per_image"] / floor["ms_per_image"] - 1)
        assert floor["above_percent"] == pytest.approx(expected, rel=0.01, abs=0.2)
    means = {
        (stage["stage"]): 1000 / stage["images_per_second"]
        for stage in bench.stages()
        if stage["stage"] != "end_to_end"
    }
    total = row["floors"]["sum_of_stages"]["ms_per_image"]
    assert total == pytest.approx(sum(means.values()), rel=0.02)


def test_rounds_end_when_the_time_is_over(colour_model: Path, portraits: Path) -> None:
    backend = open_backend(colour_model, "onnxruntime", "cpu")
    images = choose_images(find_files([str(portraits)]))
    steps: list[str] = []
    bench = Bench({"auto": backend}, images, [1], workers=1)
    assert bench.run(seconds=1e-9, on_step=steps.append) == 1
    assert steps == ["warming up", "round 1"]


def test_an_image_that_vanishes_is_named(colour_model: Path, portraits: Path) -> None:
    backend = open_backend(colour_model, "onnxruntime", "cpu")
    images = choose_images(find_files([str(portraits)]))
    (portraits / "1-blue.png").unlink()
    with pytest.raises(FfdError, match=r"1-blue\.png is no longer readable: no such file"):
        Bench({"auto": backend}, images, [1], workers=1).run(rounds=1)


def test_the_bare_session_has_our_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, providers and their options agree for each precision."""
    made: list[tuple[str, list[Any]]] = []
    real = ort.InferenceSession

    def make(path: str, options: Any, providers: list[Any], **fallback: int) -> Any:
        threads = options.intra_op_num_threads
        made.append((path, [options.log_severity_level, threads, providers]))
        return real(path, options, providers=["CPUExecutionProvider"], **fallback)

    monkeypatch.setattr(ort, "InferenceSession", make)
    monkeypatch.setattr(onnxruntime, "count_gpus", lambda: 1)
    for precision in ("fp32", "fp16", "int8"):
        card = CARD.replace(precision=precision).to_json()
        path = save_colour_model(tmp_path / f"{precision}.onnx", card=card)
        made.clear()
        open_backend(path)
        code, *arguments = bare_session(str(path), "auto", 299)
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        exec(code, {})
        # Ours is retried on the CPU, because there is no GPU here.
        assert made[0] == made[-1]
        assert len(made) == (2 if precision == "int8" else 3)


def test_the_bare_session_runs(colour_model: Path) -> None:
    code, *arguments = bare_session(str(colour_model), "cpu", 299)
    command = [sys.executable, "-c", code, *arguments]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"ran\n"


def test_cuda_options_are_refused_without_cuda(colour_model: Path, portraits: Path) -> None:
    arguments = [str(portraits), "--model", str(colour_model), "--device", "cpu"]
    outcome = CliRunner().invoke(main, [*arguments, "--cuda-option", "prefer_nhwc"])
    assert outcome.exit_code == 1
    line = outcome.stderr.splitlines()[-1]
    assert "--cuda-option prefer_nhwc applies only to onnxruntime on CUDA" in line
    assert line.endswith(": leave it out, or give --device cuda")
    outcome = CliRunner().invoke(main, [*arguments, "--cuda-option", "use_tf32"])
    assert outcome.exit_code == 2


def test_each_cuda_option_is_measured_and_all_together(
    tmp_path: Path, portraits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake CUDA backend records the opened models and the settled batch sizes."""
    opened: list[tuple[str, tuple[str, ...]]] = []
    settled: list[int] = []

    class OnCuda(onnxruntime.OnnxRuntime):
        on_cuda = True

        def settle(self, count: int) -> None:
            settled.append(count)

    def open_model(path: Path, device: str, tuning: tuple[str, ...] = ()) -> Backend:
        opened.append((device, tuning))
        plain: Any = real(path, "cpu")
        return OnCuda(plain._session, plain.card, "CUDA")

    real = onnxruntime.open_model
    assert commands_tuning == onnxruntime.TUNING
    monkeypatch.setattr(onnxruntime, "open_model", open_model)
    card = CARD.replace(preprocess=PreprocessSpec(size=32)).to_json()
    model = save_colour_model(tmp_path / "small.onnx", card=card, size=32)
    arguments = ["--model", model, "--device", "cuda:2", "--rounds", 1, "--batch", 2, "--json"]
    for name in onnxruntime.TUNING:
        arguments += ["--cuda-option", name]
    outcome = CliRunner().invoke(main, [str(word) for word in (portraits, *arguments)])
    assert outcome.exit_code == 0, outcome.stderr
    assert opened == [
        ("cuda:2", ()),
        ("cuda:2", ("prefer_nhwc",)),
        ("cuda:2", ("fuse_conv_bias",)),
        ("cuda:2", ("prefer_nhwc", "fuse_conv_bias")),
    ]
    document = json.loads(outcome.stdout)
    assert [row["backend"] for row in document["end_to_end"]] == [
        "auto",
        "onnxruntime+prefer_nhwc",
        "onnxruntime+fuse_conv_bias",
        "onnxruntime+prefer_nhwc+fuse_conv_bias",
    ]
    assert settled == [2] * 4


def test_peak_memory_excludes_the_parent_process() -> None:
    """The parent holds more memory than the child reports."""
    held = np.ones(1 << 28, np.uint8)
    code = (
        "import numpy\nfrom ffd_runtime.core.machine import peak_memory\n"
        "before = peak_memory()\nheld = b'x' * (1 << 26)\nprint(before, peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 1 << 24 < before < held.nbytes
    assert after - before > 0.9 * (1 << 26)

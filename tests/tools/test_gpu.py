"""The tools that check claims on a GPU. Without a GPU, the claims are skipped."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tools.gpu import __main__ as command
from tools.gpu import engines, provider, speed
from tools.gpu.check_models import embedded_card, varied_images
from tools.gpu.claims import (
    CLAIMS,
    FAIL,
    PASS,
    SKIP,
    Claim,
    Outcome,
    Setting,
    Unchecked,
    check_claims,
)
from tools.gpu.report import Report, table, to_line
from tools.gpu.speed import Rate

from ffd_runtime.core.errors import BackendError
from ffd_runtime.model.backends import EMBEDDED, open_backend
from ffd_runtime.model.card import PreprocessSpec
from ffd_runtime.model.devices import count_gpus

from ..models import CARD, save_colour_model
from ..tiny import build_tiny

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "engines.md"
MACHINE: dict[str, Any] = {
    "cpu": "a CPU",
    "cores": 2,
    "gpus": ["NVIDIA H100"],
    "python": "3.11",
    "packages": {"numpy": "2.0"},
    "driver": "580.1",
}


@pytest.mark.gpu
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_the_claim_holds(claim: Claim, tmp_path_factory: pytest.TempPathFactory) -> None:
    # Models in a shared folder are exported only once.
    folder = tmp_path_factory.getbasetemp() / "gpu"
    folder.mkdir(exist_ok=True)
    (outcome,) = check_claims((claim,), Setting(folder, seconds=0.5))
    if outcome.outcome == SKIP:
        pytest.skip(outcome.detail)
    assert outcome.outcome == PASS, outcome.detail


@pytest.mark.skipif(count_gpus() > 0, reason="this machine has a GPU")
def test_without_a_gpu_the_command_exits_with_77(tmp_path: Path) -> None:
    arguments = ["-m", "tools.gpu", "--report", str(tmp_path / "report.md")]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == command.NO_GPU == 77
    assert (done.stdout, done.stderr) == (
        "",
        "NVIDIA's driver offers no GPU: nothing was checked\n",
    )
    assert not list(tmp_path.iterdir())


def test_the_page_lists_exactly_the_claims() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+?) \| (.+?) \|$", PAGE.read_text(), re.M)
    assert {(name, text) for name, text, _ in rows} == {
        (claim.name, claim.text) for claim in CLAIMS
    }
    assert all(where for _, _, where in rows)


def test_every_claim_has_a_check() -> None:
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert callable(claim.load()), claim


def hold(setting: Setting) -> str:
    return "seen\nthis"


def fail(setting: Setting) -> str:
    from tools.gpu.claims import require

    return require(False, "1 | 2")


def crash(setting: Setting) -> str:
    raise RuntimeError("CUDA failure 700")


def lack(setting: Setting) -> str:
    raise ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")


def test_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("tools.gpu.made_up")
    module.hold, module.fail, module.crash, module.lack = hold, fail, crash, lack
    monkeypatch.setitem(sys.modules, "tools.gpu.made_up", module)
    claims = tuple(
        Claim(name, "x", "made up", f"made_up.{name}") for name in ("hold", "fail", "crash", "lack")
    )
    found = [(one.outcome, one.detail) for one in check_claims(claims, Setting(tmp_path))]
    assert found == [
        (PASS, "seen this"),
        (FAIL, "1 | 2"),
        (FAIL, "RuntimeError: CUDA failure 700"),
        (SKIP, "tensorrt is not installed"),
    ]


TEXT = st.text(max_size=30)
RESULTS = st.lists(
    st.one_of(
        st.builds(
            Outcome,
            st.sampled_from([claim.name for claim in CLAIMS]),
            st.sampled_from([PASS, FAIL, SKIP]),
            TEXT,
            st.floats(0, 1e4),
        ),
        st.builds(
            Rate, TEXT, TEXT, TEXT, st.integers(1, 128), st.none() | st.floats(0, 1e6), note=TEXT
        ),
    )
)


@given(RESULTS, st.integers(0, 60))
def test_results_are_read_with_a_truncated_last_line(
    results: list[Outcome | Rate], cut: int
) -> None:
    text = "".join(to_line(result) + "\n" for result in results)
    report = Report(MACHINE)
    report.add_lines(text + to_line(Outcome("cuda-fp32", FAIL, "x" * 30))[: min(cut, 40)])
    assert report.rates == [result for result in results if isinstance(result, Rate)]
    outcomes = [result for result in results if isinstance(result, Outcome)]
    assert report.outcomes == {outcome.claim: outcome for outcome in outcomes}
    page = report.to_markdown()
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    # Two headers and two rules. Each row is one line with the same number of cells.
    assert len(rows) == 4 + len(report.outcomes) + len(report.rates)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {6, 7}


def test_the_report_of_a_run() -> None:
    report = Report(MACHINE)
    for result in (
        Outcome("cuda-starts", PASS, "onnxruntime, CUDA device 0", 3.2),
        Outcome("cuda-fp32", FAIL, "largest difference 1e-3, limit 1e-4"),
        Outcome("lean-match", SKIP, "tensorrt_lean is not installed"),
        Rate("embedded", "onnxruntime FP16", "arrays", 32, 4000.4),
        Rate("embedded", "onnxruntime FP16", "256 px", 32, 3000.0, 0.75),
        Rate("embedded", "rtx FP16", "arrays", 32, None, note="tensorrt_rtx is not installed"),
    ):
        report.add_lines(to_line(result))
    page = report.to_markdown()
    assert "1 claims of docs/engines.md hold, 1 fail, 1 were skipped." in page
    assert "# ffd on NVIDIA H100\n" in page
    assert "driver 580.1" in page
    assert "| embedded | onnxruntime FP16 | arrays | 32 | 4000 |  |" in page
    assert "| embedded | onnxruntime FP16 | 256 px | 32 | 3000 | 75% |" in page
    assert "| embedded | rtx FP16 | arrays | 32 | tensorrt_rtx is not installed |  |" in page
    assert not report.holds


def test_a_report_holds_without_failures() -> None:
    report = Report(MACHINE)
    assert not report.holds  # no results
    report.add_lines(to_line(Outcome("lean-match", SKIP, "not installed")))
    assert not report.holds
    report.add_lines(to_line(Outcome("cuda-starts", PASS, "")))
    assert report.holds
    # The process crashed before it checked the other claims.
    report.end_part("onnxruntime", "ended with code -11")
    assert not report.holds
    assert report.outcomes["cuda-starts"].outcome == PASS
    assert report.outcomes["cuda-fp32"].detail == "the process ended with code -11"
    assert "engine-rows" not in report.outcomes
    assert "- A part failed: onnxruntime: ended with code -11" in report.to_markdown()


def test_a_process_reports_how_it_failed() -> None:
    def run(code: str, limit: float = 30) -> str | None:
        return command.run_process([sys.executable, "-c", code], limit)

    assert run("") is None
    assert run("raise SystemExit(3)") == "ended with code 3"
    assert run("import time; time.sleep(60)", 0.5) == "ran for more than 0 seconds"


def test_parts_run_and_their_results_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts are replaced by functions that write the same lines."""

    def run(given: list[str]) -> str | None:
        part = given[given.index("--part") + 1]
        lines = Path(given[given.index("--lines") + 1])
        if part == "onnxruntime":
            lines.write_text(to_line(Outcome("cuda-starts", PASS, "seen")) + "\n")
        return "ended with code 1" if part == "engine" else None

    monkeypatch.setattr(command, "run_process", run)
    monkeypatch.setattr(command, "describe", lambda: MACHINE)
    monkeypatch.setattr(command, "count_gpus", lambda: 1)
    path = tmp_path / "report.md"
    arguments = ["--report", str(path), "--part", "onnxruntime"]
    outcome = CliRunner().invoke(command.main, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "| cuda-starts |" in path.read_text()
    outcome = CliRunner().invoke(command.main, [*arguments, "--part", "engine"])
    assert outcome.exit_code == 1
    assert "| engine-rows |" in path.read_text()
    outcome = CliRunner().invoke(command.main, [*arguments, "--gpu", "1"])
    assert outcome.exit_code == command.NO_GPU


def test_a_part_writes_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [Rate("m", "w", "arrays", 1, 10.0)]
    monkeypatch.setattr(speed, "measure_all", lambda setting: iter(rates))
    lines = tmp_path / "lines"
    command.run_part("speed", Setting(tmp_path), lines)
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [
        {"rate": dataclasses.asdict(rates[0])}
    ]


def test_a_table_escapes_cells() -> None:
    assert table(("a", "b"), [("1|2", "x\ny")]) == ["| a | b |", "| --- | --- |", "| 1\\|2 | x y |"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the colour model for images of 32x32 pixels."""
    card = CARD.replace(preprocess=PreprocessSpec(size=32)).to_json()
    return save_colour_model(tmp_path_factory.mktemp("m") / "small.onnx", card=card, size=32)


def test_rates_of_a_small_model_on_the_cpu(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "varied_images", lambda count: varied_images(count, 32))
    monkeypatch.setattr(speed, "PICTURES", 16)
    setting = Setting(tmp_path, "cpu", seconds=0.01)
    backend = open_backend(small, "onnxruntime", "cpu")
    rates = list(speed.measure_batches("m", "cpu", speed.settled(backend), setting, (1, 3)))
    assert [rate.batch for rate in rates] == [1, 3]
    assert all(rate.images_per_second and rate.share is None for rate in rates)
    rate = speed.measure_pictures("m", "cpu", backend, 1000.0, tmp_path, 64)
    assert (rate.pictures, rate.batch) == ("64 px", 32)
    assert rate.images_per_second
    assert rate.share == pytest.approx(rate.images_per_second / 1000, abs=1e-3)


def test_a_failed_batch_is_a_note(tmp_path: Path) -> None:
    def infer(images: Any) -> None:
        if len(images) > 1:
            raise RuntimeError("CUDA out of memory\nand more")

    small_then_large = speed.measure_batches(
        "m", "w", infer, Setting(tmp_path, seconds=0.01), (1, 2)
    )
    first, second = small_then_large
    assert first.images_per_second
    assert (second.images_per_second, second.note) == (None, "CUDA out of memory")


def test_a_backend_that_does_not_start_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_it() -> Any:
        raise BackendError("CUDA provider did not start")

    (rate,) = speed.measure_backend("m", "w", open_it, Setting(tmp_path), (256,))
    assert (rate.images_per_second, rate.note) == (None, "CUDA provider did not start")
    monkeypatch.setitem(engines.MODULES, "none", "no_such_builder")
    with pytest.raises(Unchecked, match="no_such_builder is not installed"):
        engines.build_engine(tmp_path, tmp_path / "m.onnx", "none")


def test_pytorch_runs_a_tiny_network_in_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    # Compiling takes long and needs a C++ compiler.
    compiled: list[Any] = []

    def compile_nothing(net: Any, **_: object) -> Any:
        compiled.append(net)
        return net

    monkeypatch.setattr(torch, "compile", compile_nothing)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    images = varied_images(2, 64)
    try:
        ways = dict(speed.torch_ways(build_tiny().eval(), "cpu"))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
    assert list(ways) == [
        "PyTorch FP32, eager",
        "PyTorch bfloat16 autocast, channels_last",
        "PyTorch bfloat16 autocast, channels_last, torch.compile",
    ]
    assert len(compiled) == 1
    exact, *others = [np.asarray(infer(images)) for infer in ways.values()]
    assert exact.shape == (2, 2)
    assert np.allclose(exact.sum(1), 1, atol=1e-5)
    for other in others:
        assert np.abs(other - exact).max() < 0.02


def test_batches_of_many_sizes_are_compared(small: Path) -> None:
    backend = open_backend(small, "onnxruntime", "cpu")
    assert "4 of 4 batches" in provider.mix(backend, (1, 3), 1e-6)

    class Wrong:
        card = backend.card
        description = "wrong"

        def __init__(self, damage: Callable[[Any], Any]) -> None:
            self.damage = damage

        def infer(self, images: Any) -> Any:
            outputs = backend.infer(images)
            return dataclasses.replace(outputs, probability=self.damage(outputs.probability))

        def close(self) -> None:
            pass

    def swap(values: Any) -> Any:
        return values[::-1]

    def spoil(values: Any) -> Any:
        return values if len(values) < 3 else values * np.nan

    for damage in (swap, spoil):
        with pytest.raises(Exception, match="largest difference"):
            provider.mix(Wrong(damage), (1, 4), 1e-6)


def test_nodes_are_read_from_a_profile(small: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = ort.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])
    session.run(None, {"image": varied_images(1, 32)})
    nodes = provider.find_nodes(json.loads(Path(session.end_profiling()).read_text()))
    assert ("Softmax", "CPUExecutionProvider") in nodes
    assert {where for _, where in nodes} == {"CPUExecutionProvider"}


def test_images_have_different_scores() -> None:
    images = varied_images(4)
    assert np.array_equal(images, varied_images(4))
    assert images.shape == (4, 299, 299, 3)
    backend = open_backend(EMBEDDED, "onnxruntime", "cpu")
    assert backend.card == embedded_card()
    scores = backend.infer(images).probability[:, 0]
    assert scores.min() < 0.4
    assert scores.max() > 0.6

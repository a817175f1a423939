"""The commands in this process, so that their lines count as tested; tests/e2e starts them."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ffd_runtime.cli.bench import main as ffd_bench
from ffd_runtime.cli.doctor import main as ffd_doctor
from ffd_runtime.cli.probes import PROBES
from ffd_runtime.cli.run import main as ffd_run
from ffd_runtime.model.backends import BACKENDS


def call(command: click.Command, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_run_with_all_outputs(portraits: Path, colour_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.parquet"
    command = (portraits, "--model", colour_model, "--output", output, "--resume")
    page, shown = tmp_path / "page.html", tmp_path / "shown"
    done = call(ffd_run, *command, "--report", page, "--annotate", shown, "--heatmap", "--table")
    assert done.exit_code == 0, done.output
    assert "generated" in done.stdout
    assert page.exists()
    assert len(list(shown.iterdir())) == 3
    done = call(ffd_run, *command)
    assert "is complete: nothing to resume" in done.stderr


def test_a_resumed_run(portraits: Path, colour_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    command = (portraits, "--model", colour_model, "--output", output)
    call(ffd_run, *command)
    lines = output.read_bytes().splitlines(keepends=True)
    # The state after a kill: the provenance is written before the first row.
    output.unlink()
    partial = tmp_path / "rows.csv.partial"
    call(ffd_run, portraits / "absent", *command[1:3], "--output", output)
    output.rename(partial)
    done = call(ffd_run, *command)
    assert done.exit_code == 1
    assert "continue it with --resume" in done.stderr
    done = call(ffd_run, *command, "--resume")
    assert done.exit_code == 1
    assert "does not describe the run" in done.stderr
    assert partial.exists()
    partial.write_bytes(b"".join(lines[:1]))
    done = call(ffd_run, *command, "--resume")
    assert done.exit_code == 0, done.stderr
    assert output.read_bytes() == b"".join(lines)


def test_every_backend_can_be_selected() -> None:
    (option,) = [parameter for parameter in ffd_run.params if parameter.name == "backend"]
    assert isinstance(option.type, click.Choice)
    assert list(option.type.choices) == ["auto", *BACKENDS]


@pytest.mark.parametrize("form", ["--json", "--table"])
def test_a_benchmark(portraits: Path, colour_model: Path, form: str) -> None:
    options = ("--model", colour_model, "--batch", "2", "--rounds", "1", "--device", "cpu")
    done = call(ffd_bench, portraits, *options, form)
    assert done.exit_code == 0, done.output
    if form == "--json":
        document = json.loads(done.stdout)
        assert [row["stage"] for row in document["stages"]] == [
            "decode",
            "preprocess",
            "infer",
            "end_to_end",
        ]
    else:
        assert "end to end" in done.stdout


def test_the_doctor_prints_a_table() -> None:
    done = call(ffd_doctor, "--table")
    assert done.exit_code == 0, done.output
    assert "onnxruntime cpu started" in done.stdout


@pytest.mark.parametrize(
    "probe",
    [("gpu",), ("opencv",), ("library", "onnxruntime"), ("library", "openvino"), ("model",)],
)
def test_facts_of_probes_are_json(probe: tuple[str, ...]) -> None:
    name, *arguments = probe
    if arguments == ["openvino"]:
        pytest.importorskip("openvino")
    assert json.dumps(PROBES[name](*arguments))


def test_the_doctor_starts_backends() -> None:
    facts = PROBES["start"]("auto", "cpu")
    assert 0 <= facts["score"] <= 1
    assert "onnxruntime" in facts["description"]

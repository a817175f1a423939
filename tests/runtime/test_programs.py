"""The programs behind ffd-run and their options."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from ffd_runtime.cli import program
from ffd_runtime.cli.run import main

# Options of the command itself.
COMMON = {"sources", "listed", "version", "verbose", "debug"}


def test_every_option_belongs_to_a_program_and_every_field_is_an_option() -> None:
    read = {name for one in program.load_programs() for name in one.names}
    declared = {parameter.name for parameter in main.params} - COMMON
    assert read == declared


def test_options_are_read_only_and_typed() -> None:
    for one in program.load_programs():
        assert one.options.__dataclass_params__.frozen
        assert all("Any" not in str(field.type) for field in fields(one.options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jpg", "--show"], "--show applies only to streams"),
        (["0", "--report", "a.html"], "--report applies only to images"),
        (["0", "--batch", "4"], "--batch applies only to images"),
        (["a.jpg", "--part", "4"], "--part needs --ray"),
        (["a.jpg", "--ray", "--output", "out", "--every", "2"], "--every cannot be combined with"),
        (["a.jpg", "--ray", "--output", "o", "--json"], "--json/--table cannot be combined with"),
        (["a.jpg", "--min-face", "9"], "--min-face needs --faces"),
        (["0", "--no-faces", "--min-face", "9"], "--min-face needs --faces"),
        (["a.jpg", "--face-model", "yunet.onnx"], "--face-model needs --faces"),
    ],
)
def test_an_option_of_another_program_is_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_program_is_added_by_one_module_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class SlideOptions(program.RunOptions):
        batch: int

    ran: list[SlideOptions] = []
    module = ModuleType("slides")
    module.PROGRAM = program.Program(  # type: ignore[attr-defined]
        "slides",
        SlideOptions,
        lambda sources, _: sources[0].startswith("slide:"),
        lambda _, options: ran.append(options),
    )
    monkeypatch.setitem(sys.modules, "slides", module)
    monkeypatch.setattr(program, "PROGRAMS", ("slides", *program.PROGRAMS))
    runner = CliRunner()
    assert runner.invoke(main, ["slide:1", "--batch", "3"]).exit_code == 0
    assert [one.batch for one in ran] == [3]
    refused = runner.invoke(main, ["slide:1", "--heatmap"])
    assert (refused.exit_code, "applies only to" in refused.output) == (2, True)


def test_the_help_is_grouped() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    titles = ["Input:", "Model:", "Output:", "Streams:", "Web page:", "Cluster:", "Other options:"]
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert isinstance(main, click.Command)

"""Options that exclude each other, and inputs that cannot be exported."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from ffd_export.cli.export import main
from ffd_export.export_options import ExportOptions
from ffd_export.onnx_file import read_onnx, to_bytes
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.card import ModelCard

from ..models import CARD, save_colour_model
from .conftest import error_of, run


def test_errors_are_one_line(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.onnx").write_bytes(os.urandom(1000))
    (tmp_path / "text").mkdir()
    (tmp_path / "text/notes.txt").write_text("no image")
    bare = save_colour_model(tmp_path / "bare.onnx", card=None)
    engine = tmp_path / "m.engine"
    engine.touch()
    half = tmp_path / "half.onnx"
    half.write_bytes(to_bytes(*_as(EMBEDDED, "fp16")))
    other = save_colour_model(tmp_path / "other.onnx", CARD.to_json(), size=224)
    none = ("--verify", "none")
    for arguments, message in (
        ((tmp_path / "absent.onnx", "--fp16", *none), "no such file"),
        ((tmp_path / "noise.onnx", "--fp16", *none), "is not an ONNX"),
        ((tmp_path / "absent.onnx", "--fp16"), "no such file"),
        ((bare, "--fp16"), "has no model card"),
        ((engine, "--fp16", *none), "is an engine already"),
        ((other, "--fp16", *none), "takes image uint8[N,224,224,3]"),
        ((half, "--int8", "--calibrate", labelled, *none), "is fp16 already"),
        ((EMBEDDED, "--int8", *none), "training images cannot be found"),
        ((EMBEDDED, "--int8", "--calibrate", tmp_path / "empty", *none), "no file in it"),
        ((EMBEDDED, "--int8", "--calibrate", tmp_path / "absent", *none), "no such folder"),
        ((EMBEDDED, "--int8", "--calibrate", tmp_path / "text", *none), "is a readable image"),
        ((EMBEDDED, "--fp16"), "validation images cannot be found"),
        ((EMBEDDED, "--fp16", "--keep", "layer9", *none), "no such layer"),
    ):
        assert message in error_of(*arguments, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _as(path: Path, precision: str) -> tuple[onnx.ModelProto, ModelCard]:
    model, card = read_onnx(path)
    return model, card.replace(precision=precision)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fp16", "--int8"), "two exports"),
        (("--fp16", "--target", "cpu"), "--target is for --int8"),
        (("--fp16", "--calibration", "entropy"), "--calibration is for --int8"),
        (("--keep", "head"), "--keep is for"),
        (("--fp16", "--keep", "auto", "--verify", "none"), "--keep auto needs images"),
        (("--exclude-lean-runtime",), "is for --version-compatible"),
        (("--int8", "--target", "cpu", "--engine", "rtx"), "does not support"),
        (("--fp16", "--max-batch", "4", "--opt-batch", "8"), "larger than"),
        (("--int8", "--opt-batch", "8"), "--opt-batch is for an engine"),
        (
            ("--engine", "rtx", "--timing-cache", "timings"),
            "--timing-cache is for --engine tensorrt",
        ),
        (("--compute-capability", "8.9"), "is for --engine rtx"),
        (("--engine", "tensorrt", "--compute-capability", "8.9"), "is for --engine rtx"),
        (("--int8", "--workspace", "64"), "--workspace is for an engine"),
        (("--int8", "--optimization-level", "0"), "--optimization-level is for an engine"),
        (("--engine", "none", "--fp16", "--hardware-compatibility", "ampere_plus"), "is for an"),
        ((), "is an ONNX already"),
    ],
)
def test_wrong_options_exit_with_2(arguments: tuple[str, ...], message: str) -> None:
    outcome = run(EMBEDDED, *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_the_command_has_the_options_and_defaults_of_the_dataclass() -> None:
    values = main.make_context("ffd-export", []).params
    for name in ("as_json", "verbose", "debug"):
        del values[name]
    assert ExportOptions(**values) == ExportOptions()

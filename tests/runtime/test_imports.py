"""The modules that each package loads, in new interpreters."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from ffd_runtime.cli.program import PROGRAMS

from ..conftest import picture

HEAVY = ("torch", "torchvision", "onnx", "tensorrt", "matplotlib", "pandas", "lightning", "timm")
RUNTIME = ("cv2", "onnxruntime", "numpy", "rich", "urllib3")
# Modules of the standard library that no --help needs.
UNUSED_BY_HELP = ("asyncio", "concurrent", "email", "http", "logging", "signal", "subprocess")
# A command that loads none of these takes at most 1.5 times as long as `import click`.
UNUSED_BY_LONG_HELP = (*UNUSED_BY_HELP, "json", "pathlib", "tempfile", "urllib")
UNUSED = {
    "ffd_runtime.cli.run": (*UNUSED_BY_LONG_HELP, "dataclasses"),
    "ffd_train.cli.eval": UNUSED_BY_LONG_HELP,
    "ffd_train.cli.data": UNUSED_BY_LONG_HELP,
}


def loaded_by(code: str, whole: bool = False) -> set[str]:
    """Return the modules that a piece of code loads in a new interpreter: top-level, or all."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = run.stdout.splitlines()[-1].split()
    return set(names) if whole else {name.split(".")[0] for name in names}


def test_importing_the_package_loads_no_heavy_module() -> None:
    assert not loaded_by("import ffd_runtime") & {*HEAVY, *RUNTIME}


def test_only_web_addresses_need_urllib3() -> None:
    code = "from ffd_runtime.inputs import find_files\n[item.error for item in find_files(['{}'])]"
    assert "urllib3" not in loaded_by(code.format("a.jpg"))
    assert "urllib3" in loaded_by(code.format("http://localhost/a.jpg"))


@pytest.mark.parametrize(
    "module",
    [
        "ffd_runtime.cli.run",
        "ffd_runtime.cli.bench",
        "ffd_runtime.cli.doctor",
        "ffd_train.cli.train",
        "ffd_train.cli.eval",
        "ffd_train.cli.data",
        "ffd_export.cli.export",
    ],
)
def test_help_loads_no_heavy_module(module: str) -> None:
    code = f"from {module} import main\nmain(['--help'], standalone_mode=False)"
    unused = UNUSED.get(module, UNUSED_BY_HELP)
    assert not (loaded_by(code) - loaded_by("import click")) & {*HEAVY, *RUNTIME, *unused}


def test_help_loads_no_program() -> None:
    script = "from ffd_runtime.cli.run import main\nmain(['--help'], standalone_mode=False)"
    assert not loaded_by(script, whole=True) & {*PROGRAMS, "ffd_runtime.cli.program"}


def test_classifying_a_file_loads_no_module_of_the_network(tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    assert cv2.imwrite(str(path), picture())
    code = "from ffd_runtime.cli.run import main\nmain([{!r}, '--json'], standalone_mode=False)"
    assert not loaded_by(code.format(str(path))) & {"http", "email", "ssl", "urllib3"}


def test_onnxruntime_sends_no_telemetry(tmp_path: Path) -> None:
    # It writes a session file to this folder before it sends anything.
    environment = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    code = "from ffd_runtime import Classifier\nClassifier.open()"
    subprocess.run(
        [sys.executable, "-c", code], env={**environment, "TMPDIR": str(tmp_path)}, check=True
    )
    assert not list(tmp_path.iterdir())


def test_the_runtime_imports_no_other_package_of_ffd() -> None:
    code = (
        "import ffd_runtime.core.classifier, ffd_runtime.outputs.table\n"
        "import ffd_runtime.model.backends.onnxruntime\n"
        "import ffd_runtime.model.backends.tensorrt, ffd_runtime.model.backends.openvino\n"
        "import ffd_runtime.outputs.html_report, ffd_runtime.outputs.annotated_copies\n"
        "import onnxruntime"
    )
    assert not loaded_by(code) & {*HEAVY, "ffd_train", "ffd_export", "ffd_cluster"}


def test_importing_export_loads_neither_torch_nor_onnx() -> None:
    code = (
        "import ffd_export.exporting, ffd_export.checkpoint_graph, ffd_export.training_runs\n"
        "import ffd_export.triton"
    )
    assert not loaded_by(code) & {"torch", "torchvision", "lightning", "timm", "onnx", "tensorrt"}


@pytest.mark.parametrize(
    "module",
    [
        "ffd_runtime.model.backends.buckets",
        "ffd_runtime.model.card",
        "ffd_runtime.core.classifier",
        "ffd_runtime.core.log_odds",
        "ffd_runtime.core.ordered_map",
        "ffd_runtime.core.text",
        "ffd_train.stage",
    ],
)
def test_examples_in_docstrings_run(module: str) -> None:
    from importlib import import_module

    outcome = doctest.testmod(import_module(module))
    assert outcome.attempted
    assert not outcome.failed

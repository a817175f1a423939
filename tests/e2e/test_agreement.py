"""ffd-run and ffd-eval agree on every image, with every installed backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest

from ffd_export.parity import LIMITS
from ffd_runtime.core.classifier import Classifier
from ffd_runtime.core.results import Result
from ffd_runtime.model.backends import BACKENDS, EMBEDDED
from ffd_runtime.model.card import CLASSES
from ffd_train.evaluation import evaluate, open_model
from ffd_train.face_data import FaceData, Sample

from .test_run import rows_of, run_here

PRESENT = [
    name
    for name, spec in BACKENDS.items()
    if ".onnx" in spec.suffixes and importlib.util.find_spec(name)
]


@pytest.fixture(scope="module")
def folder(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Link every seventh face of the test split."""
    folder = tmp_path_factory.mktemp("faces")
    for name in CLASSES:
        (folder / name).mkdir()
        for path in sorted((faces / "test" / name).iterdir())[::7]:
            (folder / name / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Sequence[Result]:
    """Results of ffd-eval for these faces."""
    samples = tuple(
        Sample(f"{name}/{path.name}", label, "test", "")
        for label, name in enumerate(CLASSES)
        for path in sorted((folder / name).iterdir())
    )
    with Classifier(open_model(EMBEDDED, "cpu")) as classifier:
        return evaluate(classifier, FaceData(folder, samples)).rows


@pytest.mark.parametrize("backend", PRESENT)
def test_every_verdict_agrees(folder: Path, expected: Sequence[Result], backend: str) -> None:
    limit = LIMITS["fp32"].largest
    given = ("--model", EMBEDDED, "--backend", backend, "--device", "cpu", "--batch", "7")
    code, out, err = run_here(folder, *given)
    assert code == 0, err
    assert backend in err
    rows = rows_of(out)
    assert [row["source"] for row in rows] == [row.source for row in expected]
    assert [row["label"] for row in rows] == [row.label for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert other.score is not None
        assert row["score"] == pytest.approx(other.score, abs=limit)

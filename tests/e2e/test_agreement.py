"""ffd-run and ffd-eval say the same of every picture, by every backend that is here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ffd_export.parity import LIMITS
from ffd_runtime.backends import BACKENDS, EMBEDDED
from ffd_runtime.classifier import Classifier
from ffd_train.data import Sample
from ffd_train.evaluation import evaluate, open_model

from .test_run import rows_of, run

PRESENT = [
    name
    for name, suffixes in BACKENDS.items()
    if ".onnx" in suffixes and importlib.util.find_spec(name)
]


@pytest.mark.parametrize("backend", PRESENT)
def test_every_verdict_agrees(faces: Path, tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "faces"
    samples = []
    for label, name in enumerate(("generated", "groundtruth")):
        (folder / name).mkdir(parents=True)
        for path in sorted((faces / "test" / name).iterdir())[::7]:
            (folder / name / path.name).symlink_to(path)
            samples.append(Sample(f"{name}/{path.name}", label, "test", ""))
    with Classifier(open_model(EMBEDDED, "cpu")) as classifier:
        expected = evaluate(classifier, folder, samples).rows
    limit = LIMITS["fp32"].largest
    code, out, err = run(folder, "--backend", backend, "--device", "cpu", "--batch", "7")
    assert code == 0, err
    assert backend in err
    rows = rows_of(out)
    assert [row["source"] for row in rows] == [row.source for row in expected]
    assert [row["label"] for row in rows] == [row.label for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert other.score is not None
        assert row["score"] == pytest.approx(other.score, abs=limit)

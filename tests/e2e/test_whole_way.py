"""Train, export, evaluate and classify with the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ffd_export.cli.export import main as ffd_export
from ffd_runtime.cli.run import main as ffd_run
from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.card import ModelCard
from ffd_train.cli.eval import main as ffd_eval
from ffd_train.cli.train import main as ffd_train

from ..tiny import make_faces


def call(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))  # type: ignore[arg-type]


def last_error(outcome: Result) -> str:
    assert outcome.exit_code in (1, 2), outcome.output
    assert "Traceback" not in outcome.output
    return outcome.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": 8, "val": 4, "test": 4}
    return make_faces(tmp_path_factory.mktemp("whole") / "faces", splits, sources=True)


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    """Train the small network for a few steps, and return the folder of the run."""
    runs = root.parent / "runs"
    outcome = call(
        ffd_train,
        root,
        *("--network", "tf_efficientnet_lite0", "--weights", "none", "--batch", 8),
        *("--stage", "head:1:1e-3", "--stage", "all:1:3e-3", "--optimizer", "adamw"),
        *("--crop", 64, "--workers", 0, "--runs", runs, "--name", "small"),
    )
    assert outcome.exit_code == 0, outcome.output
    return runs / "small"


def test_training_records_its_settings(root: Path, trained: Path) -> None:
    card = ModelCard.from_json((trained / "card.json").read_text())
    assert card.name == "small"
    assert card.architecture == "tf_efficientnet_lite0"
    assert len((trained / "metrics.csv").read_text().splitlines()) == 3
    settings = json.loads((trained / "settings.json").read_text())
    assert settings["data"] == str(root)
    assert settings["stages"] == ["head:1:0.001", "all:1:0.003"]


def test_export_evaluate_and_run_agree(root: Path, trained: Path) -> None:
    outcome = call(ffd_export, "--runs", trained.parent)
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["parity"]["images"] == 8
    exported = trained / "best.onnx"

    reports = []
    for model in (trained, exported):
        outcome = call(ffd_eval, model, root, "--json", "--device", "cpu")
        assert outcome.exit_code == 0, outcome.output
        reports.append(json.loads(outcome.stdout))
    assert reports[0]["images"] == reports[1]["images"] == 8
    assert set(reports[0]["per_source"]) == {"red-0", "red-1", "blue-0", "blue-1"}
    for name, value in reports[0].items():
        if isinstance(value, float):
            assert reports[1][name] == pytest.approx(value, abs=1e-4)

    outcome = call(ffd_run, root / "test", "--model", exported)
    rows = [json.loads(line) for line in outcome.stdout.splitlines()]
    assert len(rows) == 8
    card = ModelCard.from_json((trained / "card.json").read_text())
    right = [(row["score"] >= card.threshold) == ("/generated/" in row["source"]) for row in rows]
    assert sum(right) / 8 == pytest.approx(reports[1]["accuracy"])


def test_a_resumed_run_keeps_its_settings(root: Path, trained: Path) -> None:
    outcome = call(ffd_train, root, "--resume", trained, "--batch", 4, "--stage", "head:1:1")
    error = last_error(outcome)
    assert "uses the settings of the run: remove --stage, --batch" in error
    assert "it allows --accumulate, --device, --workers" in error


def test_a_run_can_be_resumed_by_command(root: Path, trained: Path) -> None:
    before = (trained / "metrics.csv").read_text()
    outcome = call(ffd_train, root, "--resume", trained, "--workers", 1)
    assert outcome.exit_code == 0, outcome.output
    assert (trained / "metrics.csv").read_text() == before


def test_evaluation_prints_a_table_and_lists_unreadable_files(
    root: Path, colour_model: Path, tmp_path: Path
) -> None:
    faces = make_faces(tmp_path / "faces", {"test": 3})
    outcome = call(ffd_eval, colour_model, faces, "--table")
    assert outcome.exit_code == 0, outcome.output
    assert "ROC-AUC" in outcome.stdout
    assert "1.0000" in outcome.stdout
    (faces / "test/generated/broken.jpg").write_bytes(b"\xff\xd8\xff")
    outcome = call(ffd_eval, colour_model, faces, "--json")
    assert outcome.exit_code == 3
    report = json.loads(outcome.stdout)
    assert report["images"] == 6
    assert report["accuracy"] == 1
    assert [row["error"]["code"] for row in report["unreadable"]] == ["truncated"]


def test_invalid_training_usage_is_a_one_line_error(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    small = ("--weights", "none", "--network", "tf_efficientnet_lite0", "--runs", tmp_path)
    for arguments, message in (
        ((tmp_path / "absent", *small), "no such folder"),
        ((tmp_path / "empty", *small), "expected the folders generated/ and groundtruth/"),
        ((root, "--weights", tmp_path / "absent.pth", "--runs", tmp_path), "no such file"),
        ((root, *small, "--device", "cuda", "--name", "x"), "PyTorch finds no GPU"),
        ((root, "--runs", trained.parent, "--name", "small"), "exists: choose another --name"),
        ((root, "--resume", tmp_path), "is not a run"),
        ((root, "--stage", "neck:1:1e-3"), "'neck' is not a part"),
        ((root, *small, "--sizes", 64, 96), "--sizes needs --crop"),
        ((root, *small, "--crop", 96, "--sizes", 64, 128), "--crop (96) <= LOW <= HIGH"),
        ((root, *small, "--batch", 6, "--accumulate", 4), "or more: use --batch 8"),
        ((root, *small, "--recipe", tmp_path / "absent.toml"), "No such file or directory"),
        ((root, *small, "--teacher", tmp_path / "absent"), "no such file"),
        ((root, *small, "--teacher-weight", 0.3), "--teacher-weight needs --teacher"),
        ((root, *small, "--leave-out", "green"), "no source 'green' to leave out: it has blue-0"),
    ):
        assert message in last_error(call(ffd_train, *arguments))


def test_invalid_evaluation_usage_is_a_one_line_error(
    root: Path, colour_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "pickle.safetensors").write_bytes(b"PK\x03\x04")
    only = make_faces(tmp_path / "only", {"test": 1})
    (only / "test/generated/red0.png").write_bytes(b"")
    for arguments, message in (
        ((colour_model, root, "--device", "cpu:1"), "unknown device"),
        ((tmp_path / "absent.onnx", root), "no such file"),
        ((tmp_path / "pickle.safetensors", root), "is a pickle"),
        ((colour_model, tmp_path / "absent"), "no such folder"),
        ((colour_model, root, "--device", "cuda:999"), "--device cuda:999"),
        ((colour_model, only), "a class has no readable image"),
    ):
        assert message in last_error(call(ffd_eval, *arguments))


def test_embedded_model_has_its_provenance() -> None:
    from ffd_runtime import Classifier

    with Classifier.open(EMBEDDED, device="cpu") as classifier:
        card = classifier.card
    assert card.provenance.manifest_sha256
    assert card.provenance.checkpoint_sha256
    assert card.metrics["parity"]["verdict_flips"] == 0


@pytest.mark.no_cover
def test_embedded_model_has_the_accuracy_of_its_card(faces: Path) -> None:
    outcome = call(ffd_eval, "embedded", faces, "--split", "test", "--json", "--device", "cpu")
    assert outcome.exit_code == 0, outcome.output
    report = json.loads(outcome.stdout)
    assert report["images"] == 840
    # Kernels of other processors may change the verdicts of a few images at the threshold.
    assert report["accuracy"] >= 0.965
    assert report["decided_accuracy"] >= 0.98
    assert report["roc_auc"] >= 0.993
    photographs = [report["per_source"][name] for name in ("ffhq", "celeba-hq", "all-age-faces")]
    assert min(source["accuracy"] for source in photographs) >= 0.96

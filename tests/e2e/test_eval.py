"""ffd-eval as a user and as a program run it, and its page in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from ffd_runtime.core.file_hash import hash_file
from ffd_train.checkpoint import save_checkpoint
from ffd_train.cli.eval import main as ffd_eval

from ..conftest import picture
from ..documented import documented_fields
from ..models import CARD, save_colour_model
from ..tiny import build_tiny, make_faces
from .browser import OVERFLOWING, Browser

HOSTILE = "<script>alert(1)<!-- robustness -->$title|'\"\x1b[31m"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(ffd_eval, list(map(str, arguments)))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write faces; one of each class has the colour of the other, and one file is broken."""
    root = make_faces(tmp_path_factory.mktemp("eval") / "faces", {"test": 6}, sources=True)
    for kind, colour in (("generated", "blue"), ("groundtruth", "red")):
        image = picture(colour, 64, 80, seed=77)
        cv2.imwrite(str(root / f"test/{kind}/{HOSTILE.replace('/', '')}.png"), image)
    (root / "test/groundtruth/broken.jpg").write_bytes(b"\xff\xd8\xff")
    manifest = root / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("red-0", HOSTILE.replace('"', "")))
    return root


def test_images_that_a_run_was_trained_on_are_counted(
    faces: Path, colour_model: Path, tmp_path: Path
) -> None:
    shutil.copy(colour_model, tmp_path / "best.onnx")
    chosen = sorted((faces / "test/generated").iterdir())[:3]
    digests = [hash_file(path) for path in chosen]
    rows = [
        f"a,generated,{split},{digest}"
        for split, digest in zip(("train", "val", "test"), digests, strict=True)
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label,split,sha256", *rows]))
    said = "2 of 15 images are in the training or validation split of"
    assert said in call(tmp_path / "best.onnx", faces, "--device", "cpu").stderr
    assert "training" not in call(colour_model, faces, "--device", "cpu").stderr
    compared = call(colour_model, faces, "--compare", tmp_path / "best.onnx", "--device", "cpu")
    assert said in compared.stderr


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with a threshold that no image reaches."""
    card = CARD.replace(name="strict <b>", threshold=1.0, unsure=(1.0, 1.0))
    path = tmp_path_factory.mktemp("other") / "strict.onnx"
    return save_colour_model(path, card.to_json())


@pytest.fixture(scope="module")
def run(
    faces: Path, colour_model: Path, other_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    folder = tmp_path_factory.mktemp("out")
    (folder / "CARD.md").write_text("# m\n<!-- robustness -->\n<!-- /robustness -->\nend\n")
    outcome = call(
        *(colour_model, faces, "--robustness", "--compare", other_model, "--json"),
        *("--report", folder / "page.html", "--card", folder / "CARD.md", "--device", "cpu"),
    )
    return outcome, folder


def test_one_document_has_all_measurements(run: tuple[Result, Path]) -> None:
    outcome, folder = run
    assert outcome.exit_code == 3, outcome.output
    document = json.loads(outcome.stdout)
    assert document["images"] == 14
    assert [row["error"]["code"] for row in document["unreadable"]] == ["truncated"]
    assert document["accuracy"] == pytest.approx(12 / 14)
    assert len(document["robustness"]) == 22
    assert {cell["images"] for cell in document["robustness"].values()} == {14}
    clean = document["robustness"]["clean"]
    assert clean["accuracy"] == document["accuracy"]
    assert clean["misses"] == pytest.approx(1 / 7)
    assert document["intervals"]["accuracy"][0] < 12 / 14 < document["intervals"]["accuracy"][1]
    (missed,) = document["worst"]["generated"]
    assert HOSTILE in missed["source"]
    documented, of_comparison = documented_fields("json.md", "ffd-eval")
    assert document.keys() == documented
    # Two thresholds of one network give equal rankings and different decisions.
    comparison = document["comparison"]
    assert comparison.keys() == of_comparison | {"other"}
    assert comparison["auc"]["p"] == 1
    assert comparison["accuracy"]["only_first"] == 6
    assert comparison["accuracy"]["only_second"] == 1
    assert comparison["other"]["accuracy"] == 0.5
    assert len(comparison["robustness"]) == 21
    assert any(
        line.startswith("wrote ") and line.endswith("page.html")
        for line in outcome.stderr.splitlines()
    )
    assert "replaced the table in" in outcome.stderr
    card = (folder / "CARD.md").read_text()
    assert card.startswith("# m\n<!-- robustness -->\ncolour, 14 images")
    assert card.endswith("<!-- /robustness -->\nend\n")
    assert "| JPEG 50 |" in card


def test_tables_have_the_same_numbers(
    faces: Path, colour_model: Path, other_model: Path, run: tuple[Result, Path]
) -> None:
    outcome = call(colour_model, faces, "--compare", other_model, "--table")
    assert outcome.exit_code == 3
    assert "\x1b" not in outcome.output
    assert "0.8571" in outcome.stdout
    assert "ROC-AUC of red-1" in outcome.stdout
    assert "1 % is less than one" in outcome.stdout
    assert "No significant difference in ranking" in outcome.stdout
    assert "McNemar" in outcome.stdout
    assert json.loads(run[0].stdout)["accuracy"] == pytest.approx(0.8571, abs=1e-4)


def test_backend_applies_only_to_models_that_it_reads(
    faces: Path, colour_model: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "tiny.safetensors"
    save_checkpoint(checkpoint, build_tiny(), CARD.replace(architecture="tiny"))
    outcome = call(
        *(colour_model, faces, "--compare", checkpoint, "--sample", 2, "--json"),
        *("--backend", "onnxruntime", "--device", "cpu"),
    )
    assert outcome.exit_code in (0, 3), outcome.output
    document = json.loads(outcome.stdout)
    assert "onnxruntime" in document["runs_on"]
    assert "PyTorch" in document["comparison"]["other"]["runs_on"]
    assert "1 % is less than one" in document["note"]
    alone = call(checkpoint, faces, "--backend", "onnxruntime")
    assert alone.exit_code == 1
    assert "is a checkpoint, which only PyTorch runs" in alone.stderr


def test_sample_is_reported_and_repeatable(faces: Path, colour_model: Path) -> None:
    documents = []
    for _ in range(2):
        outcome = call(colour_model, faces, "--sample", 8, "--json")
        assert outcome.exit_code in (0, 3)
        assert "measuring 8 of 15 images" in outcome.stderr
        documents.append(json.loads(outcome.stdout))
        assert documents[-1]["data"] == {**documents[-1]["data"], "images": 8, "available": 15}
    for document in documents:
        del document["date"]
    assert documents[0] == documents[1]


def test_unwritable_outputs_fail_before_any_work(
    faces: Path, colour_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "bare.md").write_text("nothing")
    for arguments, code, message in (
        (("--card", tmp_path / "bare.md"), 2, "robustness table: add --robustness"),
        (("--robustness", "--card", tmp_path / "bare.md"), 1, "<!-- robustness --> and"),
        (("--robustness", "--card", tmp_path / "absent.md"), 1, "No such file"),
        (("--report", tmp_path / "page.pdf"), 1, "must end with .html"),
        (("--compare", tmp_path / "absent.onnx"), 1, "no such file"),
    ):
        outcome = call(colour_model, faces, *arguments)
        assert outcome.exit_code == code
        assert message in outcome.stderr.splitlines()[-1]
        assert outcome.stdout == ""
        assert "; 15 images" not in outcome.stderr
    assert (tmp_path / "bare.md").read_text() == "nothing"


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (1200, "dark")])
def test_page_fits_the_screen_and_shows_all_images(
    browser: Browser, run: tuple[Result, Path], width: int, scheme: str
) -> None:
    browser.open(run[1] / "page.html", width, scheme)
    assert browser.evaluate("return document.documentElement.scrollWidth <= innerWidth")
    # A wide table scrolls; nothing else exceeds the page.
    beyond = OVERFLOWING.replace('"skip")', '"skip") && !e.closest(".wide, svg")')
    assert browser.evaluate(beyond) == []
    assert browser.evaluate("return document.querySelectorAll('.gallery .card').length") >= 4
    assert browser.evaluate(
        "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )
    ground = browser.evaluate("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
    assert browser.evaluate(
        "return [...document.querySelectorAll('.plot path.first')]"
        ".every(p => getComputedStyle(p).stroke !== 'none' && p.getBBox)"
    )
    toggle = (
        "const box = document.querySelector('.all'); box.click();"
        "const shown = [...box.closest('section').querySelectorAll('.evidence')]"
        ".map(e => getComputedStyle(e).opacity); box.click(); return shown"
    )
    shown = browser.evaluate(toggle)
    assert shown
    assert set(shown) == {"1"}
    assert browser.console() == []


def test_gallery_shows_the_missed_image(run: tuple[Result, Path]) -> None:
    html = (run[1] / "page.html").read_text()
    photos = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', html)
    import base64

    first = cv2.imdecode(np.frombuffer(base64.b64decode(photos[0]), np.uint8), cv2.IMREAD_COLOR)
    assert first is not None
    assert first.shape == (224, 224, 3)
    # The missed generated image is blue.
    assert first[..., 0].mean() > first[..., 2].mean() + 40

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ffd_runtime.core.errors import OutputError
from ffd_runtime.core.results import Result
from ffd_runtime.outputs.html_page import require_page_path
from ffd_train import intervals
from ffd_train.classification_metrics import Floats, measure_scores
from ffd_train.evaluation import Evaluation, draw_sample
from ffd_train.evaluation_report.evaluation_page import write_page
from ffd_train.evaluation_report.markdown import BEGIN, END, put_table, require_place, to_markdown
from ffd_train.evaluation_report.study import Study, Subject, summarise, to_document
from ffd_train.face_data import FaceData, Sample
from ffd_train.intervals import Bools, wilson
from ffd_train.robustness import CLEAN, measure_cell

from ..models import CARD

HEATMAP = np.linspace(-30, 30, 100, dtype=np.float32).reshape(10, 10)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://host/x onerror=alert(1)>',
    "</style></title><base href=//host>",
    "photo\u202egpj.exe",
    "line\n\r\t\x1b[31m",
    "bytes-\udcff",
    "lone-\ud800",
    "&lt;script&gt;$title${facts}",
    "| a | `b` | <!-- /robustness -->",
    "x" * 3000,
)


class Page(HTMLParser):
    """The elements of a page, checked to be well nested, and its text."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]


def make_data(root: Path, count: int, sources: tuple[str, ...] = ("a", "b")) -> FaceData:
    """A data set with `count` images per class whose files do not exist."""
    samples = tuple(
        Sample(
            f"test/{kind}/{i}-{sources[i % len(sources)]}", label, "test", "", f"{kind}-{source}"
        )
        for label, kind in enumerate(("generated", "groundtruth"))
        for i in range(count)
        for source in [sources[i % len(sources)]]
    )
    return FaceData(root, samples)


def judge(data: FaceData, seed: int = 0, apart: float = 1.0) -> Evaluation:
    """Scores that mostly separate the classes; the last image is unreadable."""
    rng = np.random.default_rng(seed)
    rows = []
    for sample in data.samples[:-1]:
        margin = rng.normal(apart if sample.label == 0 else -apart)
        score = float(1 / (1 + np.exp(-2 * margin)))
        name = str(data.root / sample.path)
        rows.append(Result(name, label=CARD.verdict(score), score=score, heatmap=HEATMAP))
    rows.append(Result.from_dict({**rows[0].to_dict(), **UNREADABLE}))
    return Evaluation(tuple(rows), data, CARD)


UNREADABLE = {
    "source": "gone.jpg",
    "label": None,
    "score": None,
    "error": {"code": "truncated", "message": "the JPEG ends early"},
}


def subject(name: str, evaluation: Evaluation, sweep: bool = True) -> Subject:
    labels = [sample.label for sample, _ in evaluation.read]
    cells = tuple(
        measure_cell(
            cell,
            cell,
            np.abs(evaluation.scores - shift),
            labels,
            CARD,
            evaluation.sources,
            evaluation.families,
        )
        for cell, shift in ((CLEAN, 0), ("jpeg-30", 0.2), ("blur-3", 0.6))
    )
    return Subject(name, "m.onnx", "0" * 64, f"{name}, CPU", evaluation, cells if sweep else ())


def make_study(root: Path, name: str = "colour", sources: tuple[str, ...] = ("a", "b")) -> Study:
    data = make_data(root, 2 * len(sources), sources)
    when = datetime(2026, 1, 2, tzinfo=UTC)
    return Study(subject(name, judge(data)), data, None, len(data.samples) + 5, when)


def test_a_sample_keeps_the_shares_of_classes_and_sources(tmp_path: Path) -> None:
    data = make_data(tmp_path, 300, ("x", "x", "x", "y"))
    drawn = draw_sample(data, 81)
    assert len(drawn.samples) == 81
    counts = Counter(sample.source for sample in drawn.samples)
    assert counts["generated-x"] in (30, 31)
    assert counts["generated-y"] in (10, 11)
    assert drawn.samples == draw_sample(data, 81).samples
    assert drawn.samples != draw_sample(data, 81, seed=1).samples
    mixed = replace(data, samples=tuple(reversed(data.samples)))
    assert drawn.samples == tuple(reversed(draw_sample(mixed, 81).samples))
    assert draw_sample(data, 10_000).samples == data.samples
    # A class of one image among hundreds.
    rare = replace(data, samples=data.samples[:301])
    for seed in range(5):
        assert {sample.label for sample in draw_sample(rare, 2, seed).samples} == {0, 1}


def test_the_worst_errors_are_the_most_confident_ones(tmp_path: Path) -> None:
    found = judge(make_data(tmp_path, 100), apart=0.5)
    for label in (0, 1):
        worst = found.worst(label, 7)
        scores = [row.score or 0 for _, row in worst]
        assert len(worst) == 7
        assert all(sample.label == label for sample, _ in worst)
        assert all((score >= CARD.threshold) == (label == 1) for score in scores)
        assert scores == sorted(scores, reverse=label == 1)
        of_class = found.scores[found.generated == (label == 0)]
        assert scores[0] == (of_class.max() if label == 1 else of_class.min())


def test_intervals_contain_the_metrics(tmp_path: Path) -> None:
    found = judge(make_data(tmp_path, 60))
    intervals = found.intervals
    for name in ("accuracy", "roc_auc", "average_precision", "eer", "decided", "decided_accuracy"):
        low, high = intervals[name]
        assert low < getattr(found.report, name) < high, name
    assert len(found.scores) == 119
    right = round(found.report.per_class["groundtruth"] * 59)
    assert intervals["per_class"]["groundtruth"] == wilson(right, 59)
    assert set(intervals["per_source"]) == set(found.report.per_source)


def test_each_source_is_ranked_against_the_other_class(tmp_path: Path) -> None:
    study = make_study(tmp_path, sources=("a", "b", "c", "d"))
    found = study.subject.evaluation
    document = to_document(study)
    write_page(tmp_path / "page.html", study)
    text = " ".join(Page((tmp_path / "page.html").read_text()).text)
    assert "ROC-AUC, colour" in text
    for name, kind in (("generated-a", True), ("groundtruth-b", False)):
        own = np.array([source == name for source in found.sources])
        area = document["per_source"][name]["roc_auc"]
        part = own | (found.generated != kind)
        assert area == pytest.approx(roc_auc_score(found.generated[part], found.scores[part]))
        low, high = document["intervals"]["per_source_roc_auc"][name]
        assert low < area <= high
        assert f"{low:.4f} to {high:.4f}" in text


def test_families_of_generators_are_reported_separately(tmp_path: Path) -> None:
    data = make_data(tmp_path, 40)
    named = {"generated-a": "stylegan2", "generated-b": "diffusion-xl"}
    samples = (replace(each, source=named.get(each.source or "")) for each in data.samples)
    data = replace(data, samples=tuple(samples))
    found = judge(data)
    study = Study(subject("m", found), data, None, 80, datetime(2026, 1, 2, tzinfo=UTC))
    document = to_document(study)
    intervals, cell = document["intervals"], document["robustness"]["blur-3"]
    assert set(document["per_family"]) == {"gan", "diffusion"}
    for family, source in (("gan", "stylegan2"), ("diffusion", "diffusion-xl")):
        assert document["per_family"][family] == document["per_source"][source]
        assert cell["per_family"][family] == cell["per_source"][source]
        for key in ("", "_roc_auc"):
            by_family, by_source = (intervals[f"per_{kind}{key}"] for kind in ("family", "source"))
            assert by_family[family] == by_source[source]
    assert any(line.startswith("By family of generators it finds ") for line in summarise(study))
    assert "| image | diffusion (20) | gan (20) |" in to_markdown(study)
    write_page(tmp_path / "page.html", study)
    assert "By family of generators" in " ".join(Page((tmp_path / "page.html").read_text()).text)


def test_too_few_photographs_for_one_percent_fpr_are_reported(tmp_path: Path) -> None:
    for count, said in ((50, True), (110, False)):
        data = make_data(tmp_path, count)
        study = Study(subject("m", judge(data)), data, None, 1, datetime(2026, 1, 2, tzinfo=UTC))
        write_page(tmp_path / "page.html", study)
        page = " ".join(Page((tmp_path / "page.html").read_text()).text)
        # One of the photographs is unreadable.
        assert ("Of 49 photographs, 1 % is less than one" in page) == said
        assert ("Of 49 photographs, 1 % is less than one" in to_markdown(study)) == said
        assert (to_document(study)["note"] is not None) == said
        (line,) = (each for each in summarise(study) if " it finds " in each)
        assert line.startswith("At no false positive (with 49" if said else "At 1 % FPR")


def test_resamples_are_drawn_once_for_all_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = []
    drawing = intervals._draw

    def draw(generated: Bools) -> Iterator[Floats]:
        draws.append(len(generated))
        return drawing(generated)

    monkeypatch.setattr(intervals, "_draw", draw)
    study = make_study(tmp_path)
    other = judge(study.data, seed=1)
    both = study.against(subject("other", other))
    write_page(tmp_path / "page.html", both)
    to_document(both)
    # One draw for the model, and one for the images that both have classified.
    assert len(draws) == 2


def test_models_are_compared_without_robustness(tmp_path: Path) -> None:
    data = make_data(tmp_path, 20)
    one, other = (subject(name, judge(data, seed), sweep=False) for seed, name in enumerate("ab"))
    study = Study(one, data, None, 40, datetime(2026, 1, 2, tzinfo=UTC)).against(other)
    write_page(tmp_path / "page.html", study)
    text = " ".join(Page((tmp_path / "page.html").read_text()).text)
    assert "Differences are the second model minus the first, on the 39 images" in text


def test_the_document_keeps_its_keys_and_gains_others(tmp_path: Path) -> None:
    study = make_study(tmp_path, sources=HOSTILE)
    document = json.loads(json.dumps(to_document(study), allow_nan=False))
    for key in ("model", "images", "accuracy", "roc_auc", "per_class", "per_source", "unreadable"):
        assert key in document
    assert document["model"] == "colour"
    assert [row["source"] for row in document["unreadable"]] == ["gone.jpg"]
    assert set(document["robustness"]) == {"clean", "jpeg-30", "blur-3"}
    cell = document["robustness"]["blur-3"]
    assert cell["intervals"]["roc_auc"][0] <= cell["roc_auc"] <= cell["intervals"]["roc_auc"][1]
    assert document["calibration"]["bins"][0]["low"] == 0
    assert document["data"]["available"] == document["data"]["images"] + 5
    assert document["bootstrap"]["confidence"] == 0.95
    assert "comparison" not in document


def test_two_models_are_compared_on_images_that_both_classified(tmp_path: Path) -> None:
    study = make_study(tmp_path, sources=("a", "b", "c", "d", "e", "f", "g", "h"))
    one = study.subject.evaluation
    rows = list(judge(one.data, seed=1, apart=2).rows)
    rows[-1] = replace(rows[0], source=rows[-1].source)
    rows[3] = one.unreadable[0]
    better = Evaluation(tuple(rows), one.data, CARD)
    both = study.against(subject("colour", better))
    assert [each.name for each in both.subjects] == ["colour (A)", "colour (B)"]
    assert set(both.comparisons) == {"clean", "jpeg-30", "blur-3"}
    assert {"roc_auc", "average_precision", "brier"} <= set(both.comparisons["clean"].differences)
    assert set(both.comparisons["blur-3"].differences) == {"roc_auc", "accuracy"}
    found = both.comparisons["clean"]
    assert found.images == 30
    labels = [sample.label for at, sample in enumerate(one.data.samples) if at not in (3, 31)]
    for judged, name in ((one.rows, "first"), (rows, "second")):
        expected = [row.score for at, row in enumerate(judged) if at not in (3, 31)]
        report = measure_scores(np.array(expected, np.float64), labels, CARD)
        for metric in ("roc_auc", "accuracy"):
            measured = getattr(found.differences[metric], name)
            assert measured == pytest.approx(getattr(report, metric))
    document = json.loads(json.dumps(to_document(both)))
    assert document["comparison"]["other"]["model"] == "colour"
    assert set(document["comparison"]["robustness"]) == {"jpeg-30", "blur-3"}
    assert summarise(both)[:2] == both.verdicts()
    write_page(tmp_path / "two.html", both)
    text = " ".join(Page((tmp_path / "two.html").read_text()).text)
    assert "DeLong" in text
    assert "Difference for each perturbation" in text


def test_the_summary_has_sentences(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    lines = summarise(study)
    assert study.subject.cells[2].roc_auc < study.subject.cells[1].roc_auc
    assert lines[0].startswith("colour is right on ")
    assert "of 7 images" in lines[0]
    assert any(line.startswith("Its weakest source is ") for line in lines)
    assert any("of 2 perturbations. The worst: blur-3" in line for line in lines)
    assert lines[-1].startswith("1 image could not be read")


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, make_study(tmp_path, sources=HOSTILE))
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("style", "srcset", "action")
            if name in ("href", "src"):
                assert (value or "").startswith(("#", "data:"))
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert f"'sha256-{digest}'" in (policy or "")
    assert "NaN" not in html
    assert "nan" not in {word for text in page.text for word in text.split()}


def test_names_are_escaped(tmp_path: Path) -> None:
    pages = []
    for names, title in ((HOSTILE, HOSTILE[0]), (tuple("abcdefghij"), "x")):
        study = make_study(tmp_path / "in", title, names)
        write_page(tmp_path / "page.html", study)
        pages.append(Page((tmp_path / "page.html").read_text(encoding="utf-8")))
    assert pages[0].structure() == pages[1].structure()
    text = "".join(pages[0].text)
    assert "<script>alert(1)</script>" in text
    assert "photo\\u202egpj.exe" in text
    assert "bytes-\\xff" in text
    assert "x" * 500 not in text
    assert all(c.isprintable() or c in "\n" for c in text)


def test_an_unwritable_page_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    for name, message in (
        ("page.txt", "must end with .html"),
        ("folder.html", "is a folder"),
        ("absent/page.html", "no such folder, or no permission to write there"),
    ):
        with pytest.raises(OutputError, match=message):
            require_page_path(tmp_path / name, "--report")
    require_page_path(tmp_path / "page.html", "--report")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_only_the_table_of_a_card_is_replaced(tmp_path: Path, newline: str) -> None:
    study = make_study(tmp_path, sources=HOSTILE)
    card = tmp_path / "CARD.md"
    before, after = f"# é{newline}{newline}", f"{newline}## Limits{newline}  two spaces  "
    card.write_bytes(f"{before}{BEGIN}{newline}old{newline}{END}{after}".encode())
    put_table(card, study)
    once = card.read_bytes().decode()
    put_table(card, study)
    assert card.read_bytes().decode() == once
    assert once.startswith(before + BEGIN)
    assert once.endswith(END + after)
    assert "old" not in once
    assert once.count(END) == 1
    assert (once.count("\n") == once.count("\r\n")) == (newline == "\r\n")
    # The metrics, the accuracy by family, and the accuracy by source.
    rows = [line for line in once.splitlines() if line.startswith("| blur-3 |")]
    assert len(rows) == 3
    assert rows[0].count("|") == 7
    assert f"{study.subject.cells[2].roc_auc:.3f} (" in rows[0]


def test_markdown_cells_stay_in_their_columns(tmp_path: Path) -> None:
    table = to_markdown(make_study(tmp_path, sources=HOSTILE))
    assert "<script>" not in table
    assert "<!--" not in table
    head, line, *_ = table.partition("by source")[2].strip().splitlines()[2:]
    assert head.replace("\\|", "").count("|") == line.count("|")


def test_the_table_of_a_card_names_its_origin(tmp_path: Path) -> None:
    study = make_study(tmp_path / "faces`", sources=("a", "b"))
    study = replace(study, split="test")
    study.data.root.mkdir()
    (study.data.root / "manifest.csv").write_text("path,source\n")
    line = to_markdown(study).splitlines()[-1]
    digest = hashlib.sha256(b"path,source\n").hexdigest()
    assert f"(split test, 8 images drawn from 13, manifest sha256 `{digest}`)" in line
    assert f"model sha256 `{'0' * 64}`" in line
    assert "`ffd-eval m.onnx 'faces?' --split test --sample 8 --robustness`" in line
    assert str(tmp_path) not in to_markdown(
        replace(study, subject=replace(study.subject, file=str(tmp_path / "m.onnx")))
    )


def test_a_linked_card_keeps_its_link_and_mode(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    card = tmp_path / "docs/CARD.md"
    card.write_text(f"{BEGIN}\n{END}\n")
    card.chmod(0o664)
    link = tmp_path / "CARD.md"
    link.symlink_to("docs/CARD.md")
    put_table(link, make_study(tmp_path / "faces"))
    assert link.is_symlink()
    assert "| blur-3 |" in card.read_text()
    assert card.stat().st_mode & 0o777 == 0o664
    assert [each.name for each in card.parent.iterdir()] == ["CARD.md"]


@pytest.mark.parametrize(
    "text", ["none", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}", b"\xff", None]
)
def test_a_card_without_marks_is_refused(tmp_path: Path, text: str | bytes | None) -> None:
    card = tmp_path / "CARD.md"
    if text is not None:
        card.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OutputError, match="--card"):
        require_place(card)

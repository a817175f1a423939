"""tools/model_card.py writes the tables of the model card."""

from __future__ import annotations

import pytest
from tools.model_card import format_trained, format_unseen, replace_table

from ffd_runtime.core.errors import DataError

SOURCES = {
    "generated faces": {"gan": "A generator", "new": "Another one *"},
    "photographs": {"studio": "Portraits"},
}


def test_each_class_has_a_table_of_its_measured_sources() -> None:
    per_source = {
        "gan": {"images": 42, "accuracy": 0.619},
        "studio": {"images": 22, "accuracy": 1.0},
    }
    assert format_trained(per_source, SOURCES).splitlines() == [
        "| generated faces | images | right |",
        "| --- | --- | --- |",
        "| A generator | 42 | 62 % |",
        "",
        "| photographs | images | right |",
        "| --- | --- | --- |",
        "| Portraits | 22 | 100 % |",
    ]


def test_only_generated_sources_have_an_auc() -> None:
    shares = {"called_generated": "0.025", "unsure": "0.431", "called_photograph": "0.544"}
    unseen = {
        "new": {"images": "70", "auc": "0.868", **shares},
        "studio": {"images": "160", "auc": "", **shares},
    }
    lines = format_unseen(unseen, SOURCES).splitlines()
    assert lines[2] == "| Another one * | 70 | 0.868 | 2.5 % | 43.1 % | 54.4 % |"
    assert lines[-1] == "| Portraits | 160 | 2.5 % | 43.1 % | 54.4 % |"


def test_only_the_text_between_the_marks_changes() -> None:
    text = "a\n<!-- test -->\nold\n<!-- /test -->\nb\n"
    assert replace_table(text, "test", "new\n") == text.replace("old", "new")
    for wrong in (text + text, "a\n"):
        with pytest.raises(DataError, match="add <!-- test --> and <!-- /test -->, once each"):
            replace_table(wrong, "test", "new\n")

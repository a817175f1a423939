from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.core.errors import CardError
from ffd_runtime.model.card import CLASSES, ModelCard, PreprocessSpec, Provenance

unit = st.floats(0, 1)
specs = st.builds(
    PreprocessSpec,
    size=st.integers(16, 4096),
    target_mean=st.floats(0, 255),
    target_deviation=st.floats(1, 128),
    max_gain=st.floats(1, 100),
)
metrics = st.dictionaries(
    st.text(max_size=8),
    st.dictionaries(
        st.text(max_size=8),
        st.one_of(
            st.none(), st.integers(), st.text(), st.floats(allow_nan=False, allow_infinity=False)
        ),
        max_size=3,
    ),
    max_size=3,
)
cards = st.builds(
    lambda band, **rest: ModelCard(threshold=band[1], unsure=(band[0], band[2]), **rest),
    band=st.tuples(unit, unit, unit).map(sorted),
    name=st.text(min_size=1),
    architecture=st.text(min_size=1),
    provenance=st.builds(Provenance, version=st.just("1"), manifest_sha256=st.just("a" * 64)),
    preprocess=specs,
    temperature=st.floats(1e-3, 1e3),
    precision=st.sampled_from(["fp32", "fp16", "int8"]),
    metrics=metrics,
)


@given(cards)
def test_a_card_survives_json(card: ModelCard) -> None:
    assert ModelCard.from_json(card.to_json()) == card


@given(cards, unit)
def test_every_score_has_one_verdict(card: ModelCard, score: float) -> None:
    low, high = card.unsure
    generated = score >= high and high < 1
    expected = "generated" if generated else "groundtruth" if score < low else "unsure"
    assert card.verdict(score) == expected


@pytest.fixture
def document() -> dict[str, Any]:
    card = ModelCard("portraits", "resnext50_32x4d", Provenance("1"))
    loaded: dict[str, Any] = json.loads(card.to_json())
    return loaded


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("architecture", 7),
        ("classes", ["groundtruth", "generated"]),
        ("classes", "generated"),
        ("temperature", 0),
        ("temperature", "1"),
        ("threshold", 1.5),
        ("threshold", True),
        ("unsure", [0.1]),
        ("unsure", 0.5),
        ("unsure", [0.1, "x"]),
        ("unsure", [0.6, 0.7]),
        ("precision", "fp8"),
        ("metrics", []),
        ("metrics", {"val": 1}),
        ("metrics", {"val": {"auc": []}}),
        ("preprocess.size", 299.5),
        ("preprocess.size", 0),
        ("preprocess.max_gain", None),
        ("preprocess", 1),
        ("provenance.version", ""),
        ("provenance.checkpoint_sha256", "abc"),
        ("provenance.weights", 1),
    ],
)
def test_a_wrong_field_is_named(document: dict[str, Any], field: str, value: object) -> None:
    *above, last = field.split(".")
    owner = document[above[0]] if above else document
    owner[last] = value
    with pytest.raises(CardError, match=last):
        ModelCard.from_json(json.dumps(document))


@pytest.mark.parametrize("path", ["", "preprocess", "provenance"])
def test_missing_and_unknown_fields_are_named(document: dict[str, Any], path: str) -> None:
    owner = document[path] if path else document
    owner["colour"] = 1
    with pytest.raises(CardError, match="unknown field.*colour"):
        ModelCard.from_json(json.dumps(document))
    del owner["colour"]
    gone = next(name for name in owner if name != "schema")
    del owner[gone]
    with pytest.raises(CardError, match=f"{gone} is missing"):
        ModelCard.from_json(json.dumps(document))


@pytest.mark.parametrize("schema", [2, 0, "1", None, True])
def test_the_error_for_another_schema_says_what_to_do(
    document: dict[str, Any], schema: object
) -> None:
    document["schema"] = schema
    with pytest.raises(CardError, match="schema.*export the model again"):
        ModelCard.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, "\0"])
def test_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(CardError):
        ModelCard.from_json(text)


def test_the_class_order_is_fixed() -> None:
    assert CLASSES == ("generated", "groundtruth")


def test_cards_without_reduced_decoding_mean_a_full_decode(document: dict[str, Any]) -> None:
    assert ModelCard.from_json(json.dumps(document)).preprocess.decode_side == 598
    del document["preprocess"]["reduced_decode"]
    assert ModelCard.from_json(json.dumps(document)).preprocess.decode_side == 0
    document["preprocess"]["reduced_decode"] = 1
    with pytest.raises(CardError, match="reduced_decode must be true or false"):
        ModelCard.from_json(json.dumps(document))

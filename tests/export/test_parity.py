"""The limits of parity and of layer types."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ffd_export.layers import LayerTypes
from ffd_export.parity import Parity, roc_auc
from ffd_runtime.core.errors import ModelError


def test_layers_of_another_type_are_named() -> None:
    kinds = {f"layer{i}": "half" for i in range(40)} | {"a": "float", "b": "float"}
    LayerTypes(kinds).require("fp16")
    more = LayerTypes({**kinds, "c": "float"})
    with pytest.raises(
        ModelError, match="only 40 of 43 .* are half, too few for fp16: a, b, c are"
    ):
        more.require("fp16")
    more.require("fp16", ["c"])
    with pytest.raises(ModelError, match="only 0 of 43"):
        more.require("int8")
    with pytest.raises(ModelError, match="none are left"):
        LayerTypes({"a": "float"}).require("fp16", ["a"])
    assert str(more) == "43 layers: 40 half, 3 float"


@pytest.mark.parametrize(
    ("precision", "parity", "fault"),
    [
        ("fp32", Parity(10, 9e-5, 0, 0, 0, "a"), None),
        ("fp32", Parity(10, 1.1e-4, 0, 0, 0, "a"), "largest"),
        ("fp32", Parity(10, 0, 0, 1, 0, "a"), "1 verdict flips"),
        ("fp16", Parity(10, 9e-3, 0, 3, 1, "a"), None),
        ("fp16", Parity(10, 1.1e-2, 0, 0, 0, "a"), "largest"),
        ("fp16", Parity(10, float("nan"), 0, 0, 0, "a"), "largest"),
        ("int8", Parity(1000, 0.4, 0, 9, 9, "a", (0.980, 0.975), (1, 1)), None),
        ("int8", Parity(1000, 0.1, 0, 9, 9, "a", (0.980, 0.974), (1, 1)), "0.60 points of accur"),
        ("int8", Parity(1000, 0.1, 0, 5, 5, "a"), None),
        ("int8", Parity(1000, 0.1, 0, 9, 6, "a"), "0.60 points of two-way decisions changed"),
        ("int8", Parity(1000, float("inf"), 0, 0, 0, "a"), "no probability for a"),
    ],
)
def test_limits_of_parity(precision: str, parity: Parity, fault: str | None) -> None:
    if fault is None:
        parity.require(precision)
        return
    with pytest.raises(ModelError, match=fault):
        parity.require(precision)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0])), min_size=2
    ).filter(lambda rows: len({positive for positive, _ in rows}) == 2)
)
def test_roc_auc_equals_scikit_learn(rows: list[tuple[bool, float]]) -> None:
    positive = np.array([row[0] for row in rows])
    scores = np.array([row[1] for row in rows])
    assert roc_auc(positive, scores) == pytest.approx(roc_auc_score(positive, scores))

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffd_runtime.model.backends import EMBEDDED
from ffd_runtime.model.backends.onnx_metadata import read_metadata
from ffd_runtime.model.card import CARD_KEY, ModelCard

from ..conftest import COLOUR_MODEL
from ..models import CARD, colour_model, save_colour_model

onnx = pytest.importorskip("onnx")

TEXT = st.text(max_size=300)


def test_the_card_is_read(tmp_path: Path) -> None:
    path = save_colour_model(tmp_path / "m.onnx")
    assert ModelCard.from_json(read_metadata(path)[CARD_KEY]) == CARD
    expected = {entry.key: entry.value for entry in onnx.load(EMBEDDED).metadata_props}
    assert read_metadata(EMBEDDED) == expected
    assert CARD_KEY in expected


def test_the_colour_model_in_the_repository_is_up_to_date(tmp_path: Path) -> None:
    assert onnx.load(COLOUR_MODEL) == onnx.load(save_colour_model(tmp_path / "m.onnx"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx") / "m.onnx"


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_metadata_agrees_with_the_onnx_library(
    written: Path, entries: list[tuple[str, str]]
) -> None:
    model = colour_model()
    for key, value in entries:
        model.metadata_props.add(key=key, value=value)
    written.write_bytes(model.SerializeToString())
    assert read_metadata(written) == dict(entries)


def cut(length: int) -> bytes:
    """Return the beginning of an ONNX with metadata."""
    whole = colour_model()
    whole.metadata_props.add(key="a", value="b")
    return bytes(whole.SerializeToString()[:length])


@given(st.one_of(st.binary(max_size=200), st.integers(0, 400).map(cut)))
def test_an_invalid_file_has_no_metadata(written: Path, content: bytes) -> None:
    written.write_bytes(content)
    assert isinstance(read_metadata(written), dict)


def test_an_absent_file_or_a_folder_has_none(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) == read_metadata(tmp_path / "absent.onnx") == {}

"""Fixtures of the training's tests."""

from __future__ import annotations

import pytest

from ..one_core import one_core

__all__ = ["one_core"]


@pytest.fixture(autouse=True)
def no_cover() -> None:
    """Stop measuring coverage, which slows training: `make test` does not report ffd_train."""

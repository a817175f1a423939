"""Every module of the runtime can be imported, on every operating system."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import pytest

import ffd_runtime

MODULES = [found.name for found in pkgutil.walk_packages(ffd_runtime.__path__, "ffd_runtime.")]


@pytest.mark.parametrize("name", MODULES)
def test_it_can_be_imported(name: str) -> None:
    if name.startswith("ffd_runtime.web."):
        pytest.importorskip("starlette")
    assert import_module(name)

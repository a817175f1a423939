"""Install hints for every way in which ffd can be installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ffd_runtime.core import install_hint as module
from ffd_runtime.core.install_hint import install_hint

Install = Callable[[dict[str, Any] | None], None]


@pytest.fixture(autouse=True)
def uncached() -> Iterator[None]:
    install_hint.cache_clear()
    yield
    install_hint.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install ffd-edge, as pip would, with a `direct_url.json` or without one."""

    def write(record: dict[str, Any] | None) -> None:
        metadata = tmp_path / "site" / "ffd_edge-9.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: ffd-edge\nVersion: 9\n")
        if record is not None:
            (metadata / "direct_url.json").write_text(json.dumps(record))
        monkeypatch.syspath_prepend(str(metadata.parent))

    return write


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "my clone"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    return folder


def test_the_hint_after_an_installation_from_an_index(install: Install) -> None:
    install(None)
    assert install_hint("web") == "pip install 'ffd-edge[web]'"
    assert install_hint() == "pip install ffd-edge"
    assert install_hint(reinstall=True) == "pip install --force-reinstall ffd-edge"


@pytest.mark.parametrize(
    ("info", "option"), [({}, ""), ({"editable": True}, "-e "), ({"editable": False}, "")]
)
def test_a_clone_is_installed_from_its_folder(
    install: Install, clone: Path, info: dict[str, bool], option: str
) -> None:
    install({"url": clone.as_uri(), "dir_info": info})
    assert install_hint("web") == f"pip install {option}'{clone}[web]'"
    assert install_hint("rtx", reinstall=True) == (
        f"pip install --force-reinstall {option}'{clone}[rtx]'"
    )


def test_a_deleted_clone_is_not_named(install: Install, tmp_path: Path) -> None:
    install({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert install_hint("web") == "pip install '.[web]' in a clone of ffd"


def test_a_wheel_is_installed_from_its_file(install: Install, tmp_path: Path) -> None:
    wheel = tmp_path / "ffd_edge-9-py3-none-any.whl"
    wheel.touch()
    install({"url": wheel.as_uri(), "archive_info": {}})
    assert install_hint("web") == f"pip install '{wheel}[web]'"


def test_a_deleted_wheel_is_named_without_its_folder(install: Install, tmp_path: Path) -> None:
    wheel = tmp_path / "ffd_edge-9-py3-none-any.whl"
    install({"url": wheel.as_uri(), "archive_info": {}})
    assert install_hint("web") == "pip install 'ffd_edge-9-py3-none-any.whl[web]'"


def test_the_hint_for_a_repository_names_its_commit(install: Install) -> None:
    install(
        {
            "url": "ssh://git@example.org/ffd.git",
            "vcs_info": {"vcs": "git", "commit_id": "0123abc"},
        }
    )
    assert install_hint("web") == (
        "pip install 'ffd-edge[web] @ git+ssh://git@example.org/ffd.git@0123abc'"
    )


def test_an_address_is_shown_without_its_token(install: Install) -> None:
    install({"url": "https://example.org/ffd_edge-9.whl?token=secret", "archive_info": {}})
    assert install_hint("web") == (
        "pip install 'ffd-edge[web] @ https://example.org/ffd_edge-9.whl?token=***'"
    )


def test_a_clone_on_the_module_path_need_not_be_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "DISTRIBUTION", "nothing-such")
    root = Path(__file__).parents[2]
    assert install_hint("web") == f"pip install -e '{root}[web]'"
    monkeypatch.setattr(module, "__file__", str(tmp_path / "a" / "b" / "c" / "install_hint.py"))
    install_hint.cache_clear()
    assert install_hint("web") == "pip install '.[web]' in a clone of ffd"

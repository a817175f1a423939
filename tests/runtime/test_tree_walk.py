"""The order of a walk, links, and folders that cannot be read."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from ffd_runtime.core.tree_walk import walk_tree


def test_sorts_names_and_walks_folders_in_their_place(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.png", "a.png", "c.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    found = [os.path.relpath(entry.path, tmp_path) for entry in walk_tree(str(tmp_path))]
    assert found == ["a.png", "b/1.png", "b/2.png", "b.png", "c.png"]


def test_visits_only_the_names_to_keep(tmp_path: Path) -> None:
    for name in (".hidden/a.png", "seen/a.png", "seen/.b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = walk_tree(str(tmp_path), lambda name: not name.startswith("."))
    assert [entry.path for entry in found] == [str(tmp_path / "seen" / "a.png")]


def test_skips_the_thumbnails_of_a_file_server(tmp_path: Path) -> None:
    for name in (
        "a.jpg",
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "b/@eaDir/c.jpg/SYNO.jpg",
        "b/c.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [os.path.relpath(entry.path, tmp_path) for entry in walk_tree(str(tmp_path))]
    assert found == ["a.jpg", "b/c.jpg"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
def test_follows_links_and_reports_loops(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "link").symlink_to("real")
    found = {os.path.relpath(e.path, tmp_path): e.error for e in walk_tree(str(tmp_path))}
    loops = {path for path, error in found.items() if error and error.errno == errno.ELOOP}
    assert loops == {"real/up", "link/up"}
    assert set(found) - loops == {"itself", "link/a.png", "real/a.png"}


def test_reports_a_folder_that_is_absent(tmp_path: Path) -> None:
    (entry,) = walk_tree(str(tmp_path / "absent"))
    assert entry.error
    assert entry.error.errno == errno.ENOENT

from __future__ import annotations

import glob
import io
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ffd_runtime.inputs import find_files
from ffd_runtime.inputs.source_registry import ADDRESS_MODULES, ARCHIVE_MODULES


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(*sources: object, **options: object) -> list[str]:
    return [item.source for item in find_files(map(str, sources), **options)]  # type: ignore[arg-type]


def test_a_folder_yields_every_file_below_it_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "b/2.jpg", tmp_path / "b/1.jpg", tmp_path / "a.txt", tmp_path / ".hidden")
    (tmp_path / "empty").mkdir()
    expected = [".hidden", "a.txt", "b/1.jpg", "b/2.jpg"]
    assert names(tmp_path) == [f"{tmp_path}/{name}" for name in expected]


def test_sources_keep_their_order(tmp_path: Path) -> None:
    touch(tmp_path / "1", tmp_path / "2")
    assert names(tmp_path / "2", "absent", tmp_path / "1") == [
        str(tmp_path / "2"),
        "absent",
        str(tmp_path / "1"),
    ]


def test_globs_are_expanded(tmp_path: Path) -> None:
    touch(tmp_path / "a/1.jpg", tmp_path / "a/2.png", tmp_path / "b/3.jpg", tmp_path / "[x].jpg")
    assert names(tmp_path / "*/*.jpg") == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/b/3.jpg"]
    assert len(names(tmp_path / "**")) == 4
    assert names(tmp_path / "a*") == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/a/2.png"]
    # An existing file precedes a pattern of the same name.
    assert names(tmp_path / "[x].jpg") == [f"{tmp_path}/[x].jpg"]


def test_recursive_globs_match_like_the_glob_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(*(tmp_path / name for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg", "a/b/4.png", ".h/5.jpg")))
    monkeypatch.chdir(tmp_path)
    for pattern in (
        "**",
        "**/*.jpg",
        "a/**",
        "a/**/*.jpg",
        "**/b/*",
        "**/3.jpg",
        "*/**/*.png",
        "**//*.jpg",
    ):
        expected = [p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)]
        assert sorted(names(pattern)) == sorted(expected), pattern
    assert names("**/b") == ["a/b/3.jpg", "a/b/4.png"]
    assert names("a/**/") == ["a/2.jpg", "a/b/3.jpg", "a/b/4.png"]
    assert names("./**/./3.jpg") == ["./a/b/3.jpg"]
    assert names(f"{tmp_path}/**/4.png") == [f"{tmp_path}/a/b/4.png"]


def test_recursive_globs_stop_at_link_loops(tmp_path: Path) -> None:
    touch(tmp_path / "s/1.jpg")
    (tmp_path / "s/up").symlink_to(tmp_path)
    (tmp_path / "s/again").symlink_to(tmp_path / "s")
    assert names(tmp_path / "**/*.jpg") == [f"{tmp_path}/s/1.jpg"]


def test_a_glob_without_a_match_is_a_row(tmp_path: Path) -> None:
    (item,) = find_files([f"{tmp_path}/*.jpg"])
    assert item.error is not None
    assert item.error.code == "not_found"


def test_links_are_followed_and_loops_are_reported(tmp_path: Path) -> None:
    touch(tmp_path / "real/1.jpg", tmp_path / "top/2.jpg")
    (tmp_path / "top/to-real").symlink_to(tmp_path / "real")
    (tmp_path / "top/up").symlink_to(tmp_path / "top")
    (tmp_path / "real/back").symlink_to(tmp_path / "top")
    items = {
        item.source.removeprefix(f"{tmp_path}/top/"): item
        for item in find_files([str(tmp_path / "top")])
    }
    assert set(items) == {"2.jpg", "to-real/1.jpg", "to-real/back", "up"}
    assert {name for name, item in items.items() if item.error} == {"to-real/back", "up"}
    assert items["up"].error is not None
    assert items["up"].error.code == "link_loop"


def test_a_deep_tree_does_not_exhaust_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    Path("deep.jpg").touch()
    os.chdir(tmp_path)
    # The path exceeds the limit of the system, which is an error row.
    rows = list(find_files(["."]))
    # The clean-up of pytest would recurse.
    subprocess.run(["rm", "-rf", "d"], check=True)
    assert len(rows) == 1


def test_the_output_is_not_read_as_an_input(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg", tmp_path / "out.csv.partial")
    kept = names(tmp_path, leave_out={f"{tmp_path}/out.csv.partial"})
    assert kept == [f"{tmp_path}/1.jpg"]


def test_a_folder_that_disappears_is_a_row(tmp_path: Path) -> None:
    touch(tmp_path / "a/1.jpg", tmp_path / "b/2.jpg")
    found = find_files([str(tmp_path)])
    assert next(found).source.endswith("1.jpg")
    (tmp_path / "b/2.jpg").unlink()
    (tmp_path / "b").rmdir()
    assert [item.source for item in found] == [f"{tmp_path}/b"]


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def fileno(self) -> int:
        raise io.UnsupportedOperation


file_names = st.lists(
    st.binary(min_size=1, max_size=12).filter(lambda name: not set(name) & set(b"\0\n/")),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file_names, st.booleans(), st.booleans())
def test_any_name_is_read_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, paths: list[bytes], null: bool, ended: bool
) -> None:
    end = b"\0" if null else b"\n"
    # A CR before a newline belongs to the line end.
    prefixed = [b"absent-" + (path if null else path.rstrip(b"\r")) for path in paths]
    data = end.join(prefixed) + (end if ended else b"")
    monkeypatch.setattr(sys, "stdin", Stdin(data))
    assert [os.fsencode(name) for name in names("-", null=null)] == prefixed


def test_a_nul_in_a_name_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"a\0b\n"))
    assert names("-", leave_out={"/x"}) == ["a\0b"]


def test_names_ended_by_nul_may_contain_newlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"a\nb\0c\0"))
    assert names("-", null=True) == ["a\nb", "c"]


DUMMY_ADDRESS = """
from ffd_runtime.inputs import Item
from ffd_runtime.inputs.source_registry import ADDRESS_MODULES

ADDRESS_MODULES["dummy"] = __name__


def find_inputs(address, policy):
    for name in ("1.jpg", "2.jpg"):
        yield Item("dummy://***@album/" + name, fetch=lambda name=name: name.encode())
"""
DUMMY_ARCHIVE = """
from ffd_runtime.inputs import Item
from ffd_runtime.inputs.source_registry import ARCHIVE_MODULES

ARCHIVE_MODULES[__name__] = lambda head, file: head.startswith(b"DUMMY")


def find_members(path, file):
    for line in file.read().splitlines()[1:]:
        yield Item(f"{path}!/{line.decode()}", fetch=lambda line=line: line)
"""


def test_a_new_kind_of_address_is_one_module_and_one_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dummy_address.py").write_text(DUMMY_ADDRESS)
    monkeypatch.syspath_prepend(tmp_path)
    # Removed at the end of the test.
    monkeypatch.setitem(ADDRESS_MODULES, "dummy", "")
    import_module("dummy_address")
    addresses = ["dummy://token1@album", "DUMMY://token2@album"]
    monkeypatch.setattr(sys, "stdin", Stdin(addresses[0].encode()))
    items = list(find_files([*addresses, "-"]))
    assert [item.source.removeprefix("dummy://***@album/") for item in items] == [
        "1.jpg", "2.jpg", "1.jpg#2", "2.jpg#2", "1.jpg", "2.jpg",
    ]  # fmt: skip
    assert [item.read() for item in items] == [b"1.jpg", b"2.jpg"] * 3


def test_a_new_archive_format_is_one_module_and_one_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dummy_archive.py").write_text(DUMMY_ARCHIVE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ARCHIVE_MODULES, "dummy_archive", lambda head, file: False)
    import_module("dummy_archive")
    archive = tmp_path / "faces"
    archive.write_bytes(b"DUMMY\na.jpg\nb.jpg\n")
    items = list(find_files([str(archive)]))
    assert [item.source for item in items] == [f"{archive}!/a.jpg", f"{archive}!/b.jpg"]
    assert [item.read() for item in items] == [b"a.jpg", b"b.jpg"]
    assert all(item.skip for item in items)

from __future__ import annotations

import ntpath
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from ffd_runtime.core.errors import InputError, OutputError
from ffd_runtime.core.results import Result
from ffd_runtime.image.image_header import read_header
from ffd_runtime.outputs import annotated_copies
from ffd_runtime.outputs.annotated_copies import AnnotatedCopies, Names, is_annotated

from ..conftest import picture

names = st.binary(min_size=1).map(os.fsdecode) | st.text(min_size=1)
HEATMAP = np.linspace(-30, 30, 100, dtype=np.float32).reshape(10, 10)


def encoded(suffix: str = ".jpg", seed: int = 0, side: int = 240) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(picture("red", side, side, seed)))
    assert done
    return data.tobytes()


JPEG = encoded()


def seen(source: object, data: bytes = JPEG) -> Result:
    return Result(str(source), label="generated", score=0.98, heatmap=HEATMAP, encoded=data)


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with images on two levels."""
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(JPEG)
    (folder / "deep" / "a.jpg").write_bytes(encoded(seed=1))
    (folder / "b.png").write_bytes(encoded(".png"))
    (folder / "c.webp").write_bytes(encoded(".webp"))
    return folder


def annotate(folder: Path, *sources: Path, heatmap: bool = False) -> None:
    with AnnotatedCopies(folder, map(str, sources), heatmap=heatmap) as sink:
        for top in sources:
            for path in sorted([top] if top.is_file() else top.rglob("*.*")):
                copy(sink, seen(path, path.read_bytes()))


def copy(sink: AnnotatedCopies, *results: Result) -> None:
    assert list(sink.follow(results)) == list(results)


def test_copies_mirror_the_source(source: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in source.rglob("*.*")}
    out = tmp_path / "out"
    for _ in range(2):  # a second run replaces its own copies
        annotate(out, source)
        a, b, webp, deep = files(out)
        assert (a, b, deep) == ("a.jpg", "b.png", "deep/a.jpg")
        assert webp.startswith("c.webp-")
        assert webp.endswith(".jpg")
    assert {path: path.read_bytes() for path in source.rglob("*.*")} == before
    for name, kind in ((a, "jpeg"), (b, "png"), (deep, "jpeg"), (webp, "jpeg")):
        data = (out / name).read_bytes()
        assert read_header(data).format == kind
        assert is_annotated(out / name)
        with Pillow.open(out / name) as image:
            image.load()
            assert image.size == (240, 240)
        assert cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None
    corner = cv2.imread(str(out / "b.png"))
    assert corner is not None
    assert corner[2, 2].max() < 40  # the panel


def test_heatmap_is_drawn_on_request(source: Path, tmp_path: Path) -> None:
    for heatmap in (False, True):
        annotate(tmp_path / str(heatmap), source, heatmap=heatmap)
    plain, laid = (
        np.asarray(cv2.imread(str(tmp_path / str(on) / "b.png")), int)[60:] for on in (False, True)
    )
    redder = (laid - plain)[..., 2] - (laid - plain)[..., 0]
    assert redder[-20:].mean() > 50
    assert (plain == picture("red", 240, 240)[60:]).all()


def test_copies_of_two_sources_do_not_collide(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    annotate(tmp_path / "out", source, other)
    names = files(tmp_path / "out")
    assert len(names) == 8
    assert {"source/deep/a.jpg", "other/a.jpg"} < set(names)


def test_rows_without_an_image_have_no_copy(source: Path, tmp_path: Path) -> None:
    with AnnotatedCopies(tmp_path / "out", [str(source)]) as sink:
        error = InputError("empty", "the file is empty")
        copy(sink, Result.failed("x.jpg", error), Result("y.jpg", label="unsure", score=0.5))
    assert files(tmp_path / "out") == []


def test_image_too_large_for_jpeg_becomes_png(tmp_path: Path) -> None:
    long = tmp_path / "long.bmp"
    cv2.imwrite(str(long), np.zeros((2, 65_600, 3), np.uint8))
    annotate(tmp_path / "out", long)
    (name,) = files(tmp_path / "out")
    assert name.endswith(".png")


def test_folder_inside_a_source_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for folder, given_ in (
        (source, source),
        (source / "deep" / "out", source),
        (Path("link"), source),
        (source, source / "a.jpg"),
        (source, source / "*.jpg"),
        (source / "out", source / "**" / "*.jpg"),
        (tmp_path, "-"),
    ):
        with pytest.raises(OutputError, match="name a folder outside it"):
            AnnotatedCopies(folder, [str(given_)])
    assert not (source / "out").exists()
    with AnnotatedCopies(source / "copies", [str(source / "a.jpg"), "http://host/x.jpg"]) as sink:
        copy(sink, seen(source / "a.jpg"))
    assert files(source / "copies") == ["a.jpg"]


def test_only_annotated_copies_are_overwritten(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jpg").write_bytes(JPEG)
    with (
        pytest.raises(OutputError, match="is not an annotated copy"),
        AnnotatedCopies(out, [str(source)]) as sink,
    ):
        copy(sink, seen(source / "a.jpg"))
    assert (out / "a.jpg").read_bytes() == JPEG
    assert files(out) == ["a.jpg"]


def test_link_out_of_the_folder_is_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "deep").symlink_to(tmp_path / "elsewhere")
    for name in ("deep/a.jpg", "deep/er/a.jpg"):
        with (
            pytest.raises(OutputError, match="is a link to a folder outside"),
            AnnotatedCopies(tmp_path / "out", [str(source)]) as sink,
        ):
            copy(sink, seen(source / name))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_interrupted_run_leaves_only_complete_files(tmp_path: Path) -> None:
    images = [encoded(".png", seed=number) for number in range(4)]
    rows = [seen(f"in/{number}.png", images[number % 4]) for number in range(60)]
    with pytest.raises(KeyboardInterrupt), AnnotatedCopies(tmp_path / "out", ["in/x.png"]) as sink:
        for count, _ in enumerate(sink.follow(rows)):
            if count == 30:
                raise KeyboardInterrupt
    written = files(tmp_path / "out")
    assert 0 < len(written) <= 60
    for name in written:
        assert name.endswith(".png")
        with Pillow.open(tmp_path / "out" / name) as image:
            image.load()


def test_all_copies_exist_at_the_end(tmp_path: Path) -> None:
    with AnnotatedCopies(tmp_path / "out", ["in/x.jpg"]) as sink:
        copy(sink, *(seen(f"in/{number}.jpg") for number in range(100)))
    assert len(files(tmp_path / "out")) == 100


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Make writes beyond a file size in bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_an_error(tmp_path: Path) -> None:
    with (
        files_limited_to(1000),
        pytest.raises(OutputError, match="cannot write .*: File too large"),
        AnnotatedCopies(tmp_path / "out", ["in/x.jpg"]) as sink,
    ):
        copy(sink, *[seen("in/x.jpg")] * 1000)
    with (
        files_limited_to(1000),
        pytest.raises(OutputError, match="File too large"),
        AnnotatedCopies(tmp_path / "out", ["in/x.jpg"]) as sink,
    ):
        copy(sink, seen("in/x.jpg"))
    assert files(tmp_path / "out") == []


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"--annotate .*: (Not a directory|File exists)"):
        AnnotatedCopies(tmp_path / "file" / "out", [])


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("in/a.jpg", "a.jpg"),
        ("in//sub/a.JPEG", "sub/a.JPEG"),
        ("in/a.zip!/dir/x.jpg", "a.zip!/dir/x.jpg"),
        ("in/a.zip!/./dir/./x.jpg", "a.zip!/dir/x.jpg"),
        ("in/a.zip!/../../x.jpg", None),
        ("in/a.zip!//x.jpg", None),
        ("in/../x.jpg", None),
        ("in/..", None),
        ("in/x.jpg/y.jpg", None),  # x.jpg could be a picture's copy
        ("elsewhere/a.jpg", None),
        ("/etc/a.jpg", None),
        ("https://host/in/a.jpg?size=2", None),
        ("https://host/", None),
        ("in/new\nline\x1b.jpg", None),
        (os.fsdecode(b"in/\xff.jpg"), None),
        ("in/" + "x" * 300 + ".jpg", None),
        ("in/" + "é" * 120 + ".jpg", None),
        ("in/" + "deep/" * 300 + "x.jpg", None),
        ("in/a:b.jpg", None),
        ("in/a\0b.jpg", None),
    ],
)
def test_names(source: str, kept: str | None, tmp_path: Path) -> None:
    name = Names(["in/*.jpg"]).of(seen(source), ".jpg")
    if kept:
        assert name == Path(kept)
    else:
        assert re.search(r"-[0-9a-f]{10}\.jpg$", name.name)
        assert len(name.parts) == 1
    with AnnotatedCopies(tmp_path / "out", ["in/*.jpg"]) as sink:
        copy(sink, seen(source))
    assert files(tmp_path / "out") == [str(name)]


@given(st.lists(names, unique=True, max_size=6), st.sampled_from([".jpg", ".png"]))
def test_names_are_valid_unique_and_inside_the_folder(sources: list[str], suffix: str) -> None:
    given_ = ["in", "in/other/*.jpg", "-", "/srv/x.png"]
    found = [
        Names(given_).of(seen(prefix + source), suffix)
        for prefix in ("in/", "/srv/", "")
        for source in sources
    ]
    for name in found:
        assert not name.is_absolute()
        assert ".." not in name.parts
        assert len(os.fsencode(name)) < 2000
        assert all(0 < len(part.encode()) <= 255 and part.isprintable() for part in name.parts)
        assert not any(part.lower().endswith((".jpg", ".jpeg", ".png")) for part in name.parts[:-1])
        assert name.suffix.lower() in ((".jpg", ".jpeg") if suffix == ".jpg" else (".png",))
    inside = [prefix + source for prefix in ("in/", "/srv/", "") for source in sources]
    # Two spellings of one path are one image.
    assert len({str(name) for name in found}) >= len({os.path.normpath(name) for name in inside})


def test_copies_whose_names_coincide_are_numbered(tmp_path: Path) -> None:
    # A source that is named twice has one copy. Some file systems ignore case.
    sources = ["in/a.jpg", "in/a.jpg", "in/a-2.jpg", "in/A.JPG", "in/b.png", "in/B.png"]
    names = Names(["in/*"])
    suffixes = [".png" if source.endswith("png") else ".jpg" for source in sources]
    found = [
        names.of(one, suffix, names.find_number(one))
        for one, suffix in zip(map(seen, sources), suffixes, strict=True)
    ]
    assert list(map(str, found)) == [*("a.jpg", "a.jpg", "a-2.jpg", "A-3.JPG", "b.png", "B-2.png")]


def test_names_of_a_list_may_begin_with_a_dot() -> None:
    """As those of `find . | ffd-run -`."""
    assert Names(["-"]).of(seen("./x/a.jpg"), ".jpg") == Path("x/a.jpg")


def test_members_of_one_name_have_a_copy_each() -> None:
    def numbers(*results: Result) -> list[int]:
        names = Names(["a.tar"])
        return [names.find_number(result) for result in results]

    member = seen("a.tar!/x.jpg")
    faces = [replace(member, face=(number, 0, 9, 9)) for number in range(2)]
    assert numbers(member, member, seen("a.tar!/y.jpg"), member) == [1, 2, 1, 3]
    assert numbers(*faces, *faces) == [1, 1, 2, 2]
    # A file that is listed twice is the same image.
    assert numbers(seen("x.jpg"), seen("x.jpg")) == [1, 1]


def test_sources_on_several_drives_have_different_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotated_copies, "os", SimpleNamespace(path=ntpath, sep="\\"))
    paths = {"C:\\in": "C:\\in", "D:\\in": "D:\\in"}
    assert annotated_copies._below_common(paths) == {"C:\\in": ["C", "in"], "D:\\in": ["D", "in"]}


def test_results_of_one_source_have_different_names() -> None:
    names = Names(["in"])
    results = [
        Result("in/a.jpg", frame=frame, face=face, label="unsure", score=0.5)
        for frame in (None, 0, 1)
        for face in (None, (1, 2, 3, 4), (-1, 2, 3, 4))
    ]
    assert len({names.of(result, ".jpg") for result in results}) == len(results)

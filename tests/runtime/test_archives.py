from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import InputError
from ffd_runtime.image.decode import MAX_FILE_BYTES, decode
from ffd_runtime.inputs import Item, members, tars
from ffd_runtime.inputs.archives import find_in_archive, is_archive

from ..nightly import examples
from .encoded import BGR, FORMATS

# Incompressible, like images.
NOISE = random.Random(0).randbytes(3000)
MEMBERS = {
    "1.jpg": FORMATS["jpeg"],
    "folder/2.png": FORMATS["png"],
    "folder/empty": b"",
    "long" * 30 + "/" + "name" * 40 + ".jpg": NOISE,
    "häuser 東京.png": FORMATS["png"][:512],
    "last.webp": FORMATS["webp"],
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


def zipped(
    members: dict[str, bytes] | list[tuple[str, bytes]] = MEMBERS,
    method: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        # It warns of repeated names.
        warnings.simplefilter("ignore")
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: dict[str, bytes] = MEMBERS, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in members.items():
            add(archive, name, data)
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data) if data else None)


def outcome(item: Item) -> bytes | str:
    """Return an item's bytes, or the code of its error."""
    try:
        return item.read()
    except InputError as error:
        return error.code


def contents(path: Path | str, data: bytes | None = None) -> list[tuple[str, bytes | str]]:
    """Return the name of each member and its outcome."""
    if data is not None:
        Path(path).write_bytes(data)
    return [
        (item.source.removeprefix(str(path)).removeprefix("!/"), outcome(item))
        for item in find_in_archive(str(path))
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "archive"


ALL = list(MEMBERS.items())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_every_member_of_a_zip_is_an_item(path: Path, method: int) -> None:
    assert contents(path, zipped(method=method)) == ALL
    assert is_archive(str(path))
    (first, *_) = find_in_archive(str(path))
    assert first.source == f"{path}!/1.jpg"


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_of_a_tar_is_an_item(path: Path, form: int, compression: str) -> None:
    # A ustar header has 100 bytes for the name after the last slash.
    fit = form != tarfile.USTAR_FORMAT
    members = {name if fit else name.replace("name" * 20, ""): data for name, data in ALL}
    assert contents(path, COMPRESS[compression](tarred(members, form))) == [*members.items()]
    assert is_archive(str(path))


def test_archived_images_are_read_unchanged(path: Path) -> None:
    images = {name: data for name, data in FORMATS.items() if "alpha" not in name}
    for data in (zipped(images), tarred(images)):
        for name, found in contents(path, data):
            assert found == images[name]
    assert (decode(dict(contents(path))["png"]) == BGR).all()  # type: ignore[arg-type]


@pytest.mark.skipif(not shutil.which("tar"), reason="there is no tar command")
def test_archives_of_the_tar_command_are_read(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a.png").write_bytes(FORMATS["png"])
    (folder / "link.png").symlink_to("deep/a.png")
    os.link(folder / "deep/a.png", folder / "hard.png")
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    with (folder / "holes").open("wb") as file:
        for at in range(0, 40 << 20, 1 << 20):
            file.seek(at)
            file.write(b"x")
    for form in ("gnu", "posix", "ustar"):
        # A map of 40 holes does not fit into the header of GNU tar.
        sparse = [] if form == "ustar" else ["--sparse"]
        options = [f"--format={form}", "--sort=name", *sparse, f"--directory={folder}"]
        subprocess.run(["tar", "cf", str(path), *options, "."], check=True)
        assert contents(path)[:-1] == [
            ("./deep/a.png", FORMATS["png"]),
            ("./hard.png", "refused"),
            *(
                [("./holes", "refused")]
                if sparse
                else [("./holes", (folder / "holes").read_bytes())]
            ),
            ("./link.png", "refused"),
            ("./pipe", "refused"),
        ]
        assert contents(path)[-1] == (os.fsdecode(b"./\xff.png"), b"x")


def test_an_archive_without_members_is_an_error(path: Path) -> None:
    folder = io.BytesIO()
    with tarfile.open(fileobj=folder, mode="w") as archive:
        add(archive, "folder", type=tarfile.DIRTYPE)
    for data in (zipped({}), folder.getvalue(), gzip.compress(folder.getvalue())):
        assert contents(path, data) == [("", "empty")]


def test_names_may_repeat_and_need_not_be_utf8(path: Path) -> None:
    data = zipped([("a", b"1"), ("a", b"2"), ("é", b"3")])
    assert contents(path, data) == [("a", b"1"), ("a", b"2"), ("é", b"3")]
    broken = data.replace("é".encode(), b"\xff\xfe")
    assert contents(path, broken)[2] == (os.fsdecode(b"\xff\xfe"), b"3")


def entry(system: int, raw: bytes, extra: bytes = b"") -> bytes:
    """Return a zip of an empty file whose name has no flag for UTF-8."""
    sizes = struct.pack("<HH", len(raw), len(extra))
    local = b"PK\3\4" + struct.pack("<22xHH", len(raw), 0) + raw
    central = b"PK\1\2" + struct.pack("<BB", 20, system) + bytes(22) + sizes + bytes(14)
    end = b"PK\5\6" + struct.pack("<4xHHIIH", 1, 1, len(central + raw + extra), len(local), 0)
    return local + central + raw + extra + end


@pytest.mark.parametrize(
    ("system", "raw", "name"),
    [
        (3, "é".encode(), "é"),  # Info-ZIP on Unix
        (3, b"\x82", "é"),  # not UTF-8, so in code page 437
        (0, "é".encode(), "├⌐"),
    ],
)
def test_names_without_a_flag_are_decoded(path: Path, system: int, raw: bytes, name: str) -> None:
    assert contents(path, entry(system, raw)) == [(name, b"")]


def test_a_name_may_be_in_a_field_of_its_own(path: Path) -> None:
    def field(raw: bytes) -> bytes:
        content = struct.pack("<BI", 1, zlib.crc32(raw)) + "Zoë 日本.jpg".encode()
        return struct.pack("<HH", 0x7075, len(content)) + content

    assert contents(path, entry(0, b"Zo_ __.jpg", field(b"Zo_ __.jpg"))) == [("Zoë 日本.jpg", b"")]
    # The file was renamed by a program that did not update the field.
    assert contents(path, entry(0, b"new.jpg", field(b"Zo_ __.jpg"))) == [("new.jpg", b"")]


def test_a_zip64_archive_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 8)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    data = zipped()
    assert b"PK\6\6" in data
    assert contents(path, data) == ALL


def test_a_zip_may_have_a_comment_and_follow_other_data(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"1")
        archive.comment = b"a comment that contains PK\5\6 before its last words"
    assert contents(path) == [("a", b"1")]
    assert contents(path, zipped({"b": b"2"}) + path.read_bytes()) == [("a", b"1")]


@pytest.mark.parametrize("compress", COMPRESS.values(), ids=COMPRESS)
def test_a_second_tar_after_the_end_is_reported(
    path: Path, compress: Callable[[bytes], bytes]
) -> None:
    both = compress(tarred()) + compress(tarred({"more.jpg": NOISE}))
    assert contents(path, both) == [*ALL, ("", "truncated")]
    # Other data after the end mark do not matter.
    assert contents(path, compress(tarred() + bytes(9000) + NOISE)) == ALL


def test_a_tar_that_is_replaced_while_it_is_read_is_an_error(path: Path) -> None:
    path.write_bytes(tarred({"a.jpg": NOISE, "b.jpg": NOISE}))
    first, second = find_in_archive(str(path))
    assert outcome(first) == NOISE
    other = path.with_name("other")
    other.write_bytes(tarred({"a.jpg": NOISE[::-1], "b.jpg": NOISE[::-1]}))
    other.replace(path)
    assert outcome(second) == "read_failed"


def test_concatenated_compressed_streams_are_read(path: Path) -> None:
    data = tarred()
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        parts = compress(data[:4000]) + compress(data[4000:])
        assert contents(path, parts + bytes(512)) == ALL


LEAVES = ["../a", "a/../../b", "/etc/passwd", "C:\\a", "C:a", "a\\..\\b", "\\\\host\\a"]


def test_names_outside_the_archive_are_refused(path: Path) -> None:
    members = [*((name, b"x") for name in LEAVES), ("good", b"x")]
    expected = [*((name, "refused") for name in LEAVES), ("good", b"x")]
    assert contents(path, zipped(members)) == expected
    assert contents(path, tarred(dict(members))) == expected
    assert os.listdir(path.parent) == ["archive"]


def test_links_and_devices_are_refused_and_folders_skipped(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        add(archive, "folder", type=tarfile.DIRTYPE)
        # A link has no data, even if its header states a size.
        add(archive, "soft", type=tarfile.SYMTYPE, linkname="/etc/passwd", size=5000)
        add(archive, "hard", type=tarfile.LNKTYPE, linkname="good")
        add(archive, "pipe", type=tarfile.FIFOTYPE)
        add(archive, "null", type=tarfile.CHRTYPE)
        add(archive, "good", b"x")
    refused = [(name, "refused") for name in ("soft", "hard", "pipe", "null")]
    assert contents(path) == [*refused, ("good", b"x")]
    with zipfile.ZipFile(path, "w") as zip_archive:
        zip_archive.mkdir("folder")
        link = zipfile.ZipInfo("soft")
        link.external_attr = 0o120777 << 16
        zip_archive.writestr(link, "/etc/passwd")
        zip_archive.writestr("good", b"x")
    assert contents(path) == [("soft", "refused"), ("good", b"x")]


def directory_of(data: bytes, name: str) -> int:
    """Return the offset of a member's entry in the directory."""
    at = data.index(b"PK\1\2")
    return data.rindex(b"PK\1\2", at, data.index(name.encode(), at))


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into("<" + form, changed, at, *values)
    return bytes(changed)


THREE = {"1": FORMATS["png"], "2": NOISE, "3": FORMATS["jpeg"]}


@pytest.mark.parametrize(
    ("offset", "form", "value", "code"),
    [
        (8, "H", 1, "refused"),  # encrypted
        (10, "H", 99, "corrupt"),  # an unknown method
        (10, "H", 14, "corrupt"),  # LZMA
        (16, "I", 1, "corrupt"),  # checksum
        (20, "I", 1 << 31, "corrupt"),  # packed size
        (24, "I", 10, "corrupt"),  # unpacked size
        (24, "I", MAX_FILE_BYTES + 1, "too_large"),
        (42, "I", 1 << 31, "corrupt"),  # offset
        (42, "I", 7, "corrupt"),
    ],
)
def test_one_bad_member_of_a_zip_does_not_hide_the_others(
    path: Path, offset: int, form: str, value: int, code: str
) -> None:
    data = zipped(THREE)
    changed = patched(data, directory_of(data, "2") + offset, form, value)
    expected = [("1", THREE["1"]), ("2", code), ("3", THREE["3"])]
    assert contents(path, changed) == expected


def test_damaged_data_in_a_zip_is_reported(path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        data = bytearray(zipped(THREE, method))
        data[directory_of(bytes(data), "2") // 2] ^= 0x10
        rows = contents(path, bytes(data))
        assert rows[0] == ("1", THREE["1"])
        assert rows[1][1] in ("corrupt", "truncated")
        assert rows[2] == ("3", THREE["3"])


def test_a_damaged_directory_yields_an_error_row(path: Path) -> None:
    data = zipped(THREE)
    broken = patched(data, directory_of(data, "2"), "I", 0)
    assert contents(path, broken) == [("1", THREE["1"]), ("", "corrupt")]
    assert contents(path, data[:-30]) == [("", "truncated")]


def test_a_zip_that_changes_after_the_search_yields_errors(path: Path) -> None:
    path.write_bytes(zipped(THREE, zipfile.ZIP_STORED))
    items = list(find_in_archive(str(path)))
    end = path.read_bytes().index(NOISE[:8]) + 2000
    path.write_bytes(path.read_bytes()[:end])
    assert [outcome(item) for item in items] == [THREE["1"], "truncated", "corrupt"]
    path.unlink()
    assert {outcome(item) for item in items} == {"not_found"}


def test_a_decompression_bomb_in_a_zip_is_refused(path: Path) -> None:
    rows = contents(path, zipped({"bomb": bytes(64 << 20), "good": b"x"}))
    assert rows == [("bomb", "too_large"), ("good", b"x")]
    # A small file may have such a ratio: a blank image, for example.
    flat = bytes(8 << 20)
    assert contents(path, zipped({"flat": flat})) == [("flat", flat)]


def test_highly_compressed_data_is_read_to_its_last_byte(path: Path) -> None:
    # The last input chunk may unpack to more than one output chunk.
    for size in range(65500, 65800, 7):
        assert contents(path, zipped({"flat": bytes(size)})) == [("flat", bytes(size))]


def test_a_bomb_with_a_false_size_is_not_unpacked(path: Path) -> None:
    data = zipped({"bomb": bytes(64 << 20)})
    changed = patched(data, directory_of(data, "bomb") + 24, "I", 1000)
    path.write_bytes(changed)
    (item,) = find_in_archive(str(path))
    tracemalloc.start()
    assert outcome(item) == "corrupt"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_overlapping_members_of_a_zip_are_refused(path: Path) -> None:
    data = zipped({"1": NOISE})
    at = data.index(b"PK\1\2")
    entry, end = data[at : data.index(b"PK\5\6")], data.index(b"PK\5\6")
    many = data[:at] + entry * 100 + patched(data[end:], 12, "I", 100 * len(entry))
    rows = contents(path, many)
    assert rows[0] == ("1", NOISE)
    assert rows[-1] == ("", "refused")
    assert len(rows) < 6


def test_members_above_the_limit_are_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MAX_MEMBERS", 2)
    for data in (zipped(THREE), tarred(THREE)):
        assert [code for _, code in contents(path, data)] == [THREE["1"], NOISE, "too_large"]
    monkeypatch.setattr(members, "MAX_MEMBERS", 3)
    assert len(contents(path, zipped(THREE))) == 3


def test_a_decompression_bomb_in_a_tar_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MIN_STREAM_RATIO_BYTES", 4 << 20)
    bomb = tarred({"good": NOISE, "bomb": bytes(16 << 20), "never": b"x"})
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        rows = contents(path, compress(bomb))
        assert rows == [("good", NOISE), ("bomb", "too_large"), ("", "too_large")]


def test_members_above_the_size_limit_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_CARRIED_BYTES", 2000)
    data = gzip.compress(tarred({"1": b"x", "large": NOISE, "3": b"x"}))
    assert contents(path, data) == [("1", b"x"), ("large", "too_large"), ("3", b"x")]
    monkeypatch.setattr(tars, "MAX_FILE_BYTES", 2000)
    data = tarred({"1": b"x", "large": NOISE, "3": b"x"})
    assert contents(path, data) == [("1", b"x"), ("large", "too_large"), ("3", b"x")]


def test_an_xz_dictionary_above_the_memory_limit_is_refused(path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    data = lzma.compress(tarred(THREE), filters=filters)
    assert contents(path, data) == [("", "not_an_image")]
    assert not is_archive(str(path))


def test_a_damaged_tar_header_loses_one_member(path: Path) -> None:
    data = bytearray(tarred(THREE, tarfile.GNU_FORMAT))
    data[data.index(b"2".ljust(100, b"\0"))] ^= 1
    assert contents(path, bytes(data)) == [
        ("1", THREE["1"]),
        ("", "corrupt"),
        ("3", THREE["3"]),
    ]


def test_the_search_after_a_damaged_tar_header_is_limited(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_JUNK_BYTES", 4096)
    good = tarred({"1": b"x"}, tarfile.GNU_FORMAT)[:1024]
    assert contents(path, good + b"j" * (1 << 20)) == [
        ("1", b"x"),
        ("", "corrupt"),
        ("", "corrupt"),
    ]


def test_a_tar_without_its_end_mark_may_lack_members(path: Path) -> None:
    whole = tarred(THREE, tarfile.GNU_FORMAT)
    for compress in (bytes, gzip.compress):
        # Truncated between two members, where all headers are valid.
        cut = whole[: whole.index(b"3".ljust(100, b"\0"))]
        assert contents(path, compress(cut)) == [
            ("1", THREE["1"]),
            ("2", NOISE),
            ("", "truncated"),
        ]


def test_invalid_extended_headers_are_reported(path: Path) -> None:
    def with_pax(body: bytes, claimed: int | None = None) -> bytes:
        header = tarfile.TarInfo("pax")
        header.type = tarfile.XHDTYPE
        header.size = len(body) if claimed is None else claimed
        block = header.tobuf(tarfile.GNU_FORMAT)
        return block + body.ljust(-(-len(body) // 512) * 512, b"\0") + tarred({"a": b"x"})

    assert contents(path, with_pax(b"13 path=name\n")) == [("name", b"x")]
    assert contents(path, with_pax(b"14 path=../up\n")) == [("../up", "refused")]
    assert contents(path, with_pax(b"22 GNU.sparse.major=1\n")) == [("a", "refused")]
    for body in (b"no record", b"99 path=a\n", b"0 path=a\n", b"10 size=x\n", b"11 size=-1\n"):
        assert contents(path, with_pax(body))[0] == ("", "corrupt"), body
    assert contents(path, with_pax(b"19 size=9999999999\n"))[0] == ("a", "truncated")
    assert contents(path, with_pax(b"", 1 << 40)) == [("", "truncated")]
    assert contents(path, with_pax(b"", -512)) == [("", "corrupt"), ("a", b"x")]
    large = with_pax(bytes(3 << 20))
    assert contents(path, large) == [("", "corrupt"), ("a", b"x")]


def test_records_of_an_extended_header_are_read_once() -> None:
    copied = 0

    class Counted(bytes):
        def __getitem__(self, key: Any) -> Any:
            nonlocal copied
            part = Counted(super().__getitem__(key))
            copied += len(part)
            return part

    data = Counted(b"".join(b"12 k%05d=v\n" % number for number in range(2000)) + bytes(500))
    records = tars._pax_records(data)
    assert len(records) == 2000
    assert records[b"k00007"] == b"v"
    assert copied < 10 * len(data)


@pytest.mark.parametrize("compression", COMPRESS)
def test_a_tar_truncated_anywhere_is_reported(path: Path, compression: str) -> None:
    # Without the end mark, where truncation would lose nothing.
    data = COMPRESS[compression](tarred(THREE).rstrip(b"\0"))
    for end in range(600, len(data), max(1, len(data) // 40)):
        rows = contents(path, data[:end])
        assert rows[-1][1] in ("truncated", "not_an_image"), end
        assert all(found == THREE[name] for name, found in rows[:-1])


def test_a_wrong_checksum_after_a_tar_is_reported(path: Path) -> None:
    # Larger than an output chunk.
    members = {**THREE, "4": random.Random(1).randbytes(100_000)}
    data = bytearray(gzip.compress(tarred(members)))
    data[-6] ^= 1
    assert contents(path, bytes(data)) == [*THREE.items(), ("4", "corrupt")]
    data = bytearray(gzip.compress(tarred(members) + bytes(200_000)))
    data[-6] ^= 1
    assert contents(path, bytes(data)) == [*members.items(), ("", "corrupt")]


def test_nested_archives_are_not_opened(path: Path) -> None:
    inner = zipped(THREE)
    assert contents(path, zipped({"inner.zip": inner})) == [("inner.zip", inner)]


def test_archives_are_recognised_by_content(path: Path) -> None:
    def is_one(data: bytes) -> bool:
        path.write_bytes(data)
        return is_archive(str(path))

    assert is_one(zipped())
    assert is_one(zipped({}))
    assert all(is_one(compress(tarred())) for compress in COMPRESS.values())
    # A tar starts with the name of its first member, here with the signature of BMP.
    assert is_one(tarred({"BMW.jpg": b"x"}))
    for form, data in FORMATS.items():
        assert not is_one(data), form
        assert not is_one(data + zipped()), form
    assert not is_one(FORMATS["gif"].ljust(257, b"\0")[:257] + tarred()[257:])
    assert not any(is_one(compress(b"text")) for compress in COMPRESS.values())
    assert not any(is_one(data) for data in (b"", b"P", b"PK", b"\x1f\x8b\x08", b"BZh9", b"text"))
    assert contents(path, b"text") == [("", "not_an_image")]


def test_a_file_that_cannot_be_opened_is_not_an_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    expected = {"pipe": "not_a_file", "absent": "not_found", ".": "not_a_file", "a\0b": "not_found"}
    for name, code in expected.items():
        source = f"{tmp_path}/{name}"
        assert not is_archive(source)
        assert contents(source) == [("", code)], name


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files cannot be counted")
def test_files_are_closed_when_the_search_is_abandoned(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for data in (zipped(THREE), tarred(THREE), gzip.compress(tarred(THREE))):
        path.write_bytes(data)
        found = find_in_archive(str(path))
        items = list(islice(found, 2))
        found.close()  # type: ignore[attr-defined]
        assert len(os.listdir("/proc/self/fd")) == before
        assert [item.read() for item in items] == [THREE["1"], NOISE]
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_read_one_archive_in_parallel(path: Path) -> None:
    members = {str(n): random.Random(n).randbytes(20_000) for n in range(200)}
    for data in (zipped(members), tarred(members)):
        path.write_bytes(data)
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(Item.read, find_in_archive(str(path)))
            assert list(found) == list(members.values())


def test_the_directory_is_not_held_in_memory(path: Path) -> None:
    path.write_bytes(zipped({f"folder/{n}.jpg": b"x" for n in range(5000)}))
    tracemalloc.start()
    assert sum(1 for _ in find_in_archive(str(path))) == 5000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


SMALL = {"a.png": FORMATS["png"][:700], "b/c.jpg": NOISE[:600], "d" * 120: b"d"}
BASES = [
    zipped(SMALL),
    zipped(SMALL, zipfile.ZIP_STORED),
    tarred(SMALL),
    tarred(SMALL, tarfile.GNU_FORMAT),
    *(compress(tarred(SMALL)) for compress in (gzip.compress, bz2.compress, lzma.compress)),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.binary(max_size=8))
        data[at : at + draw(st.sampled_from((0, len(piece), 100)))] = piece
    return bytes(data[: draw(st.integers(1, len(data) + 1))] if draw(st.booleans()) else data)


@settings(max_examples=examples(500), deadline=None)
@given(damaged() | st.binary(max_size=600).map(lambda tail: b"PK\3\4" + tail))
def test_any_damage_gives_bytes_or_input_errors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    is_archive(str(path))
    for item in find_in_archive(str(path)):
        assert item.source.startswith(str(path))
        outcome(item)


def test_archives_of_gnu_tar_are_read(path: Path) -> None:
    """With a volume label, and incremental ones, whose times tarfile takes for names."""
    if not (tar := shutil.which("tar")) or "GNU" not in subprocess.getoutput("tar --version"):
        pytest.skip("needs GNU tar")
    (path.parent / "x.jpg").write_bytes(NOISE)
    for option in ("--label=holiday", "--incremental", "--format=v7"):
        command = [tar, "-C", str(path.parent), option, "-cf", str(path), "x.jpg"]
        subprocess.run(command, check=True)
        assert contents(path) == [("x.jpg", NOISE)], option


def test_large_members_of_a_compressed_tar_wait_compressed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MAX_PLAIN_BYTES", 1000)
    padded = FORMATS["jpeg"] + bytes(100_000)
    path.write_bytes(gzip.compress(tarred(dict.fromkeys("abcdefgh", padded))))
    tracemalloc.start()
    try:
        items = list(find_in_archive(str(path)))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [outcome(item) for item in items] == [padded] * 8
    assert held < 3 * len(padded)

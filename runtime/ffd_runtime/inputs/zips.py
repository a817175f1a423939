"""Members of a zip, by a reader that holds one entry of its directory at a time."""

from __future__ import annotations

import bz2
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from ..core.errors import InputError
from ..image.decode import MAX_BYTES, os_error
from . import members
from .inflate import Start, Zlib, inflate
from .items import Item
from .members import MAX_RATIO, PIECE, open_file, refuse_name, too_large, too_many

RATIO_FROM = 1 << 24

# Layout: PKWARE's APPNOTE.TXT, 4.3.


@dataclass(frozen=True)
class _ZipMember:
    """A line of a zip's directory.

    Attributes:
        name: undecodable bytes as surrogates.
        mode: as in `stat`; 0 if the zip was not made on Unix.
        flags: general purpose bits.
        method: of compression.
        crc: CRC-32 of the unpacked bytes.
        packed: size in the archive.
        size: unpacked.
        offset: of the local header in the file.
    """

    name: str
    mode: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


_END = struct.Struct("<4s8xIIH")
_END_64 = struct.Struct("<4s36xQQ")
_LOCATOR_64 = struct.Struct("<4s16x")
# Signature, version made by, flags, method, CRC-32, sizes, lengths of name, extra field and
# comment, external attributes, offset.
_ENTRY = struct.Struct("<4sH2xHH4xIIIHHH4xII")
_LOCAL = struct.Struct("<4s22xHH")
_ENCRYPTED, _UTF8 = 0x1, 0x800
_UNIX = 3
_METHODS: dict[int, Start] = {8: partial(Zlib, -15), 12: bz2.BZ2Decompressor}


def find_zipped(path: str, file: BinaryIO) -> Iterator[Item]:
    """Members of a zip, its directory read as they are taken."""
    file_size = os.fstat(file.fileno()).st_size
    position, end, shift = _zip_directory(file, file_size)
    file.seek(position)
    packed = 0
    for _ in range(members.MAX_MEMBERS):
        if position >= end:
            return
        member, length = _zip_member(file, shift)
        position += length
        inside = member.offset + member.packed <= file_size
        packed += member.packed if inside else 0
        # Members that share their bytes make any number of them out of a small file.
        if packed > file_size:
            raise InputError("refused", "the zip's members overlap: the rest is not read")
        if not member.name.endswith("/") and not stat.S_ISDIR(member.mode):
            error = _zip_refusal(member, inside)
            fetch = None if error else partial(_read_zip, path, member)
            yield Item(f"{path}!/{member.name}", error, fetch)
    if position < end:
        raise too_many()


def _zip_member(file: BinaryIO, shift: int) -> tuple[_ZipMember, int]:
    """The directory's next line, and its length.

    Raises:
        InputError: something else stands there.
    """
    entry = file.read(_ENTRY.size)
    if len(entry) < _ENTRY.size or not entry.startswith(b"PK\1\2"):
        raise InputError("corrupt", "the zip's directory is damaged: members are missing")
    _, made, flags, method, crc, packed, size, name, extra, comment, attributes, offset = (
        _ENTRY.unpack(entry)
    )
    text = file.read(name).decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape")
    size, packed, offset = _zip64(file.read(extra), [size, packed, offset])
    file.read(comment)
    mode = attributes >> 16 if made >> 8 == _UNIX else 0
    member = _ZipMember(text, mode, flags, method, crc, packed, size, offset + shift)
    return member, _ENTRY.size + name + extra + comment


def _zip_refusal(member: _ZipMember, inside: bool) -> InputError | None:
    """Why a member is not even tried, if so.

    Args:
        member: what the directory says of it.
        inside: whether it lies in the file.
    """
    refusal = refuse_name(member.name, member.mode)
    if refusal:
        return refusal
    if member.flags & _ENCRYPTED:
        return InputError("refused", "encrypted: ffd asks for no password")
    if member.method not in (0, *_METHODS):
        reason = f"packed by method {member.method}, which ffd does not read: repack it as deflate"
        return InputError("corrupt", reason)
    if member.size > MAX_BYTES:
        return too_large(MAX_BYTES)
    if not inside:
        return InputError("corrupt", "the zip's directory is wrong about where it lies")
    return None


def _zip_directory(file: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """Begin and end of the directory, and bytes that stand before the archive.

    Raises:
        InputError: there is none.
    """
    tail_at = max(0, file_size - _END.size - 0xFFFF)
    file.seek(tail_at)
    tail = file.read()
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + _END.size > len(tail):
            continue
        _, length, offset, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment > len(tail):
            continue
        end = tail_at + at
        before = _LOCATOR_64.size + _END_64.size
        file.seek(max(0, end - before))
        record = file.read(before)
        if end >= before and record[:4] == b"PK\6\6" and record[_END_64.size :][:4] == b"PK\6\7":
            _, length, offset = _END_64.unpack_from(record)
            end -= before
        shift = end - length - offset
        if shift < 0:
            break
        return end - length, end, shift
    raise InputError("truncated", "the zip has no directory: it ends early or is damaged")


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """Unpacked size, packed size and offset, from the extra field where they are too large."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            large = io.BytesIO(extra[4 : 4 + length])
            return [
                int.from_bytes(large.read(8), "little") if value == 0xFFFFFFFF else value
                for value in values
            ]
        extra = extra[4 + length :]
    return values


def _read_zip(path: str, member: _ZipMember) -> bytes:
    """Unpack a member; the file is opened anew, as items outlive the search and cross threads.

    Raises:
        InputError: `corrupt`, `truncated`, `too_large`, or the file cannot be read.
    """
    try:
        with open_file(path) as file:
            file.seek(member.offset)
            local = file.read(_LOCAL.size)
            if len(local) < _LOCAL.size or not local.startswith(b"PK\3\4"):
                raise InputError("corrupt", "its header in the zip is damaged")
            _, name, extra = _LOCAL.unpack(local)
            file.seek(name + extra, os.SEEK_CUR)
            return _unpack(file, member)
    except OSError as error:
        raise os_error(error, path) from None


def _unpack(file: BinaryIO, member: _ZipMember) -> bytes:
    left = member.packed

    def read(size: int) -> bytes:
        nonlocal left
        data = file.read(min(size, left))
        left -= len(data)
        return data

    start = _METHODS.get(member.method)
    pieces = inflate(read, start) if start else iter(partial(read, PIECE), b"")
    unpacked = io.BytesIO()
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
        size = unpacked.tell() + unpacked.write(piece)
        if size > member.size:
            break
        if size > max(RATIO_FROM, MAX_RATIO * member.packed):
            raise InputError("too_large", f"it unpacks to over {MAX_RATIO} times its packed size")
    if unpacked.tell() < member.size and left:
        raise InputError("truncated", "the zip ends before it does")
    if unpacked.tell() != member.size or crc != member.crc:
        raise InputError("corrupt", "damaged in the zip: size or checksum is wrong")
    return unpacked.getvalue()

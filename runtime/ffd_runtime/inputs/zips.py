"""Read the members of a zip, with one entry of its directory in memory at a time."""

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
from ..image.decode import MAX_FILE_BYTES, open_file
from . import members
from .inflate import Start, Zlib, inflate
from .items import Item
from .members import CHUNK_BYTES, MAX_RATIO, refuse_name, too_large, too_many

MIN_RATIO_BYTES = 1 << 24

# Layout: PKWARE's APPNOTE.TXT, 4.3.


@dataclass(frozen=True)
class _ZipMember:
    """An entry of the directory of a zip.

    Attributes:
        name: with undecodable bytes as surrogates.
        mode: as in `stat`; 0 if the zip was not written on Unix.
        flags: general purpose bits.
        method: of compression.
        crc: CRC-32 of the unpacked bytes.
        packed: size in the archive, in bytes.
        size: unpacked, in bytes.
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


def find_members(path: str, file: BinaryIO) -> Iterator[Item]:
    """Yield the members of a zip, reading its directory on demand."""
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
        # Members that share bytes could expand a small file without limit.
        if packed > file_size:
            raise InputError("refused", "the zip's members overlap: the rest is not read")
        if not member.name.endswith("/") and not stat.S_ISDIR(member.mode):
            error = _zip_refusal(member, inside)
            fetch = None if error else partial(_read_zip, path, member)
            yield Item(f"{path}!/{member.name}", error, fetch)
    if position < end:
        raise too_many()


def _zip_member(file: BinaryIO, shift: int) -> tuple[_ZipMember, int]:
    """Read the next entry of the directory, and its length.

    Raises:
        InputError: the entry is damaged.
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
    """Return why a member must not be read; None if it may.

    Args:
        member: its entry in the directory.
        inside: whether its data is within the file.
    """
    refusal = refuse_name(member.name, member.mode)
    if refusal:
        return refusal
    if member.flags & _ENCRYPTED:
        return InputError("refused", "encrypted members are not supported")
    if member.method not in (0, *_METHODS):
        reason = f"compression method {member.method} is not supported: repack it with deflate"
        return InputError("corrupt", reason)
    if member.size > MAX_FILE_BYTES:
        return too_large(MAX_FILE_BYTES)
    if not inside:
        return InputError("corrupt", "its offset in the zip's directory is invalid")
    return None


def _zip_directory(file: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """Find start and end of the directory, and the size of the data before the archive.

    Raises:
        InputError: the zip has no directory.
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
    """Replace sizes and offset by those of the zip64 extra field where they exceed 32 bits."""
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
    """Unpack a member. Open the file again, because items outlive the search and change threads.

    Raises:
        InputError: `corrupt`, `truncated`, `too_large`, or the file cannot be opened.
        OSError: reading fails.
    """
    with open_file(path) as file:
        file.seek(member.offset)
        local = file.read(_LOCAL.size)
        if len(local) < _LOCAL.size or not local.startswith(b"PK\3\4"):
            raise InputError("corrupt", "its header in the zip is damaged")
        _, name, extra = _LOCAL.unpack(local)
        file.seek(name + extra, os.SEEK_CUR)
        return _unpack(file, member)


def _unpack(file: BinaryIO, member: _ZipMember) -> bytes:
    left = member.packed

    def read(size: int) -> bytes:
        nonlocal left
        data = file.read(min(size, left))
        left -= len(data)
        return data

    start = _METHODS.get(member.method)
    pieces = inflate(read, start) if start else iter(partial(read, CHUNK_BYTES), b"")
    unpacked = io.BytesIO()
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
        size = unpacked.tell() + unpacked.write(piece)
        if size > member.size:
            break
        if size > max(MIN_RATIO_BYTES, MAX_RATIO * member.packed):
            raise InputError("too_large", f"it unpacks to over {MAX_RATIO} times its packed size")
    if unpacked.tell() < member.size and left:
        raise InputError("truncated", "the zip ends before the end of this member")
    if unpacked.tell() != member.size or crc != member.crc:
        raise InputError("corrupt", "damaged in the zip: its size or checksum is wrong")
    return unpacked.getvalue()

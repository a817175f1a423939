"""Read the members of a zip, with one entry of its directory in memory at a time."""

from __future__ import annotations

import bz2
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO
from zipfile import ZipInfo

from ..core.errors import InputError
from ..image.decode import MAX_FILE_BYTES, open_file
from . import members
from .inflate import Start, Zlib, inflate
from .items import Item
from .members import CHUNK_BYTES, MAX_RATIO, refuse_name, too_large, too_many

MIN_RATIO_BYTES = 1 << 24

# Layout: PKWARE's APPNOTE.TXT, 4.3.
_END = struct.Struct("<4s8xIIH")
_END_64 = struct.Struct("<4s36xQQ")
_LOCATOR_64 = struct.Struct("<4s16x")
# Signature, system, flags, method, CRC-32, sizes, lengths of name, extra field and comment,
# external attributes, offset.
_ENTRY = struct.Struct("<4sxB2xHH4xIIIHHH4xII")
_LOCAL = struct.Struct("<4s22xHH")
_ENCRYPTED, _UTF8 = 0x1, 0x800
_UNIX = 3
_ZIP64, _UNICODE_PATH = 0x1, 0x7075
_METHODS: dict[int, Start] = {8: partial(Zlib, -15), 12: bz2.BZ2Decompressor}


def find_members(path: str, file: BinaryIO) -> Iterator[Item]:
    """Yield the members of a zip, reading its directory on demand."""
    file_size = os.fstat(file.fileno()).st_size
    begin, end, shift = _find_directory(file, file_size)
    file.seek(begin)
    packed = 0
    for _ in range(members.MAX_MEMBERS):
        if file.tell() >= end:
            return
        member = _read_entry(file)
        member.header_offset += shift
        inside = member.header_offset + member.compress_size <= file_size
        packed += member.compress_size if inside else 0
        # Members that share bytes could expand a small file without limit.
        if packed > file_size:
            raise InputError("refused", "the zip's members overlap: the rest is not read")
        if not member.filename.endswith("/") and not stat.S_ISDIR(_mode(member)):
            error = _refuse(member, inside)
            fetch = None if error else partial(_read_member, path, member)
            yield Item(f"{path}!/{member.filename}", error, fetch)
    if file.tell() < end:
        raise too_many()


def _read_entry(file: BinaryIO) -> ZipInfo:
    """Read the next entry of the directory."""
    entry = file.read(_ENTRY.size)
    if len(entry) < _ENTRY.size or not entry.startswith(b"PK\1\2"):
        raise InputError("corrupt", "the zip's directory is damaged: members are missing")
    _, system, flags, method, crc, packed, size, name, extra, comment, attributes, offset = (
        _ENTRY.unpack(entry)
    )
    member = ZipInfo()
    raw, fields = file.read(name), _extra_fields(file.read(extra))
    member.filename = _decode_name(raw, fields, flags, system)
    member.create_system, member.external_attr = system, attributes
    member.flag_bits, member.compress_type, member.CRC = flags, method, crc
    member.file_size, member.compress_size, member.header_offset = _zip64(
        fields, [size, packed, offset]
    )
    file.seek(comment, os.SEEK_CUR)
    return member


def _mode(member: ZipInfo) -> int:
    """Return the mode as in `stat`; 0 if the zip was not written on Unix."""
    return member.external_attr >> 16 if member.create_system == _UNIX else 0


def _refuse(member: ZipInfo, inside: bool) -> InputError | None:
    """Return why a member must not be read; None if it may."""
    refusal = refuse_name(member.filename, _mode(member))
    if refusal:
        return refusal
    if member.flag_bits & _ENCRYPTED:
        return InputError("refused", "encrypted members are not supported")
    if member.compress_type not in (0, *_METHODS):
        reason = f"compression method {member.compress_type} is not supported"
        return InputError("corrupt", f"{reason}: repack it with deflate")
    if member.file_size > MAX_FILE_BYTES:
        return too_large(MAX_FILE_BYTES)
    if not inside:
        return InputError("corrupt", "its offset in the zip's directory is invalid")
    return None


def _find_directory(file: BinaryIO, file_size: int) -> tuple[int, int, int]:
    """Find start and end of the directory, and the size of the data before the archive."""
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


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    """Return the content of each extra field; of two of a kind, the first."""
    fields: dict[int, bytes] = {}
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        fields.setdefault(kind, extra[4 : 4 + length])
        extra = extra[4 + length :]
    return fields


def _decode_name(raw: bytes, fields: dict[int, bytes], flags: int, system: int) -> str:
    """Decode a name, which on Unix may be UTF-8 without its flag, or be in a field of its own."""
    unicode_path = fields.get(_UNICODE_PATH, b"")
    if unicode_path[:5] == struct.pack("<BI", 1, zlib.crc32(raw)):
        return unicode_path[5:].decode("utf-8", "surrogateescape")
    if flags & _UTF8:
        return raw.decode("utf-8", "surrogateescape")
    if system == _UNIX:
        with suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
    return raw.decode("cp437")


def _zip64(fields: dict[int, bytes], values: list[int]) -> list[int]:
    """Replace sizes and offset by those of the zip64 extra field where they exceed 32 bits."""
    large = io.BytesIO(fields.get(_ZIP64, b""))
    if _ZIP64 not in fields:
        return values
    return [
        int.from_bytes(large.read(8), "little") if value == 0xFFFFFFFF else value
        for value in values
    ]


def _read_member(path: str, member: ZipInfo) -> bytes:
    """Unpack a member. Open the file again, because items outlive the search and change threads."""
    with open_file(path) as file:
        file.seek(member.header_offset)
        local = file.read(_LOCAL.size)
        if len(local) < _LOCAL.size or not local.startswith(b"PK\3\4"):
            raise InputError("corrupt", "its header in the zip is damaged")
        _, name, extra = _LOCAL.unpack(local)
        file.seek(name + extra, os.SEEK_CUR)
        return _unpack(file, member)


def _unpack(file: BinaryIO, member: ZipInfo) -> bytes:
    left = member.compress_size

    def read(size: int) -> bytes:
        nonlocal left
        data = file.read(min(size, left))
        left -= len(data)
        return data

    start = _METHODS.get(member.compress_type)
    pieces = inflate(read, start) if start else iter(partial(read, CHUNK_BYTES), b"")
    unpacked = io.BytesIO()
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
        size = unpacked.tell() + unpacked.write(piece)
        if size > member.file_size:
            break
        if size > max(MIN_RATIO_BYTES, MAX_RATIO * member.compress_size):
            raise InputError("too_large", f"it unpacks to over {MAX_RATIO} times its packed size")
    if unpacked.tell() < member.file_size and left:
        raise InputError("truncated", "the zip ends before the end of this member")
    if unpacked.tell() != member.file_size or crc != member.CRC:
        raise InputError("corrupt", "damaged in the zip: its size or checksum is wrong")
    return unpacked.getvalue()

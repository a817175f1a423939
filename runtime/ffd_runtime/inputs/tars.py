"""Read the members of a tar, with or without compression, and detect damage inside."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import BinaryIO

from ..core.errors import InputError
from ..image.decode import MAX_FILE_BYTES, open_file
from . import members
from .inflate import Start, find_compression, inflate
from .items import Item
from .members import MAX_RATIO, TAR_BLOCK_BYTES, refuse_name, too_large, too_many

MIN_STREAM_RATIO_BYTES = 1 << 28
# Members of a compressed tar are read in order, and wait in memory.
MAX_CARRIED_BYTES = 1 << 27
# Larger members wait compressed if their last bytes can be compressed well.
MAX_PLAIN_BYTES = 1 << 24
SAMPLE_BYTES = 1 << 16
# Data that is searched after a damaged header or after the end mark.
MAX_JUNK_BYTES = 1 << 26
# For long names of GNU tar and attributes of pax; a larger header is damaged or malicious.
MAX_HEADER_BYTES = 1 << 20

# Layout: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar's manual.
# `V` is the volume label of GNU tar, which tarfile does not name.
_OTHER_EXTENSIONS = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, b"V")
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
# They have no data, whatever size their headers state.
ZEROS = bytes(TAR_BLOCK_BYTES)
GNU_MAGIC = b"ustar  \0"
_WITHOUT_DATA = (*_LINKS, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class _DamagedError(Exception):
    """A part of a tar is damaged; reading continues after it."""


class _Plain:
    """An uncompressed tar: members are skipped, and read later in a worker thread."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.position = 0
        self._path = path
        self._file = file
        self._identity = _identity(file)
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        """Read the next bytes; fewer at the end of the tar."""
        data = self._file.read(size)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        """Skip the next bytes, which must be there."""
        if self.position + size > self._size:
            raise _tar_ends()
        self.position = self._file.seek(size, os.SEEK_CUR)

    def member(self, size: int) -> Callable[[], bytes]:
        """Skip the next bytes, and return a function that reads them later."""
        position = self.position
        self.skip(size)
        if size > MAX_FILE_BYTES:
            raise too_large(MAX_FILE_BYTES)
        return partial(_read_at, self._path, self._identity, position, size)

    def finish(self) -> None:
        """Do nothing: data after the end mark does not show damage before it."""


class _Inflated:
    """A compressed tar: members stay in memory, or reading them later would unpack it again."""

    def __init__(self, file: BinaryIO, start: Start) -> None:
        self.position = 0
        self._file = file
        self._pieces = inflate(file.read, start)
        self._rest = b""

    def _next(self) -> bytes:
        """Return some of the next bytes; empty at the end."""
        piece = self._rest or next(self._pieces, b"")
        self._rest = b""
        self.position += len(piece)
        if self.position > max(MIN_STREAM_RATIO_BYTES, MAX_RATIO * self._file.tell()):
            reason = f"the tar unpacks to over {MAX_RATIO} times its size: the rest is not read"
            raise InputError("too_large", reason)
        return piece

    def _pieces_of(self, size: int) -> Iterator[bytes]:
        while size and (piece := self._next()):
            self._rest = piece[size:]
            self.position -= len(self._rest)
            size -= len(piece) - len(self._rest)
            yield piece[: len(piece) - len(self._rest)]

    def read(self, size: int) -> bytes:
        """See `_Plain`."""
        data = io.BytesIO()
        data.writelines(self._pieces_of(size))
        return data.getvalue()

    def skip(self, size: int) -> None:
        """See `_Plain`."""
        if sum(map(len, self._pieces_of(size))) < size:
            raise _tar_ends()

    def member(self, size: int) -> Callable[[], bytes]:
        """See `_Plain`; the size limit is lower."""
        if size > MAX_CARRIED_BYTES:
            self.skip(size)
            raise too_large(MAX_CARRIED_BYTES)
        data = self.read(size)
        if len(data) < size:
            raise _tar_ends()
        if (
            size > MAX_PLAIN_BYTES
            and len(zlib.compress(data[-SAMPLE_BYTES:], 1)) < SAMPLE_BYTES // 8
        ):
            # Many large members may wait. In a small archive, most of their bytes are zeros.
            return partial(zlib.decompress, zlib.compress(data, 1))
        return lambda: data

    def finish(self) -> None:
        """Read the rest, whose checksum detects damage."""
        end = self.position + MAX_JUNK_BYTES
        while self.position < end and self._next():
            pass


def find_members(path: str, file: BinaryIO) -> Iterator[Item]:
    """Yield the members of a tar."""
    start = find_compression(file.read(8))
    file.seek(0)
    stream = _Inflated(file, start) if start else _Plain(path, file)
    headers = _TarHeaders(stream)
    for _ in range(members.MAX_MEMBERS):
        try:
            header = headers.next()
        except _DamagedError as damage:
            yield Item(path, InputError("corrupt", f"the tar is damaged: {damage}"))
            continue
        if header is None:
            return
        if header.isdir():
            continue
        source = f"{path}!/{header.name}"
        refusal = _refuse(header)
        if header.type in _WITHOUT_DATA:
            yield Item(source, refusal)
            continue
        try:
            fetch = stream.member(header.size)
        except InputError as error:
            yield Item(source, error)
            if error.code != "too_large":
                return
        else:
            yield Item(source, refusal, None if refusal else fetch)
        # Skip the padding; a tar may end without it.
        stream.read(-header.size % TAR_BLOCK_BYTES)
    raise too_many()


class _TarHeaders:
    """The headers of a tar, each combined with the extended headers before it."""

    def __init__(self, stream: _Plain | _Inflated) -> None:
        self._stream = stream
        self._lost = False

    def next(self) -> tarfile.TarInfo | None:
        """Return the header of the next member; None at the end mark.

        After `_DamagedError`, the next call searches for another header.
        """
        name: bytes | None = None
        pax: dict[bytes, bytes] = {}
        while header := self._header():
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = self._data(header).split(b"\0", 1)[0]
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                pax = _pax_records(self._data(header))
            elif header.type in _OTHER_EXTENSIONS:
                self._data(header)
            else:
                return _extend(header, name, pax)
        return None

    def _header(self) -> tarfile.TarInfo | None:
        begin = self._stream.position
        while block := self._stream.read(TAR_BLOCK_BYTES):
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                header = None
            if header and block[257:265] == GNU_MAGIC:
                # Incremental archives have times where tarfile expects a part of the name.
                header.name = block[:100].split(b"\0")[0].decode("utf-8", "surrogateescape")
            if header and header.size >= 0:
                self._lost = False
                # Old GNU format: a flag announces another block of the map.
                more = header.type == tarfile.GNUTYPE_SPARSE and block[482]
                while more:
                    block = self._stream.read(TAR_BLOCK_BYTES)
                    more = len(block) == TAR_BLOCK_BYTES and block[504]
                return header
            if not self._lost and block == ZEROS:
                self._read_end()
                return None
            if not self._lost and len(block) == TAR_BLOCK_BYTES:
                self._lost = True
                raise _DamagedError(f"the member at byte {begin} is lost")
            if self._stream.position - begin > MAX_JUNK_BYTES:
                raise InputError("corrupt", "the tar is damaged: the rest is not read")
        raise _tar_ends()

    def _read_end(self) -> None:
        """Read what follows the end mark.

        Raises:
            InputError: the rest of a compressed tar is damaged, or another tar follows.
        """
        end = self._stream.position + MAX_JUNK_BYTES
        while self._stream.position < end and (block := self._stream.read(TAR_BLOCK_BYTES)):
            if block != ZEROS:
                with suppress(tarfile.HeaderError):
                    tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                    reason = "another tar follows its end: join tars with tar --concatenate"
                    raise InputError("truncated", reason)
                break
        self._stream.finish()

    def _data(self, header: tarfile.TarInfo) -> bytes:
        """Read the content of an extended header."""
        padded = header.size + -header.size % TAR_BLOCK_BYTES
        if header.size > MAX_HEADER_BYTES:
            self._stream.skip(padded)
            raise _DamagedError(f"an extended header of {header.size} bytes is skipped")
        return self._stream.read(padded)[: header.size]


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Parse a pax extended header: records of `LENGTH KEY=VALUE` and a newline."""
    records = {}
    begin, size = 0, len(data.rstrip(b"\0"))
    while begin < size:
        digits, _, _ = data[begin : begin + 8].partition(b" ")
        end = begin + (int(digits) if digits.isdigit() else 0)
        if not begin < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _DamagedError("an extended header is invalid")
        key, _, value = data[begin + len(digits) + 1 : end - 1].partition(b"=")
        records[key] = value
        begin = end
    return records


def _extend(
    header: tarfile.TarInfo, name: bytes | None, pax: dict[bytes, bytes]
) -> tarfile.TarInfo:
    """Apply long names and pax records to a header."""
    name = pax.get(b"GNU.sparse.name", pax.get(b"path", name))
    if name is not None:
        header.name = name.decode("utf-8", "surrogateescape")
    if b"size" in pax:
        if not re.fullmatch(rb"\d{1,19}", pax[b"size"]):
            raise _DamagedError("the size in an extended header is not a number")
        header.size = int(pax[b"size"])
    if any(key.startswith(b"GNU.sparse.") for key in pax):
        header.type = tarfile.GNUTYPE_SPARSE
    return header


def _refuse(header: tarfile.TarInfo) -> InputError | None:
    if header.type == tarfile.GNUTYPE_SPARSE:
        return InputError("refused", "a sparse file: pack it without --sparse")
    mode = stat.S_IFIFO if header.type in _WITHOUT_DATA else stat.S_IFREG
    return refuse_name(header.name, stat.S_IFLNK if header.type in _LINKS else mode)


def _identity(file: BinaryIO) -> tuple[int, ...]:
    """Return values that change if a file is replaced or written."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_at(path: str, identity: tuple[int, ...], position: int, size: int) -> bytes:
    with open_file(path) as file:
        if _identity(file) != identity:
            raise InputError("read_failed", "the tar changed while it was read")
        file.seek(position)
        data = file.read(size)
    if len(data) < size:
        raise _tar_ends()
    return data


def _tar_ends() -> InputError:
    return InputError("truncated", "the tar ends early: members may be missing")

"""Members of a tar, plain or compressed; damage inside is told from the end."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO, Protocol

from ..core.errors import InputError
from ..image.decode import MAX_BYTES, os_error
from . import members
from .inflate import Start, find_compression, inflate
from .items import Item
from .members import MAX_RATIO, TAR_BLOCK_BYTES, open_file, refuse_name, too_large, too_many

STREAM_RATIO_FROM = 1 << 28
# A compressed tar is read in order, so that its members wait in memory for their turn.
MAX_CARRIED = 1 << 27
# Bytes behind a damaged tar header, or behind a tar's end mark, that are looked at.
MAX_JUNK = 1 << 26

# Layout: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar's manual.


class _TarFile(Protocol):
    """A tar being read from begin to end."""

    position: int

    def read(self, size: int) -> bytes: ...
    def skip(self, size: int) -> None: ...
    def member(self, size: int) -> Callable[[], bytes]: ...
    def finish(self) -> None: ...


class _Plain:
    """A tar as it is: members are left out now and read in a worker's thread."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.position = 0
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        data = self._file.read(size)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        """Go on behind the next bytes.

        Raises:
            InputError: there are fewer.
        """
        if self.position + size > self._size:
            raise _tar_ends()
        self.position = self._file.seek(size, os.SEEK_CUR)

    def member(self, size: int) -> Callable[[], bytes]:
        """What gives the next bytes, later.

        Raises:
            InputError: there are fewer, or too many.
        """
        position = self.position
        self.skip(size)
        if size > MAX_BYTES:
            raise too_large(MAX_BYTES)
        return partial(_read_at, self._path, position, size)

    def finish(self) -> None:
        """Nothing: what stands behind the end mark says nothing of what stands before."""


class _Inflated:
    """A compressed tar: what comes now would have to be unpacked anew later, so it is kept."""

    def __init__(self, file: BinaryIO, start: Start) -> None:
        self.position = 0
        self._file = file
        self._pieces = inflate(file.read, start)
        self._rest = b""

    def _next(self) -> bytes:
        """Something of what comes next, nothing at the end."""
        piece = self._rest or next(self._pieces, b"")
        self._rest = b""
        self.position += len(piece)
        if self.position > max(STREAM_RATIO_FROM, MAX_RATIO * self._file.tell()):
            reason = f"the tar unpacks to over {MAX_RATIO} times its size: the rest is not read"
            raise InputError("too_large", reason)
        return piece

    def _keep(self, rest: bytes) -> None:
        self._rest = rest
        self.position -= len(rest)

    def read(self, size: int) -> bytes:
        """See `_Plain`."""
        data = io.BytesIO()
        while data.tell() < size and (piece := self._next()):
            missing = size - data.tell()
            data.write(piece[:missing])
            self._keep(piece[missing:])
        return data.getvalue()

    def skip(self, size: int) -> None:
        """See `_Plain`."""
        while size:
            piece = self._next()
            if not piece:
                raise _tar_ends()
            self._keep(piece[size:])
            size -= min(size, len(piece))

    def member(self, size: int) -> Callable[[], bytes]:
        """See `_Plain`; the limit is lower."""
        if size > MAX_CARRIED:
            self.skip(size)
            raise too_large(MAX_CARRIED)
        data = self.read(size)
        if len(data) < size:
            raise _tar_ends()
        return lambda: data

    def finish(self) -> None:
        """Read what is left: the checksum behind it tells of damage before.

        Raises:
            InputError: `corrupt` or `truncated`.
        """
        end = self.position + MAX_JUNK
        while self.position < end and self._next():
            pass


def find_tarred(path: str, file: BinaryIO) -> Iterator[Item]:
    """Members of a tar."""
    start = find_compression(file.read(8))
    file.seek(0)
    stream: _TarFile = _Inflated(file, start) if start else _Plain(path, file)
    headers = _TarHeaders(stream)
    for _ in range(members.MAX_MEMBERS):
        try:
            header = headers.next()
        except _DamageError as damage:
            yield Item(path, InputError("corrupt", f"the tar is damaged: {damage}"))
            continue
        if header is None:
            return
        if header.isdir():
            continue
        source = f"{path}!/{header.name}"
        refusal = _tar_refusal(header)
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
        # The padding; a tar may end without it.
        stream.read(-header.size % TAR_BLOCK_BYTES)
    raise too_many()


class _DamageError(Exception):
    """Some of a tar cannot be understood; reading goes on behind it."""


class _TarHeaders:
    """The headers of a tar, each with what extended headers before it say.

    Args:
        stream: stands at a header whenever `next` is called.
    """

    # Long names of GNU tar and attributes of pax; what is longer is damaged or a bomb.
    LONGEST = 1 << 20

    def __init__(self, stream: _TarFile) -> None:
        self._stream = stream
        self._lost = False

    def next(self) -> tarfile.TarInfo | None:
        """The next member's header; None at the end mark.

        Raises:
            _DamageError: there is no header here; the next call looks for one behind.
            InputError: the tar ends without its mark, or cannot be read.
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
            header = _parse_header(block)
            if header:
                self._lost = False
                self._skip_sparse_map(header, block)
                return header
            if not self._lost and block == bytes(TAR_BLOCK_BYTES):
                self._stream.finish()
                return None
            if not self._lost and len(block) == TAR_BLOCK_BYTES:
                self._lost = True
                raise _DamageError(f"what stands at byte {begin} is lost")
            if self._stream.position - begin > MAX_JUNK:
                raise InputError("corrupt", "the tar is damaged: the rest is not read")
        raise _tar_ends()

    def _data(self, header: tarfile.TarInfo) -> bytes:
        """What an extended header holds."""
        if header.size > self.LONGEST:
            self._stream.skip(header.size + -header.size % TAR_BLOCK_BYTES)
            raise _DamageError(f"an extended header of {header.size} bytes is left out")
        data = self._stream.read(header.size + -header.size % TAR_BLOCK_BYTES)
        return data[: header.size]

    def _skip_sparse_map(self, header: tarfile.TarInfo, block: bytes) -> None:
        # Old GNU format: a flag says whether a block with more of the map follows.
        more = header.type == tarfile.GNUTYPE_SPARSE and block[482]
        while more:
            block = self._stream.read(TAR_BLOCK_BYTES)
            more = len(block) == TAR_BLOCK_BYTES and block[504]


# GNU tar's label of a volume has no name in tarfile.
_OTHER_EXTENSIONS = (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE, b"V")
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
# Whatever size their headers give.
_WITHOUT_DATA = _LINKS + _DEVICES


def _parse_header(block: bytes) -> tarfile.TarInfo | None:
    """A header block whose checksum is right."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return header if header.size >= 0 else None


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax extended header, each `LENGTH KEY=VALUE` and a newline.

    Raises:
        _DamageError: it holds something else.
    """
    records = {}
    while data.strip(b"\0"):
        digits, _, _ = data[:8].partition(b" ")
        end = int(digits) if digits.isdigit() else 0
        if not 0 < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _DamageError("an extended header makes no sense")
        key, _, value = data[len(digits) + 1 : end - 1].partition(b"=")
        records[key] = value
        data = data[end:]
    return records


def _extend(
    header: tarfile.TarInfo, name: bytes | None, pax: dict[bytes, bytes]
) -> tarfile.TarInfo:
    """A header with what its block had no room for."""
    name = pax.get(b"GNU.sparse.name", pax.get(b"path", name))
    if name is not None:
        header.name = name.decode("utf-8", "surrogateescape")
    if b"size" in pax:
        if not re.fullmatch(rb"\d{1,19}", pax[b"size"]):
            raise _DamageError("an extended header gives a size that is no number")
        header.size = int(pax[b"size"])
    if any(key.startswith(b"GNU.sparse.") for key in pax):
        header.type = tarfile.GNUTYPE_SPARSE
    return header


def _tar_refusal(header: tarfile.TarInfo) -> InputError | None:
    kind = stat.S_IFREG
    if header.type in _WITHOUT_DATA:
        kind = stat.S_IFLNK if header.type in _LINKS else stat.S_IFIFO
    elif header.type == tarfile.GNUTYPE_SPARSE:
        return InputError("refused", "a sparse file: pack it without --sparse")
    return refuse_name(header.name, kind)


def _read_at(path: str, position: int, size: int) -> bytes:
    try:
        with open_file(path) as file:
            file.seek(position)
            data = file.read(size)
    except OSError as error:
        raise os_error(error, path) from None
    if len(data) < size:
        raise _tar_ends()
    return data


def _tar_ends() -> InputError:
    return InputError("truncated", "the tar ends early: members may be missing")

"""Capture the messages of C decoders.

libjpeg and libpng write warnings to C's `stderr`, without a file name, and OpenCV returns the image
regardless. glibc lets a program set the variable `stderr` ("Standard Streams" in its manual), so it
points to a memory file while images are decoded.

All threads share this variable. When a message means damage, the image is therefore decoded again
with no other at the same time. Damage is rare, so the cost is low.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# Above this size, new decoders wait until the text is discarded.
_MAX_TEXT_BYTES = 1 << 20
_UNBUFFERED = 2
# Warnings of libjpeg (jerror.h), which prints one for each image, and of libpng.
_OURS = re.compile(
    rb"Corrupt JPEG data|Premature end of JPEG|Warning: unknown JFIF|Invalid SOS parameters|"
    rb"Inconsistent progression|Unknown Adobe|Application transferred|Corrupt color data|libpng "
)


class DecoderMessages:
    """Runs decoders in any number of threads, and captures their messages."""

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._active = 0
        self._entries = 0
        self._exclusive = False
        self._waiting = 0
        self._opened = False
        self._file = -1
        self._stream: int | None = None
        self._variable = ctypes.c_void_p()
        self._usual: int | None = None

    def run(
        self, decode: Callable[[], T], suspicious: Callable[[T, str], bool], alone: bool = False
    ) -> tuple[T, str]:
        """Decode without output to the terminal, and return the result and its text.

        Args:
            decode: called once, or twice if the text may belong to another thread.
            suspicious: returns whether a text must belong to this image, given result and text.
            alone: whether to decode exclusively from the start, and only once.
        """
        if not self.available():
            return decode(), ""
        if not alone:
            with self._decoding(False) as begin:
                number = self._entries
                single = self._active == 1
                result = decode()
                text = self._text(begin)
                single = single and number == self._entries
            if single or not suspicious(result, text):
                return result, text
        with self._decoding(True) as begin:
            return decode(), self._text(begin)

    def available(self) -> bool:
        """Return whether the C library lets a program set `stderr`."""
        with self._changed:
            if not self._opened:
                self._opened = True
                self._open()
        return self._file >= 0

    def _after_fork(self) -> None:
        # The memory file is shared with the parent, and the lock may have no owner.
        if self._file >= 0:
            self._variable.value = self._usual
            os.close(self._file)
        self._reset()

    def _open(self) -> None:
        try:
            library = ctypes.CDLL(None)
            # In musl, stderr is a constant, and writing to it ends the process.
            _ = library.gnu_get_libc_version
            self._variable = ctypes.c_void_p.in_dll(library, "stderr")
            file = os.memfd_create("decoder messages", os.MFD_CLOEXEC)
        except (OSError, AttributeError, ValueError, TypeError):
            return
        library.fdopen.restype = ctypes.c_void_p
        library.setvbuf.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        stream = library.fdopen(file, b"a")
        if stream:
            library.setvbuf(stream, None, _UNBUFFERED, 0)
            self._stream, self._usual, self._file = stream, self._variable.value, file

    @contextmanager
    def _decoding(self, alone: bool) -> Iterator[int]:
        """Redirect `stderr` to the memory file, and yield the offset of new text."""
        with self._changed:
            self._waiting += alone
            try:
                while self._exclusive or self._must_wait(alone):
                    self._changed.wait()
            finally:
                # A signal may end the wait with an exception.
                self._waiting -= alone
                self._changed.notify_all()
            self._exclusive = alone
            self._active += 1
            self._entries += 1
            self._variable.value = self._stream
            begin = self._size()
        try:
            yield begin
        finally:
            with self._changed:
                self._active -= 1
                self._exclusive = False
                if not self._active:
                    self._variable.value = self._usual
                    self._pass_on()
                self._changed.notify_all()

    def _must_wait(self, alone: bool) -> bool:
        if alone:
            return self._active > 0
        # Otherwise the thread that must be alone could wait forever.
        return self._waiting > 0 or (self._active > 0 and self._size() > _MAX_TEXT_BYTES)

    def _size(self) -> int:
        return os.fstat(self._file).st_size

    def _text(self, begin: int) -> str:
        size = max(self._size() - begin, 0)
        return os.pread(self._file, size, begin).decode("utf-8", "replace")

    def _pass_on(self) -> None:
        """Print the messages of other code, and discard all text."""
        size = self._size()
        if size:
            lines = os.pread(self._file, size, 0).splitlines(keepends=True)
            others = b"".join(line for line in lines if not _OURS.match(line))
            os.ftruncate(self._file, 0)
            if others:
                os.write(2, others)


messages = DecoderMessages()

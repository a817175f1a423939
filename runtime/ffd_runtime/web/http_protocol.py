"""Limits that uvicorn lacks: number of connections, and time to send a request."""

from __future__ import annotations

import asyncio
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# File descriptors must remain for the cameras' reconnects.
MAX_CONNECTIONS = 128
REQUEST_TIMEOUT_SECONDS = 10.0


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol that closes excess connections, and those that send or read too slowly.

    The limit applies to the first request, and to each later one from its first byte. A response
    of which nothing was read for that time ends the connection, too.
    """

    _timeout: asyncio.TimerHandle | None = None
    _watch: asyncio.TimerHandle | None = None
    # Bytes that the peer had not read at the last look.
    _unread = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = stream
            stream.abort()
            return
        super().connection_made(stream)
        self._start_timeout()
        self._watch_reading()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        incomplete, _ = self.conn.trailing_data
        if self.conn.their_state is not h11.IDLE:
            self._stop_timeout()
        elif incomplete and self._timeout is None:
            self._start_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timeout()
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _start_timeout(self) -> None:
        self._timeout = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._close_silent)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _watch_reading(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread and unread >= self._unread > 0:
            self.transport.abort()
            return
        self._unread = unread
        self._watch = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._watch_reading)

    def _close_silent(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

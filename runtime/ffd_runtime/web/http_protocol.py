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
    """uvicorn's protocol that closes excess connections, and those that send no request in time.

    The limit applies to the first request, and to each later one from its first byte.
    """

    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = stream
            stream.abort()
            return
        super().connection_made(stream)
        self._start_timeout()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        incomplete, _ = self.conn.trailing_data
        if self.conn.their_state is not h11.IDLE:
            self._stop_timeout()
        elif incomplete and self._timeout is None:
            self._start_timeout()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timeout()
        super().connection_lost(exc)

    def _start_timeout(self) -> None:
        self._timeout = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._close_silent)

    def _stop_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _close_silent(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

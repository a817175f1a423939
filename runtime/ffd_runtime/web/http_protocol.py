"""Limits that uvicorn lacks: number of connections, and time until the first request."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

# File descriptors must remain for the cameras' reconnects.
MAX_CONNECTIONS = 128
REQUEST_TIMEOUT_SECONDS = 10.0


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol that closes excess connections, and those that send no request in time."""

    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast(asyncio.Transport, transport)
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = stream
            stream.abort()
            return
        super().connection_made(stream)
        self._timeout = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._close_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        super().connection_lost(exc)

    def _close_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()

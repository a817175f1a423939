"""What uvicorn leaves open: how many connections there may be, and how long one may say nothing."""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

# Descriptors are the cameras' too: a reconnect must find some.
MAX_CONNECTIONS = 128
# Seconds in which a new connection must have asked for something.
REQUEST_TIMEOUT_SECONDS = 10.0


class LimitedProtocol(H11Protocol):
    """uvicorn's, but one too many is closed at once, and one that asks nothing after a while."""

    _timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or close it."""
        stream = cast(asyncio.Transport, transport)
        if len(self.connections) >= MAX_CONNECTIONS:
            self.transport = stream
            stream.abort()
            return
        super().connection_made(stream)
        self._timeout = self.loop.call_later(REQUEST_TIMEOUT_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        if self._timeout is not None:
            self._timeout.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.abort()

"""Serve the dashboard of `--serve` in a thread beside the run."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

from .. import __version__
from ..core.errors import OutputError
from ..core.install_hint import install_hint
from ..core.text import printable
from ..model.card import ModelCard
from ..video.frame_result import FrameResult, StreamHealth
from .listen_address import ListenAddress

if TYPE_CHECKING:
    import uvicorn

    from .snapshots import SnapshotRenderer

MIN_TOKEN_CHARACTERS = 16

# Limits for the start of the server, and for unfinished responses at the end of the run.
_START_TIMEOUT_SECONDS = 10.0
_DRAIN_TIMEOUT_SECONDS = 0.4


class DashboardServer:
    """A frame sink that serves a page to browsers.

    Images are drawn only for viewers, in separate threads. Without viewers, a frame costs the run
    a few microseconds.

    Args:
        address: where to listen. A loopback address is open to all users of the machine; any other
            requires a token.
        model: model, backend and device in use, on one line.
        token: required from viewers; at least 16 printable ASCII characters.

    Raises:
        OutputError: the extra `web` is not installed; on entry: the server cannot listen on the
            address, or the token is missing or too short.
    """

    def __init__(
        self, address: ListenAddress, *, card: ModelCard, model: str, token: str | None = None
    ) -> None:
        try:
            for name in ("starlette", "uvicorn", "prometheus_client"):
                import_module(name)
        except ImportError as error:
            raise OutputError(
                f"--serve needs starlette, uvicorn and prometheus-client ({error}): "
                f"{install_hint('web')}"
            ) from None
        from .dashboard_state import DashboardState
        from .metrics import Metrics
        from .snapshots import SnapshotRenderer

        self.address = address
        self._token = token
        self._facts = {
            "run": secrets.token_hex(8),
            "version": __version__,
            "model": printable(model),
            "name": printable(card.name),
        }
        labels = {
            "version": __version__,
            "model": printable(card.name),
            "precision": card.precision,
        }
        self._state = DashboardState(Metrics(labels), card.preprocess.face_scale)
        self._snapshots = SnapshotRenderer(self._state, card.preprocess.face_scale)
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """The address of the page, with the actual port."""
        host = self.address.host
        with suppress(ValueError):
            if ipaddress.ip_address(host).is_unspecified:
                host = socket.gethostname()
        return f"http://{ListenAddress(host, self.address.port)}/"

    def show(self, frame_result: FrameResult) -> None:
        """Store a frame for viewers."""
        self._snapshots.changed(self._state.show(frame_result))

    def tick(self, sources: Sequence[StreamHealth]) -> None:
        """Store the health of all sources.

        Raises:
            OutputError: the server has ended unexpectedly.
        """
        if not self._thread.is_alive():
            raise OutputError(
                f"--serve {self.address}: the server ended unexpectedly: {self._failure}"
            )
        for index in self._state.tick(sources):
            self._snapshots.changed(index)

    def __enter__(self) -> Self:
        if self._token is not None:
            _check_token(self._token)
        listener = self._listen()
        self._server = self._make_server(_is_loopback(listener))
        self._thread = Thread(target=self._run, args=(listener,), name="ffd-serve", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                reason = self._failure or f"no response within {_START_TIMEOUT_SECONDS:g} s"
                raise OutputError(f"--serve {self.address}: the server did not start: {reason}")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._snapshots.stop()
        self._thread.join(_DRAIN_TIMEOUT_SECONDS)
        # Viewers that do not read their responses are disconnected.
        self._server.force_exit = True
        self._thread.join(_START_TIMEOUT_SECONDS)

    def _make_server(self, local: bool) -> uvicorn.Server:
        import uvicorn

        from .auth_middleware import AuthMiddleware
        from .dashboard import Dashboard
        from .http_protocol import LimitedProtocol

        dashboard = Dashboard(self._state, self._snapshots, self._facts)
        host = self.address.host if local else None
        app = AuthMiddleware(dashboard.app, token=self._token, host=host)
        config = uvicorn.Config(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            # Its lines would contain tokens.
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        return uvicorn.Server(config)

    def _listen(self) -> socket.socket:
        try:
            family, _, _, _, where = socket.getaddrinfo(
                self.address.host,
                self.address.port,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )[0]
            both = family == socket.AF_INET6 and where[0] == "::" and socket.has_dualstack_ipv6()
            listener = socket.create_server(where, family=family, backlog=128, dualstack_ipv6=both)
        except OSError as error:
            raise OutputError(f"--serve {self.address}: {_listen_failure(error)}") from None
        if self._token is None and not _is_loopback(listener):
            listener.close()
            raise OutputError(
                f"--serve {self.address}: other machines can reach this address: set --token or "
                f"FFD_TOKEN, or use 127.0.0.1:{self.address.port}, which needs no token"
            )
        self.address = ListenAddress(self.address.host, listener.getsockname()[1])
        return listener

    def _run(self, listener: socket.socket) -> None:
        try:
            with listener:
                asyncio.run(_serve(self._server, self._snapshots, listener))
        except BaseException as error:
            self._failure = error


async def _serve(
    server: uvicorn.Server, snapshots: SnapshotRenderer, listener: socket.socket
) -> None:
    with snapshots:
        await server.serve(sockets=[listener])
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        # Their requests end within the next iterations of the loop.
        while server.server_state.tasks:
            await asyncio.sleep(0.005)


def _is_loopback(listener: socket.socket) -> bool:
    host: Any = listener.getsockname()[0]
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def _check_token(token: str) -> None:
    valid = token.isascii() and token.isprintable() and " " not in token
    if not valid or len(token) < MIN_TOKEN_CHARACTERS:
        raise OutputError(
            f"the token must have at least {MIN_TOKEN_CHARACTERS} ASCII characters without spaces: "
            "use the output of `openssl rand -hex 16`"
        )


def _listen_failure(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    return {
        errno.EADDRINUSE: "another program uses this port: choose another, or 0 for a free one",
        errno.EADDRNOTAVAIL: "not an address of this machine: use 127.0.0.1, or 0.0.0.0 for all",
        errno.EACCES: "ports below 1024 require root: use for example 8080",
    }.get(error.errno or 0, f"cannot listen on it: {error.strerror or error}")

from __future__ import annotations

import base64
import gc
import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffd_runtime.core.errors import InputError
from ffd_runtime.core.redact import redact
from ffd_runtime.image.decode import decode
from ffd_runtime.inputs import Item, find_files, urls
from ffd_runtime.inputs.fetch_policy import FetchPolicy
from ffd_runtime.inputs.urls import fetch
from ffd_runtime.inputs.web_address import is_public

from ..nightly import examples
from .encoded import FORMATS

LOCAL = FetchPolicy(timeout=20, allow_private=True)
# Never reached by a passing test.
LONG = 60.0
Answer = Callable[[socket.socket, str], None]


class Server:
    """A server on the loopback with a thread for each connection.

    Args:
        answer: called with a connection and the head of its request; or the bytes to send.
        host: numeric address to listen on.
        tls: enables TLS.
    """

    def __init__(
        self,
        answer: Answer | bytes,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[str] = []
        self.ended = threading.Event()
        self._answer = answer
        self._tls = tls
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        # Without it, a thread would stay in accept.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    piece = connection.recv(4096)
                    if not piece:
                        return
                    head += piece
                self.requests.append(head.decode("ascii"))
                if isinstance(self._answer, bytes):
                    connection.sendall(self._answer)
                else:
                    self._answer(connection, self.requests[-1])

    def drip(self, connection: socket.socket, pieces: Iterator[bytes]) -> None:
        """Send pieces slowly until the test ends."""
        for piece in pieces:
            connection.sendall(piece)
            if self.ended.wait(0.05):
                return


def ok(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", *(headers or (f"Content-Length: {len(body)}",)), "", ""])
    return head.encode("latin-1") + body


def redirect(location: str, status: int = 302) -> bytes:
    head = f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    return head.encode()


def failure(url: str, policy: FetchPolicy = LOCAL) -> InputError:
    with pytest.raises(InputError) as caught:
        fetch(url, policy)
    return caught.value


def url_item(url: str, policy: FetchPolicy) -> Item:
    (item,) = urls.find_inputs(url, policy)
    return item


def code_for(answer: Answer | bytes, policy: FetchPolicy = LOCAL) -> str:
    with Server(answer) as server:
        return failure(server.url, policy).code


@contextmanager
def names(monkeypatch: pytest.MonkeyPatch, **found: list[tuple[str, int]]) -> Iterator[list[str]]:
    """Resolve these names, written with _ for a dot; yield the list of requested names."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: str, port: int, **options: Any) -> Any:
        asked.append(host)
        places = found.get(host.replace(".", "_"))
        if places is None:
            return real(host, port, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        yield asked


def test_images_are_fetched_over_http(tmp_path: Path) -> None:
    (tmp_path / "an image.png").write_bytes(FORMATS["png"])
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            item = url_item(f"{base}/an image.png?x=1#part", LOCAL)
            assert item.source == f"{base}/an image.png?x=1#part"
            assert item.read() == FORMATS["png"]
            assert decode(item.read()).any()
            assert fetch(f"{base}/an%20image.png".replace("http", "HTTP"), LOCAL)
            assert failure(f"{base}/absent.png").code == "fetch_failed"
            assert "404 Not Found" in failure(f"{base}/absent.png").message
        finally:
            server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class PersistentHandler(QuietHandler):
    """Keeps connections open, and counts them."""

    protocol_version = "HTTP/1.1"
    connections: ClassVar[list[object]] = []
    dropped: ClassVar[set[str]] = set()

    def setup(self) -> None:
        self.connections.append(self.client_address)
        super().setup()

    def do_GET(self) -> None:
        if self.path in ("/redirect", "/absent"):
            self.send_response(302 if self.path == "/redirect" else 404)
            self.send_header("Location", "/image.png")
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"text")
        elif self.path.startswith("/dropped") and self.path not in self.dropped:
            # A server may close an idle connection when a request is already on its way.
            self.dropped.add(self.path)
            self.close_connection = True
        else:
            super().do_GET()


@pytest.fixture
def persistent_server(tmp_path: Path) -> Iterator[str]:
    for name in ("image.png", "dropped1", "dropped2"):
        (tmp_path / name).write_bytes(FORMATS["png"])
    PersistentHandler.connections.clear()
    PersistentHandler.dropped.clear()
    urls._pools.cache_clear()
    handler = partial(PersistentHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            # The server waits for the threads of its connections.
            for pools in (urls._pools(False), urls._pools(True)):
                pools.clear()


def test_images_of_one_server_share_a_connection(persistent_server: str) -> None:
    for number in range(20):
        assert fetch(f"{persistent_server}/image.png?{number}", LOCAL) == FORMATS["png"]
    assert "404" in failure(f"{persistent_server}/absent").message
    assert fetch(f"{persistent_server}/redirect", LOCAL) == FORMATS["png"]
    assert len(PersistentHandler.connections) == 1


def test_parallel_fetches_open_one_connection_per_thread(persistent_server: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        bodies = threads.map(
            lambda number: fetch(f"{persistent_server}/image.png?{number}", LOCAL), range(20)
        )
        assert set(bodies) == {FORMATS["png"]}
    assert len(PersistentHandler.connections) <= 4


def test_an_open_connection_to_a_private_address_needs_permission(persistent_server: str) -> None:
    assert fetch(f"{persistent_server}/image.png", LOCAL) == FORMATS["png"]
    assert failure(f"{persistent_server}/image.png", FetchPolicy()).code == "refused"


def test_a_request_is_repeated_if_the_server_closed_an_open_connection(
    persistent_server: str,
) -> None:
    assert fetch(f"{persistent_server}/image.png", LOCAL) == FORMATS["png"]
    assert fetch(f"{persistent_server}/dropped1", LOCAL) == FORMATS["png"]
    assert len(PersistentHandler.connections) == 2
    # A new connection without a response is an error.
    urls._pools.cache_clear()
    assert "without a response" in failure(f"{persistent_server}/dropped2").message
    assert len(PersistentHandler.connections) == 3


def test_urllib3_logs_no_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Server(ok(b"x", "Content-Length: 1", "no colon", "X: y")) as server:
        assert fetch(f"{server.url}/?sig=hunter2", LOCAL) == b"x"
    assert "hunter2" not in caplog.text


BODY = bytes(range(256)) * 1000
CHUNKED = b"%x;note=1\r\n" % 200_000 + BODY[:200_000] + b"\r\n%x\r\n" % 56_000 + BODY[200_000:]


@pytest.mark.parametrize(
    "answer",
    [
        ok(BODY),
        ok(BODY, "Connection: close"),
        ok(CHUNKED + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
        ok(BODY + b"more than it said", f"Content-Length: {len(BODY)}"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok(BODY, "Content-Encoding: identity"),
    ],
)
def test_a_body_with_any_framing_is_read(answer: bytes) -> None:
    with Server(answer) as server:
        assert fetch(server.url, LOCAL) == BODY


def test_the_request_has_an_encoded_target_and_no_login() -> None:
    with Server(ok(b"x")) as server:
        fetch(f"{server.url}/ä b?q=ö%20&r=[1]#part", LOCAL)
    (request,) = server.requests
    assert request.startswith("GET /%C3%A4%20b?q=%C3%B6%20&r=%5B1%5D HTTP/1.1\r\n")
    lines = request.split("\r\n")
    assert f"Host: 127.0.0.1:{server.port}" in lines
    assert "Accept-Encoding: identity" in lines
    assert "Authorization" not in request


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"", "fetch_failed"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "fetch_failed"),
        (b"\x15\x03\x01\x00\x02\x02\x16" * 100, "fetch_failed"),
        (b"HTTP/1.1 500 Oops\r\n\r\n", "fetch_failed"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "fetch_failed"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", "fetch_failed"),
        (b"HTTP/1.1 302 Found\r\n\r\n", "fetch_failed"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "fetch_failed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "fetch_failed"),
        (ok(b"x", "Content-Encoding: gzip"), "fetch_failed"),
        (ok(b"x", "Transfer-Encoding: gzip, chunked"), "fetch_failed"),
        (ok(b"xxx", "Content-Length: 4"), "truncated"),
        (ok(b"5\r\nxxx", "Transfer-Encoding: chunked"), "truncated"),
        (ok(b"zzz\r\nxxx", "Transfer-Encoding: chunked"), "truncated"),
        (ok(b"-5\r\nxxx", "Transfer-Encoding: chunked"), "fetch_failed"),
    ],
)
def test_invalid_responses_are_errors(answer: bytes, code: str) -> None:
    assert code_for(answer) == code


def test_the_size_limit_applies_to_the_body() -> None:
    limit = FetchPolicy(max_bytes=1000, allow_private=True, timeout=LONG)
    with Server(ok(bytes(1000))) as server:
        assert len(fetch(server.url, limit)) == 1000
    # The body is not read if its announced length exceeds the limit.
    assert code_for(lambda c, _: hold(c, ok(b"", "Content-Length: 1001")), limit) == "too_large"
    assert code_for(ok(bytes(1001), "Connection: close"), limit) == "too_large"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (ok(b"", "Connection: close"), b"x" * 65536),
        (ok(b"", "Transfer-Encoding: chunked"), b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        # http.client reads this chunk without a limit.
        (ok(b"", "Transfer-Encoding: chunked") + b"-1\r\n", b"x" * 65536),
        (b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n" * 1000),
    ],
)
def test_an_endless_response_is_too_large(head: bytes, piece: bytes) -> None:
    def pour(connection: socket.socket, _: str) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)

    policy = FetchPolicy(max_bytes=1 << 20, allow_private=True, timeout=LONG)
    assert code_for(pour, policy) == "too_large"


def hold(connection: socket.socket, data: bytes) -> None:
    """Send, then keep the connection open until the other end closes it."""
    connection.sendall(data)
    connection.recv(1)


SOON = FetchPolicy(timeout=0.4, allow_private=True)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n", ok(b"x", "Content-Length: 2")])
def test_a_silent_server_times_out(head: bytes) -> None:
    assert code_for(lambda connection, _: hold(connection, head), SOON) == "timeout"


@pytest.mark.parametrize(
    "head",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", ok(b"", "Content-Length: 1000"), ok(b"", "Connection: close")],
)
def test_a_server_that_sends_single_bytes_times_out(head: bytes) -> None:
    # Each byte arrives long before the deadline; all of them would take 50 s.
    def answer(connection: socket.socket, _: str) -> None:
        connection.sendall(head)
        server.drip(connection, (b"y" for _ in range(1000)))

    with Server(answer) as server:
        assert failure(server.url, SOON).code == "timeout"


def test_redirects_share_one_deadline() -> None:
    def answer(connection: socket.socket, _: str) -> None:
        server.drip(connection, iter([b"", b"", redirect("/again")]))

    with Server(answer) as server:
        policy = FetchPolicy(timeout=0.5, max_redirects=1000, allow_private=True)
        assert failure(server.url, policy).code == "timeout"


def test_a_silent_name_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(LONG))
    try:
        assert failure("http://slow.example/", SOON).code == "timeout"
    finally:
        release.set()


def test_a_refused_connection_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = failure(f"http://127.0.0.1:{port}/")
    assert error.code == "fetch_failed"
    assert "refused" in error.message
    assert failure("http://no-such-host.invalid/").code == "fetch_failed"


def test_redirects_are_followed_up_to_the_limit() -> None:
    def answer(connection: socket.socket, request: str) -> None:
        left = int(request.split()[1].rsplit("/", 1)[1])
        connection.sendall(redirect(f"/a/{left - 1}", 307) if left else ok(b"x"))

    with Server(answer) as server:
        assert fetch(f"{server.url}/a/5", LOCAL) == b"x"
        assert len(server.requests) == 6
        assert failure(f"{server.url}/a/6").code == "fetch_failed"
        none = FetchPolicy(max_redirects=0, allow_private=True)
        assert failure(f"{server.url}/a/1", none).code == "fetch_failed"
        assert fetch(f"{server.url}/a/0", none) == b"x"


def test_a_redirect_loop_ends() -> None:
    with Server(redirect("/")) as server:
        assert failure(server.url).code == "fetch_failed"
    assert len(server.requests) == LOCAL.max_redirects + 1


def test_redirects_may_be_relative_and_in_utf8() -> None:
    def answer(connection: socket.socket, request: str) -> None:
        first = request.startswith("GET /a/b?c ")
        connection.sendall(redirect(" ../d/ä\t") if first else ok(b"x"))

    with Server(answer) as server:
        assert fetch(f"{server.url}/a/b?c", LOCAL) == b"x"
    assert server.requests[1].startswith("GET /d/%C3%A4 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a.jpg",
        "gopher://127.0.0.1/",
        "data:image/png;base64,AA",
        "http://[::1/",
        "http://127.0.0.1:99999/",
    ],
)
def test_redirects_elsewhere_are_refused(location: str) -> None:
    assert code_for(redirect(location)) == "refused"


def test_every_hop_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(ok(b"secret"), "127.0.0.2") as inside:
        for target in (inside.url, f"http://inside.example:{inside.port}"):
            with (
                Server(redirect(target)) as outside,
                names(monkeypatch, inside_example=[("127.0.0.2", inside.port)]),
                monkeypatch.context() as patch,
            ):
                # In this test, one loopback address counts as public.
                patch.setattr(urls, "is_public", lambda address: address == "127.0.0.1")
                error = failure(outside.url, FetchPolicy())
                assert len(outside.requests) == 1
            assert error.code == "refused"
            assert "127.0.0.2" in error.message
    assert inside.requests == []


def test_a_second_address_keeps_nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with IPv6 addresses on a machine without a route to them."""

    class Marker:
        pass

    def fetch_in_a_frame() -> weakref.ref[Marker]:
        marker = Marker()
        assert fetch(f"http://two.example:{server.port}/", LOCAL) == b"x"
        return weakref.ref(marker)

    with Server(ok(b"x")) as server:
        places = [("127.0.0.9", server.port), ("127.0.0.1", server.port)]
        with names(monkeypatch, two_example=places):
            gc.disable()
            try:
                assert fetch_in_a_frame()() is None
            finally:
                gc.enable()


def test_the_connection_goes_to_the_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Server(ok(b"x")) as server,
        names(monkeypatch, rebound_example=[("127.0.0.1", server.port)]) as asked,
    ):
        url = f"http://rebound.example:{server.port}/"
        assert failure(url, FetchPolicy()).code == "refused"
        assert fetch(url, LOCAL) == b"x"
    # Resolved once for each fetch, because a second answer could differ.
    assert asked == ["rebound.example"] * 2
    assert f"Host: rebound.example:{server.port}\r\n" in server.requests[0]
    assert len(server.requests) == 1


def test_private_addresses_of_a_public_host_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(ok(b"public")) as outside, Server(ok(b"private"), "127.0.0.2") as inside:
        places = [("127.0.0.2", inside.port), ("127.0.0.1", outside.port)]
        with names(monkeypatch, both_example=places):
            monkeypatch.setattr(urls, "is_public", lambda address: address == "127.0.0.1")
            assert fetch("http://both.example/", FetchPolicy()) == b"public"


def test_addresses_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = listener.getsockname()[1]
    with Server(ok(b"x")) as server:
        places = [("127.0.0.1", dead), ("127.0.0.1", server.port)]
        with names(monkeypatch, two_example=places):
            assert fetch("http://two.example/", LOCAL) == b"x"


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "0", "10.1.2.3",
        "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1",
        "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "127。0。0。1",
        "[::]", "[::1]", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[::7f00:1]",
        "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]", "[64:ff9b:1::1]",
        "[2002:a00:1::]", "[2001::1]", "[2001:db8::1]", "[4000::1]",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    error = failure(f"http://{host}:1/", FetchPolicy(timeout=LONG))
    # Without IPv6, the resolver rejects such an address.
    assert error.code == "refused" or "has no address" in error.message


def test_public_addresses_are_recognised() -> None:
    for address in ("1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"):
        assert is_public(address)
    # Among them is the address at which Azure's machines reach the platform.
    internal = ("168.63.129.16", "::ffff:168.63.129.16", "192.88.99.1", "3fff::1")
    for address in ("::1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%1", *internal):
        assert not is_public(address)


def basic(login: str) -> str:
    return f"Authorization: Basic {base64.b64encode(login.encode()).decode()}\r\n"


def test_a_login_is_sent_only_to_its_server() -> None:
    def answer(connection: socket.socket, request: str) -> None:
        here = request.startswith("GET / ")
        connection.sendall(redirect("/on") if here else redirect(other.url))

    with Server(ok(b"x")) as other, Server(answer) as server:
        url = server.url.replace("//", "//me:s%40cret@")
        item = url_item(url, LOCAL)
        assert item.read() == b"x"
    assert all(basic("me:s@cret") in request for request in server.requests)
    assert len(server.requests) == 2
    assert "Authorization" not in other.requests[0]
    assert item.source == server.url.replace("//", "//***@")
    assert "cret" not in repr(item)


def test_a_redirect_sets_no_login_for_another_server() -> None:
    with Server(ok(b"x")) as other:
        with Server(redirect(other.url.replace("//", "//them:theirs@"))) as server:
            assert fetch(server.url.replace("//", "//me@"), LOCAL) == b"x"
        assert basic("me:") in server.requests[0]
    assert "Authorization" not in other.requests[0]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h/a", "http://h/a"),
        ("http://h/@me/a", "http://h/@me/a"),
        ("http://h:80/@me/a", "http://h:80/@me/a"),
        ("http://[::1]:80/@me", "http://[::1]:80/@me"),
        # The host is ambiguous: h, or me with the password "secret@h/".
        ("http://me:secret@h/@me", "http://***@me"),
        ("http://me:sec@ret@h/a", "http://***@h/a"),
        ("HTTPS://me:sec/ret@h/a", "HTTPS://***@h/a"),
        ("http://me:sec?ret@h/a", "http://***@h/a"),
        ("a@b.jpg", "a@b.jpg"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert redact(shown) == shown


# By RFC 3986, some unquoted text is not a password: in me:12/x@h, 12 is a port and x@h a path; in
# me:x@y/z@h, y is the host.
passwords = st.text().filter(lambda text: not re.search(r"^\d+[/?#]|@.*[/?#]", text, re.DOTALL))


@settings(max_examples=examples(300), deadline=None)
@given(passwords, st.text())
def test_no_password_is_shown_whatever_it_contains(password: str, path: str) -> None:
    for url in (
        f"http://me:{password}hunter2@[::1]/{path.replace('@', '')}",
        f"http://me:{password}hunter2@h:port/",
        f"ftp://me:{password}hunter2@h/",
    ):
        item = url_item(url, FetchPolicy(timeout=LONG))
        with pytest.raises(InputError) as caught:
            item.read()
        assert "hunter2" not in repr((item, redact(url), caught.value))


def test_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(ok(b"proxy")) as proxy, Server(ok(b"x")) as server:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert fetch(server.url, LOCAL) == b"x"
    assert proxy.requests == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost in one file."""
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    both = folder / "both.pem"
    key, pem = folder / "key.pem", folder / "cert.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
        f"-keyout {key} -out {pem} -subj /CN=test -addext subjectAltName=DNS:localhost"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + pem.read_bytes())
    return both


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trust the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    urls._pools.cache_clear()
    yield
    urls._pools.cache_clear()


@pytest.mark.usefixtures("trusted")
def test_the_server_name_is_sent_over_tls(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    tls.sni_callback = lambda _, name, __: asked.append(name)
    with Server(ok(BODY), tls=tls) as server:
        url = f"https://localhost:{server.port}/"
        with names(monkeypatch, localhost=[("127.0.0.1", server.port)]):
            assert fetch(url, LOCAL) == BODY
    assert asked == ["localhost"]


@pytest.mark.usefixtures("trusted")
def test_a_certificate_for_another_host_is_refused(tls: ssl.SSLContext) -> None:
    with Server(ok(b"x"), tls=tls) as server:
        error = failure(server.url)
    assert error.code == "fetch_failed"
    assert "certificate" in error.message
    assert server.requests == []


def test_an_untrusted_certificate_is_refused(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Server(ok(b"x"), tls=tls) as server,
        names(monkeypatch, localhost=[("127.0.0.1", server.port)]),
    ):
        error = failure(f"https://localhost:{server.port}/")
    assert error.code == "fetch_failed"
    assert "certificate" in error.message
    assert server.requests == []


def test_a_server_without_tls_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        error = failure(f"https://127.0.0.1:{listener.getsockname()[1]}/")
    assert error.code == "fetch_failed"
    assert "TLS" in error.message


def test_a_tls_handshake_without_an_answer_times_out() -> None:
    # The system accepts the connection, but no thread answers.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = failure(f"https://127.0.0.1:{listener.getsockname()[1]}/", SOON)
    assert error.code == "timeout"


def test_only_http_and_https_addresses_are_fetched() -> None:
    def is_fetched(source: str) -> bool:
        (item,) = find_files([source])
        return item.fetch is not None

    assert is_fetched("http://h/a.jpg")
    assert is_fetched("HTTPS://h")
    for text in ("a.jpg", "file:///a", "ftp://h/a", "http:", "http:/a", "./http://h", "", "0"):
        assert not is_fetched(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://", "http:///a", "http://:80/", "http://h:x/", "http://h:-1/", "http://h:65536/", "http://h:0/",
        "http://a b/", "http://a\r\nHost: b/", "http://h/a\r\nX: y", "http://h/\0", "http://h\t/",
        "http://[::1", "http://[::g]/", "http://[fe80::1%25eth0]/", "http://a..b/", "http://.a/",
        "http://" + "a" * 64 + ".example/", "http://" + "ä" * 300 + "/", "http://" + "a." * 500,
        "http://h%00/", "http://h\\@b/", "http://\u2100/", "http://h/\ud800", "http://me:\ud800@h/",
        "file:///etc/passwd", "ftp://h/", "gopher://h/", "//h/", "h", "", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_invalid_addresses_are_refused(url: str) -> None:
    assert failure(url).code == "refused"


hostile = st.text(st.characters() | st.sampled_from("[]:@/?#%\\\r\n\0.-。\udcff "), max_size=40)


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(("http://", "https://", "HTTP://h", "http://h:", "http://[", "")), hostile)
def test_any_address_gives_an_image_or_an_input_error(scheme: str, text: str) -> None:
    def look_up(*_: object, **__: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        item = url_item(scheme + text, FetchPolicy(timeout=LONG))
        with pytest.raises(InputError) as caught:
            item.read()
    assert caught.value.code == "refused"
    caught.value.message.encode("ascii")


STARTS = [
    b"",
    b"HTTP/1.1 ",
    b"HTTP/1.1 200 OK\r\n",
    ok(b"", "Transfer-Encoding: chunked"),
    redirect(""),
]
lines = st.sampled_from(
    [b"\r\n", b"\n", b":", b"200", b"-1", b"ffffffff", b"Content-Length: ", b"0"]
)


@settings(deadline=None)
@given(st.sampled_from(STARTS), st.lists(lines | st.binary(max_size=20), max_size=8))
def test_any_response_gives_a_body_or_an_input_error(start: bytes, parts: list[bytes]) -> None:
    policy = FetchPolicy(timeout=LONG, max_redirects=1, allow_private=True)
    with Server(start + b"".join(parts)) as server, suppress(InputError):
        assert isinstance(fetch(server.url, policy), bytes)


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"timeout": float("nan")}, {"timeout": 1e9}, {"max_bytes": 0},
     {"max_redirects": -1}],
)  # fmt: skip
def test_a_policy_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FetchPolicy(**wrong)

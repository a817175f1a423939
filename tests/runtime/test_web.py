from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import pytest

from ffd_runtime.core.errors import OutputError
from ffd_runtime.core.install_hint import install_hint
from ffd_runtime.core.results import LABELS, Label, Result, Track
from ffd_runtime.video.frame_result import Frame, FrameResult, StreamHealth
from ffd_runtime.web import dashboard, dashboard_state, http_protocol, snapshots
from ffd_runtime.web.auth_middleware import AuthMiddleware
from ffd_runtime.web.dashboard_server import DashboardServer
from ffd_runtime.web.listen_address import ListenAddress, parse_listen_address

from ..conftest import picture
from ..models import CARD

TOKEN = "0123456789abcdef-token"
HOSTILE = (
    'a"b\\c\nd{e="f"} 1',
    "<script>alert(1)</script>",
    "photo\u202egpj.exe",
    os.fsdecode(b"bytes-\xff"),
    "\N{SNOWMAN} \x1b[31m",
)


def serve(host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> DashboardServer:
    return DashboardServer(
        ListenAddress(host, port), card=CARD, model="colour (colour, fp32), CPU", token=token
    )


def health(source: str = "door", **facts: Any) -> StreamHealth:
    return StreamHealth(source, **{"live": True, "state": "playing", "size": (200, 100), **facts})


def frame_result(
    number: int = 0, source: str = "door", *labels: Label, **facts: Any
) -> FrameResult:
    """A frame with a face and a track for each label."""
    image = picture("red" if number % 2 else "blue", 100, 200, number)
    faces = [
        Result(
            source,
            frame=number,
            face=(10 + 60 * at, 20, 40, 40),
            label=label,
            score=0.5,
            track=Track(at + 1, label, 0.75),
            heatmap=np.full((4, 4), 30, np.float32),
        )
        for at, label in enumerate(labels)
    ]
    frame = Frame(source, number, image, time.monotonic(), 1.7e9 + number)
    facts = {"frames": number + 1, "analysed": number + 1, "age": 0.03, **facts}
    return FrameResult(frame, faces, health(source, **facts), inference=0.02)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def image(self) -> Any:
        return cv2.imdecode(np.frombuffer(self.body, np.uint8), cv2.IMREAD_COLOR)


def ask(
    served: DashboardServer, path: str, method: str = "GET", host: str = "127.0.0.1", **headers: str
) -> Answer:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(host, served.address.port, timeout=10)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


@pytest.fixture
def served() -> Iterator[DashboardServer]:
    with serve() as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", ListenAddress("127.0.0.1", 8080)),
        (":8080", ListenAddress("127.0.0.1", 8080)),
        ("0.0.0.0:0", ListenAddress("0.0.0.0", 0)),
        ("box.local:80", ListenAddress("box.local", 80)),
        ("[::1]:8080", ListenAddress("::1", 8080)),
        ("[fe80::1%eth0]:65535", ListenAddress("fe80::1%eth0", 65535)),
    ],
)
def test_valid_listen_addresses(text: str, address: ListenAddress) -> None:
    assert parse_listen_address(text) == address
    assert parse_listen_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no port"),
        ("localhost", "has no port"),
        ("localhost:", "must be a number"),
        ("localhost:65536", "must be a number"),
        ("localhost:-1", "must be a number"),
        ("1.5", "has no port"),
        ("a:٣", "must be a number"),
        ("::1", "needs brackets"),
        ("::1:8080", "needs brackets"),
        ("[::1]", "is not HOST:PORT"),
        ("http://localhost:80", "is not HOST:PORT"),
        ("user@box:80", "is not HOST:PORT"),
        ("two words:80", "is not HOST:PORT"),
    ],
)
def test_invalid_listen_addresses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_listen_address(text)


def test_address_that_cannot_be_listened_on_is_an_error(served: DashboardServer) -> None:
    with pytest.raises(OutputError, match="another program uses this port"):
        serve(port=served.address.port).__enter__()
    with pytest.raises(OutputError, match="not an address of this machine"):
        serve("192.0.2.1", token=TOKEN).__enter__()
    with pytest.raises(OutputError, match="cannot be resolved"):
        serve("no-such-host.invalid").__enter__()
    assert ask(served, "/").status == 200
    assert served.url == f"http://127.0.0.1:{served.address.port}/"


def test_port_can_be_reused_immediately() -> None:
    with serve() as first:
        ask(first, "/")
    with serve(port=first.address.port) as second:
        assert ask(second, "/").status == 200


def test_missing_extra_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(OutputError, match=re.escape(install_hint("web"))):
        serve().__enter__()


def test_import_loads_no_heavy_module() -> None:
    code = "import sys, ffd_runtime.web.listen_address\na = set(sys.modules)\n"
    code += "import ffd_runtime.web.dashboard_server"
    code += "\nprint('cv2' in a, {'starlette', 'uvicorn', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "set()"]


def test_public_address_requires_a_token() -> None:
    with pytest.raises(
        OutputError, match="set --token or FFD_TOKEN, or use 127.0.0.1:0, which needs no token"
    ):
        serve("0.0.0.0").__enter__()
    for bad in ("", "short", "x" * 15, "with a space in it all", "ünsicher" * 3, "line\n" * 5):
        with pytest.raises(OutputError, match="at least 16 ASCII characters"):
            serve("0.0.0.0", token=bad).__enter__()
    with serve("127.0.0.2") as local:
        assert ask(local, "/state", host="127.0.0.2").status == 200


@pytest.mark.parametrize("host", ["x/healthz?", "x/healthz#", "[", "x:80/healthz?a="])
def test_host_header_cannot_bypass_the_token(host: str) -> None:
    """Some versions of starlette build `request.url` from it."""
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    guard = AuthMiddleware(app, token=TOKEN, host=None)
    headers = [(b"host", host.encode())]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/state", "headers": headers}
    scope |= {"query_string": b"", "scheme": "http", "server": ("127.0.0.1", 80)}
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    assert not reached
    assert sent[0]["status"] == 401


def test_requests_without_token_get_no_data() -> None:
    with serve("0.0.0.0", token=TOKEN) as served:
        served.show(frame_result(0, "secret-door", "generated"))
        served.tick([health("secret-door", state="waiting", error="secret-reason")])
        bad = {"Authorization": f"Bearer {TOKEN}x"}
        for path in ("/", "/state", "/image/0.jpg", "/verdict/1.jpg", "/metrics", "/none"):
            for given in ({}, bad, {"Cookie": f"ffd={TOKEN}"}, {"Authorization": TOKEN}):
                for method in ("GET", "HEAD"):
                    answer = ask(served, path, method, **given)
                    assert answer.status == 401
                    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
                    assert b"secret" not in answer.body
            good = ask(served, path, Authorization=f"bearer {TOKEN}")
            assert good.status == (404 if path == "/none" else 200)
        wrong = ask(served, "/?token=wrong-but-long-enough")
        assert wrong.status == 401
        assert b"Wrong token" in wrong.body
        assert ask(served, f"/state?token={TOKEN}").status == 401
        assert ask(served, "/healthz").json == {"status": "ok"}
        assert ask(served, "/healthz?strict=1").status == 503
        open_to = ask(served, "/healthz", Authorization=f"Bearer {TOKEN}").json
        assert open_to["not_playing"][0]["error"] == "secret-reason"


def test_token_sets_a_cookie() -> None:
    with serve("0.0.0.0", token=TOKEN) as served:
        answer = ask(served, f"/?token={TOKEN}")
        assert answer.status == 303
        # Relative, as a proxy may serve the page below a path.
        assert answer.headers["Location"] == "./"
        cookie = answer.headers["Set-Cookie"]
        assert TOKEN not in cookie
        assert "httponly" in cookie.lower()
        assert "samesite=lax" in cookie.lower()
        pair = cookie.partition(";")[0]
        assert ask(served, "/state", Cookie=pair).status == 200
        name, _, value = pair.partition("=")
        assert ask(served, "/state", Cookie=f"{name}={value[:-1]}").status == 401
    with serve("0.0.0.0", token=TOKEN) as again:
        assert ask(again, "/state", Cookie=pair).status == 200
    with serve("0.0.0.0", token=TOKEN[::-1]) as other:
        assert ask(other, "/state", Cookie=pair).status == 401


def test_token_is_required_on_loopback_if_set() -> None:
    with serve(token=TOKEN) as served:
        assert ask(served, "/").status == 401
        assert ask(served, "/", Authorization=f"Bearer {TOKEN}").status == 200
        assert ask(served, "/", Authorization=f"Bearer {TOKEN}", Host="evil.example").status == 421


def test_foreign_host_names_are_rejected_on_loopback(served: DashboardServer) -> None:
    port = served.address.port
    served.show(frame_result())
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST", "[::1]"):
        assert ask(served, "/state", Host=host).status == 200
    # A tunnel (ssh -L) uses another port.
    assert ask(served, "/state", Host="localhost:9999").status == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", ""):
        for path in ("/", "/state", "/image/0.jpg", "/healthz", "/metrics"):
            assert ask(served, path, Host=host).status == 421


def test_every_response_has_security_headers(served: DashboardServer) -> None:
    served.show(frame_result(0, "door", "generated"))
    for path, status in (
        ("/", 200),
        ("/state", 200),
        ("/image/0.jpg", 200),
        ("/image/1.jpg", 404),
        ("/image/-1.jpg", 404),
        (f"/image/{'9' * 5000}.jpg", 404),
        (f"/verdict/{'9' * 5000}.jpg", 404),
        ("/verdict/1.jpg", 200),
        ("/verdict/2.jpg", 404),
        ("/metrics", 200),
        ("/../../etc/passwd", 404),
        ("/page.html", 404),
    ):
        answer = ask(served, path)
        assert answer.status == status, path
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(served, "/state", method).status == 405


def test_page_loads_nothing_external(served: DashboardServer) -> None:
    html = ask(served, "/").body.decode()
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert "innerHTML" not in html
    assert set(re.findall(r'(?:href|src)="(.*?)"', html)) == {"data:,", "#sources"}


def test_image_request_waits_for_a_newer_image(served: DashboardServer) -> None:
    served.show(frame_result(1))
    first = ask(served, "/image/0.jpg")
    assert first.headers["Content-Type"] == "image/jpeg"
    assert first.image[30, 100, 2] > first.image[30, 100, 0] + 20
    number = first.headers["FFD-Image"]
    late = threading.Timer(0.2, served.show, [frame_result(2)])
    late.start()
    began = time.monotonic()
    second = ask(served, f"/image/0.jpg?after={number}")
    assert time.monotonic() - began > 0.1
    late.join()
    assert second.headers["FFD-Image"] != number
    assert second.image[30, 100, 0] > second.image[30, 100, 2] + 20
    # An unknown number, such as that of a previous run, does not wait.
    assert ask(served, "/image/0.jpg?after=1234567").status == 200
    assert ask(served, "/image/0.jpg?after=junk").status == 200


def test_image_request_without_newer_image_is_204(
    served: DashboardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "LONG_POLL_SECONDS", 0.1)
    served.show(frame_result())
    number = ask(served, "/image/0.jpg").headers["FFD-Image"]
    assert ask(served, f"/image/0.jpg?after={number}").status == 204
    assert ask(served, f"/image/0.jpg?after={number}&heatmap=1").status == 204


def test_images_are_shrunk_and_have_a_heatmap_on_request(served: DashboardServer) -> None:
    large = frame_result(0, "door", "generated")
    image = np.full((1500, 3000, 3), 128, np.uint8)
    face = replace(large.results[0], face=(1000, 500, 600, 600))
    served.show(replace(large, frame=replace(large.frame, image=image), results=[face]))
    plain, laid = ask(served, "/image/0.jpg"), ask(served, "/image/0.jpg?heatmap=1")
    assert plain.image.shape == (480, 960, 3)
    middle = (800 * 960 // 3000, 1300 * 960 // 3000)
    assert abs(plain.image[middle].astype(int) - 128).max() < 10
    assert laid.image[middle][2] > 180


def test_failed_source_shows_a_notice(served: DashboardServer) -> None:
    served.tick([health(state="connecting", size=None)])
    absent = ask(served, "/image/0.jpg")
    assert absent.image.shape == (360, 640, 3)
    served.show(frame_result(1, "door", "generated"))
    alive = ask(served, f"/image/0.jpg?after={absent.headers['FFD-Image']}")
    number = alive.headers["FFD-Image"]
    assert len(ask(served, "/state").json["sources"][0]["faces"]) == 1
    served.tick([health(state="waiting", error="it does not answer", next_try=3.0)])
    # The long poll ends when the source fails.
    dead = ask(served, f"/image/0.jpg?after={number}")
    assert dead.status == 200
    assert dead.image.mean() < alive.image.mean() - 20
    source = ask(served, "/state").json["sources"][0]
    assert source["faces"] == []
    assert source["error"] == "it does not answer"
    served.show(frame_result(3))
    served.tick([health(state="ended")])
    last = ask(served, f"/image/0.jpg?after={dead.headers['FFD-Image']}")
    assert last.image.mean() > dead.image.mean() + 20


def test_images_are_rendered_only_on_request(served: DashboardServer) -> None:
    for number in range(100):
        served.show(frame_result(number, "door", "generated"))
        served.tick([health()])
    for path in ("/", "/state", "/metrics", "/healthz"):
        assert ask(served, path).status == 200
    assert values(served)["ffd_page_images_total", ()] == 0
    assert "ffd-serve-draw_0" not in {thread.name for thread in threading.enumerate()}
    ask(served, "/image/0.jpg")
    ask(served, "/image/0.jpg")
    assert values(served)["ffd_page_images_total", ()] == 1


@pytest.mark.alone
def test_viewers_share_images_at_a_limited_rate(
    served: DashboardServer,
) -> None:
    served.show(frame_result())
    done = threading.Event()
    fetched = []

    def look() -> None:
        number, count = "-", 0
        while not done.is_set():
            number = ask(served, f"/image/0.jpg?after={number}").headers["FFD-Image"]
            count += 1
        fetched.append(count)

    viewers = [threading.Thread(target=look) for _ in range(4)]
    began = time.monotonic()
    for viewer in viewers:
        viewer.start()
    for number in range(100):
        served.show(frame_result(number))
        time.sleep(0.01)
    done.set()
    served.show(frame_result(101))
    for viewer in viewers:
        viewer.join()
    took = time.monotonic() - began
    drawn = values(served)["ffd_page_images_total", ()]
    assert drawn <= took * snapshots.MAX_FPS + 2
    assert drawn >= 4
    assert min(fetched) >= 2
    assert sum(fetched) > drawn


def hold(served: DashboardServer, path: str) -> socket.socket:
    """Open a viewer that sends a request and does not read the response."""
    opened = socket.create_connection(("127.0.0.1", served.address.port), 10)
    opened.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return opened


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_image_requests_are_limited(served: DashboardServer) -> None:
    served.show(frame_result())
    number = ask(served, "/image/0.jpg").headers["FFD-Image"]
    path = f"/image/0.jpg?after={number}"
    with ExitStack() as stack:
        held = [
            stack.enter_context(hold(served, path)) for _ in range(dashboard.MAX_IMAGE_REQUESTS)
        ]
        wait_for(lambda: served._snapshots.waiting == dashboard.MAX_IMAGE_REQUESTS)
        refused = ask(served, path)
        assert refused.status == 503
        assert refused.headers["Retry-After"]
        assert ask(served, "/state").status == 200
        served.tick([health()])
        assert ask(served, "/healthz").status == 200
        served.show(frame_result(1))
        for viewer in held:
            assert viewer.recv(12) == b"HTTP/1.1 200"
    assert ask(served, "/image/0.jpg").status == 200


@pytest.mark.alone
def test_viewer_that_does_not_read_delays_nobody() -> None:
    threads = threading.active_count()
    with ExitStack() as stack, serve() as served:
        large = frame_result()
        noise = np.random.default_rng(0).integers(0, 255, (720, 960, 3), np.uint8)
        large = replace(large, frame=replace(large.frame, image=noise))
        served.show(large)
        for _ in range(4):
            slow = stack.enter_context(hold(served, "/image/0.jpg"))
            slow.sendall(b"GET /image/0.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        for number in range(5):
            began = time.monotonic()
            served.show(replace(large, frame=replace(large.frame, number=number)))
            assert ask(served, "/image/0.jpg").status == 200
            assert time.monotonic() - began < 5
        kept = sum(
            connection.transport.get_write_buffer_size()
            for connection in list(served._server.server_state.connections)
        )
        assert kept < 4 * 3_000_000
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert threading.active_count() == threads


@pytest.mark.alone
def test_connections_are_limited_and_silent_ones_are_closed(
    served: DashboardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "REQUEST_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 20)
    with ExitStack() as stack:
        for number in range(20):
            silent = stack.enter_context(
                socket.create_connection(("127.0.0.1", served.address.port))
            )
            silent.sendall(b"GET /state HTTP/1.1\r\nX: " if number % 2 else b"")
        with pytest.raises(ConnectionError):
            ask(served, "/state")
        silent.settimeout(10)
        with suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        wait_for(lambda: not served._server.server_state.connections)
        assert ask(served, "/state").status == 200


def test_a_connection_without_a_token_has_one_request() -> None:
    """Otherwise waiting requests could occupy all places of viewers."""
    with serve("0.0.0.0", token=TOKEN) as served:
        for path, headers, again in (
            ("/healthz", {}, False),
            ("/state", {}, False),
            ("/state", {"Authorization": f"Bearer {TOKEN}"}, True),
        ):
            answer = ask(served, path, **headers)
            assert (answer.headers["Connection"] != "close") == again, path


def test_a_second_request_that_is_not_completed_is_closed(
    served: DashboardServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "REQUEST_TIMEOUT_SECONDS", 0.5)
    connection = http.client.HTTPConnection("127.0.0.1", served.address.port, timeout=10)
    with closing(connection):
        for _ in range(2):
            connection.request("GET", "/state")
            connection.getresponse().read()
        connection.sock.sendall(b"GET /state HTTP/1.1\r\nX: ")
        with suppress(ConnectionResetError):
            while connection.sock.recv(1 << 16):
                pass
        wait_for(lambda: not served._server.server_state.connections)


def test_failing_request_is_logged_on_one_line(
    served: DashboardServer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = frame_result()
    served.show(replace(broken, frame=replace(broken.frame, image=None)))  # type: ignore[arg-type]
    assert ask(served, "/image/0.jpg").status == 500
    # It is logged after the response.
    wait_for(lambda: caplog.records)
    assert [record.getMessage()[:40] for record in caplog.records] == [
        "--serve: /image/0.jpg failed: AttributeE"[:40]
    ]
    served.show(frame_result())
    assert ask(served, "/image/0.jpg").status == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6() -> None:
    try:
        with serve("::1") as served:
            assert served.url == f"http://[::1]:{served.address.port}/"
            assert ask(served, "/state", host="::1").status == 200
    except OutputError:
        pytest.skip("this machine has no ::1")


@pytest.mark.alone
def test_server_with_viewers_ends_quickly_and_leaves_nothing() -> None:
    with serve() as warm:
        warm.show(frame_result())
        ask(warm, "/image/0.jpg")
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    threads = threading.active_count()
    with ExitStack() as stack:
        with serve() as served:
            served.show(frame_result())
            number = ask(served, "/image/0.jpg").headers["FFD-Image"]
            path = f"/image/0.jpg?after={number}"
            held = [stack.enter_context(hold(served, path)) for _ in range(3)]
            stack.enter_context(hold(served, "/state"))
            wait_for(lambda: served._snapshots.waiting == 3)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        for viewer in held:
            viewer.settimeout(5)
            assert viewer.recv(100)[:12] == b"HTTP/1.1 204"
    assert threading.active_count() == threads
    if before:
        assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_unexpected_end_of_the_server_is_an_error(served: DashboardServer) -> None:
    served.tick([health()])
    served._server.should_exit = True
    served._thread.join(10)
    with pytest.raises(OutputError, match="the server ended"):
        served.tick([health()])
    served.show(frame_result())


def test_history_lists_label_changes(served: DashboardServer) -> None:
    labels: list[Label] = ["unsure", "generated", "generated", "unsure", "groundtruth"]
    for number, label in enumerate(labels):
        served.show(frame_result(number, "door", label))
    state = ask(served, "/state").json
    assert [(v["before"], v["label"], v["time"] - 1.7e9) for v in state["history"]] == [
        ("unsure", "generated", 1),
        ("generated", "unsure", 3),
        ("unsure", "groundtruth", 4),
    ]
    assert [v["number"] for v in ask(served, "/state?after=2").json["history"]] == [3]
    face = state["sources"][0]["faces"][0]
    assert face == {
        "track": 1,
        "label": "groundtruth",
        "score": 0.75,
        "reason": None,
        "since": 1.7e9 + 4,
    }
    thumbnail = ask(served, "/verdict/1.jpg").image
    assert thumbnail.shape[:2] == (dashboard_state.THUMBNAIL_PX, dashboard_state.THUMBNAIL_PX)
    assert thumbnail[..., 2].mean() > thumbnail[..., 0].mean() + 20


def test_whole_frames_have_labels(served: DashboardServer) -> None:
    whole = frame_result()
    row = Result("door", frame=0, label="generated", score=0.9)
    served.show(replace(whole, results=[row]))
    served.show(replace(whole, results=[replace(row, face=(500, 500, 20, 20), label="unsure")]))
    served.show(replace(whole, results=[row, replace(row, face=(190, 90, 50, 50))]))
    state = ask(served, "/state").json
    assert len(state["history"]) == 1
    assert state["sources"][0]["faces"][0]["track"] is None
    outside = replace(row, face=(900, 900, 20, 20), track=Track(7, "generated", 0.9))
    served.show(replace(whole, results=[outside]))
    assert ask(served, "/verdict/2.jpg").image.shape == (1, 1, 3)


def test_history_is_limited(served: DashboardServer) -> None:
    first = frame_result(0, "door", "generated")
    for number in range(3000):
        track = Track(number + 1, "generated", 0.9)
        served.show(replace(first, results=[replace(first.results[0], track=track)]))
    state = ask(served, "/state").json
    assert [v["number"] for v in state["history"]] == list(range(2951, 3001))
    assert ask(served, "/verdict/2950.jpg").status == 404
    assert ask(served, "/verdict/3000.jpg").status == 200
    kept = served._state._sources["door"]
    assert len(kept.labels) == 256
    assert sum(image.nbytes for _, image in served._state._history) <= 50 * 96 * 96 * 3
    assert all(image.base is None for _, image in served._state._history)


def test_label_of_a_visible_face_is_remembered(served: DashboardServer) -> None:
    first = frame_result(0, "door", "generated", "generated")
    one, other = first.results
    for number in range(600):
        track = Track(number + 2, "generated", 0.9)
        served.show(replace(first, results=[one, replace(other, track=track)]))
    changes = "ffd_verdict_changes_total", (("label", "generated"), ("source", "door"))
    assert values(served)[changes] == 601


SAMPLE = re.compile(
    r"([a-zA-Z_:][a-zA-Z0-9_:]*)"
    r"(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*=\"(?:[^\"\\\n]|\\[\\\"n])*\",?)*)\})? "
    r"([-+0-9.eE]+|\+Inf|-Inf|NaN)"
)
LABEL = re.compile(r"([a-zA-Z_]\w*)=\"((?:[^\"\\]|\\.)*)\"")
Labels = tuple[tuple[str, str], ...]


def unescape(text: str) -> str:
    escapes = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
    return re.sub(r"\\.", lambda escape: escapes[escape[0]], text)


def values(served: DashboardServer) -> dict[tuple[str, Labels], float]:
    """Parse /metrics strictly in the text format."""
    answer = ask(served, "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = answer.body.decode()
    assert text.endswith("\n")
    found: dict[tuple[str, Labels], float] = {}
    kinds: dict[str, str] = {}
    current = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in kinds
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            assert (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
        else:
            parsed = SAMPLE.fullmatch(line)
            assert parsed, line
            name, inside, number = parsed[1], parsed[2] or "", parsed[3]
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert current == (family if kinds.get(family) == "histogram" else name)
            labels = tuple(sorted((key, unescape(text)) for key, text in LABEL.findall(inside)))
            assert (name, labels) not in found
            found[name, labels] = float(number)
    return found


def test_metrics_of_two_sources(served: DashboardServer) -> None:
    served.tick([health("gate", state="waiting", error="gone", breaks=5)])
    for number in range(10):
        served.show(
            frame_result(number, "door", "generated", "unsure", dropped=3, age=0.03 + number)
        )
    found = values(served)
    door, gate = ("source", "door"), ("source", "gate")
    assert found["ffd_build_info", tuple(served_facts(found))] == 1
    assert found["ffd_source_up", (door,)] == 1
    assert found["ffd_source_up", (gate,)] == 0
    assert found["ffd_reconnects_total", (gate,)] == 4
    assert found["ffd_frames_total", (door,)] == 10
    assert found["ffd_frames_dropped_total", (door,)] == 3
    assert found["ffd_frames_analysed_total", (door,)] == 10
    assert found["ffd_frame_age_seconds", (door,)] == pytest.approx(9.03)
    assert ("ffd_frame_age_seconds", (gate,)) not in found
    for label, faces, changes in zip(LABELS, (10, 0, 10), (1, 0, 0), strict=True):
        assert found["ffd_faces_total", (("label", label), door)] == faces
        assert found["ffd_verdict_changes_total", (("label", label), door)] == changes
    assert found["ffd_verdict_delay_seconds_count", (door,)] == 10
    assert found["ffd_verdict_delay_seconds_sum", (door,)] == pytest.approx(45.3)
    edges = [
        (float(labels[0][1]), value)
        for (name, labels), value in found.items()
        if name == "ffd_verdict_delay_seconds_bucket" and labels[1] == door
    ]
    assert edges == sorted(edges)
    for edge, value in edges:
        assert value == sum(0.03 + number <= edge for number in range(10))
    assert edges[-1][0] == float("inf")


def served_facts(found: dict[tuple[str, Labels], float]) -> Labels:
    labels = next(labels for name, labels in found if name == "ffd_build_info")
    assert [key for key, _ in labels] == ["model", "precision", "version"]
    return labels


def test_counters_never_decrease(served: DashboardServer) -> None:
    served.show(frame_result(100, breaks=2, outage=1.0, dropped=50))
    before = values(served)
    served.tick([health(frames=3, analysed=1, dropped=0, breaks=0, state="waiting")])
    after = values(served)
    for (name, labels), value in before.items():
        if name.endswith(("_total", "_count", "_sum", "_bucket")):
            assert after[name, labels] >= value


def test_hostile_source_names_are_escaped(served: DashboardServer) -> None:
    for name in HOSTILE:
        served.show(frame_result(1, name, "generated"))
    served.tick([health(name, state="failed", error=name) for name in HOSTILE])
    state = ask(served, "/state").json
    names = [source["name"] for source in state["sources"]]
    assert len(set(names)) == len(HOSTILE)
    assert all(source["name"].isprintable() for source in state["sources"])
    assert all(source["error"].isprintable() for source in state["sources"])
    labelled = {labels[0][1] for name, labels in values(served) if name == "ffd_source_up"}
    assert labelled == set(names)
    assert ask(served, "/healthz").json["not_playing"][3]["source"] == "bytes-\\xff"
    for number in range(len(HOSTILE)):
        assert ask(served, f"/image/{number}.jpg").status == 200


def test_state_has_the_age_of_the_last_tick(served: DashboardServer) -> None:
    assert ask(served, "/state").json["ticked"] is None
    served.tick([health()])
    # The loop is blocked for an hour.
    assert served._state._ticked is not None
    served._state._ticked -= 3600
    assert 3600 <= ask(served, "/state").json["ticked"] < 7200
    served.tick([health()])
    assert ask(served, "/state").json["ticked"] < 3600


def test_healthz_status(served: DashboardServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(served, "/healthz").status == 503
    served.tick([health(), health("gate", state="waiting", error="gone"), health(state="ended")])
    answer = ask(served, "/healthz")
    assert answer.status == 200
    assert answer.json["status"] == "ok"
    assert answer.json["not_playing"] == [{"source": "gate", "state": "waiting", "error": "gone"}]
    assert ask(served, "/healthz?strict=1").status == 503
    served.tick([health(), health("gate")])
    assert ask(served, "/healthz?strict=1").status == 200
    monkeypatch.setattr(dashboard, "STALL_TIMEOUT_SECONDS", 0.0)
    assert ask(served, "/healthz").status == 503
    served.tick([health()])
    assert served._state.health()[0] is not None


def test_concurrent_requests(served: DashboardServer) -> None:
    """The run continues during concurrent requests."""
    done = threading.Event()
    failures: list[object] = []

    def look(path: str) -> None:
        while not done.is_set():
            try:
                status = ask(served, path).status
            except OSError as error:
                failures.append(error)
                return
            if status not in (200, 204):
                failures.append((path, status))

    served.show(frame_result(0, "door", "generated"))
    served.tick([health()])
    paths = ("/state", "/metrics", "/image/0.jpg", "/image/0.jpg?heatmap=1", "/healthz")
    lookers = [threading.Thread(target=look, args=[path]) for path in paths]
    for looker in lookers:
        looker.start()
    for number in range(400):
        served.show(frame_result(number, f"door-{number % 7}", "generated", LABELS[number % 3]))
        served.tick([health(f"door-{source}") for source in range(7)])
    done.set()
    for looker in lookers:
        looker.join()
    assert failures == []
    assert sum(v for (name, _), v in values(served).items() if name == "ffd_faces_total") == 801

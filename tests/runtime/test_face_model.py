from __future__ import annotations

import hashlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ffd_runtime.core.errors import ModelError
from ffd_runtime.core.user_cache import cache_folder
from ffd_runtime.image import face_model as module
from ffd_runtime.image.face_model import NAME, find_face_model

# Stands for the model: only its sha256 matters here.
MODEL = bytes(range(256)) * 900

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Run a server on loopback; yield its address, and the list of requested paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/zoo", asked
        server.shutdown()


def body(data: bytes, length: int | None = None) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty user cache, and return the path of the model in it."""
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("FFD_FACE_MODEL", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(MODEL).hexdigest())
    # Tests must not reach the real server.
    monkeypatch.setattr(module, "BASE_URL", "http://127.0.0.1:9/zoo")
    return cache_folder() / NAME


def failure(path: Path | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        find_face_model(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def failure_with(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> str:
    with serving(answer) as (address, _):
        monkeypatch.setattr(module, "BASE_URL", address)
        return failure()


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_model_is_downloaded_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(body(MODEL)) as (address, asked), caplog.at_level(logging.WARNING):
        monkeypatch.setattr(module, "BASE_URL", address)
        for _ in range(3):
            assert find_face_model() == cache
        assert asked == [f"/zoo/{NAME}"]
    assert cache.read_bytes() == MODEL
    assert files_below(cache.parent) == [cache]
    assert len(caplog.records) == 1
    assert "downloading the face detector" in caplog.text


def test_a_damaged_model_is_downloaded_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.mkdir(parents=True)
    for damaged in (MODEL[:-1], b"", bytes(module.MAX_MODEL_BYTES + 1)):
        cache.write_bytes(damaged)
        with serving(body(MODEL)) as (address, _):
            monkeypatch.setattr(module, "BASE_URL", address)
            assert find_face_model().read_bytes() == MODEL


def test_a_given_path_takes_precedence(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, named = tmp_path / "argument.onnx", tmp_path / "named.onnx"
    for path in (argument, named, cache):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MODEL if path == cache else b"another version")
    assert find_face_model() == cache
    monkeypatch.setenv("FFD_FACE_MODEL", str(named))
    assert find_face_model() == named
    assert find_face_model(argument) == argument
    monkeypatch.setenv("FFD_FACE_MODEL", "")
    assert find_face_model() == cache


def test_a_given_path_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not exist: give a YuNet ONNX with --face-model" in failure(tmp_path / "absent")
    assert "is not a file" in failure(tmp_path)
    monkeypatch.setenv("FFD_FACE_MODEL", str(tmp_path / "absent"))
    assert "with FFD_FACE_MODEL" in failure()


def test_another_content_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    message = failure_with(body(pointer), monkeypatch)
    assert hashlib.sha256(pointer).hexdigest() in message
    assert module.SHA256 in message
    assert not files_below(cache.parent)


def missing(handler: BaseHTTPRequestHandler) -> None:
    handler.send_error(404)


def silent(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1)


def stuck(handler: BaseHTTPRequestHandler) -> None:
    body(MODEL[:1000], len(MODEL))(handler)
    handler.wfile.flush()
    time.sleep(1)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def garbage(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\xffnot a protocol\r\n\r\n")


def loop(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.path)
    handler.end_headers()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (missing, "the server answered 404"),
        (silent, "takes too long"),
        (stuck, "takes too long"),
        (body(MODEL[:1000], len(MODEL)), "sha256"),
        (endless, "sends too much"),
        (garbage, "the connection broke"),
        (loop, "the server answered 302"),
    ],
)
def test_the_error_of_a_failed_download_says_what_to_do(
    answer: Answer, reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "too long" in reason:
        monkeypatch.setattr(module, "READ_TIMEOUT_SECONDS", 0.3)
    message = failure_with(answer, monkeypatch)
    assert reason in message
    # Where to get the model, and where to put it.
    for part in (f"/zoo/{NAME}", str(cache), "--face-model", "FFD_FACE_MODEL"):
        assert part in message
    assert not files_below(cache.parent)


def test_a_slow_server_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(200):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass

    monkeypatch.setattr(module, "FETCH_TIMEOUT_SECONDS", 0.3)
    start = time.monotonic()
    assert "takes too long" in failure_with(drip, monkeypatch)
    assert time.monotonic() - start < 5


def test_a_download_without_a_network_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setattr(module, "BASE_URL", f"http://127.0.0.1:{port}")
    assert "no connection" in failure()


def test_a_cache_that_cannot_be_written_is_an_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.mkdir(parents=True, exist_ok=True)
    cache.parent.write_text("a file where the folder should be")
    assert "cannot be written to" in failure_with(body(MODEL), monkeypatch)


def test_concurrent_downloads_do_not_conflict(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(4)

    def slowly(handler: BaseHTTPRequestHandler) -> None:
        together.wait(10)
        body(MODEL)(handler)

    with serving(slowly) as (address, asked), ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(module, "BASE_URL", address)
        found = list(pool.map(lambda _: find_face_model(), range(4)))
    assert found == [cache] * 4
    assert len(asked) == 4
    assert files_below(cache.parent) == [cache]


def test_a_model_that_another_process_downloaded_is_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(handler: BaseHTTPRequestHandler) -> None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(MODEL)
        handler.send_error(503)

    with serving(late) as (address, _):
        monkeypatch.setattr(module, "BASE_URL", address)
        assert find_face_model() == cache


def test_a_proxy_of_the_environment_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(body(MODEL)) as (address, asked):
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setattr(module, "BASE_URL", "http://zoo.invalid")
        assert find_face_model() == cache
        assert asked == [f"http://zoo.invalid/{NAME}"]


def test_each_system_has_its_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.home()
    for system, folder in (
        ("linux", tmp_path / "ffd"),
        ("darwin", home / "Library" / "Caches" / "ffd"),
        ("win32", tmp_path / "ffd"),
    ):
        monkeypatch.setattr(sys, "platform", system)
        assert cache_folder() == folder
    monkeypatch.setattr(sys, "platform", "linux")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == home / ".cache" / "ffd"


def test_the_model_has_the_pinned_sha256(face_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if face_model.name == NAME:
        assert hashlib.sha256(face_model.read_bytes()).hexdigest() == module.SHA256

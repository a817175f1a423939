"""Find the model of the face detector: given by the user, or downloaded into the cache once.

The model comes from OpenCV's model zoo (MIT licence) at a fixed commit. Its hash is checked before
use, so neither the network nor the server need be trusted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from http.client import HTTPException, responses
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, build_opener

from .. import __version__
from ..core.atomic_file import write_atomic
from ..core.errors import ModelError
from ..core.text import first_line
from ..core.user_cache import cache_folder

log = logging.getLogger(__name__)

NAME = "face_detection_yunet_2026may.onnx"
SHA256 = "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0"
# The zoo uses Git LFS. Only this address returns the file instead of a pointer.
BASE_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/"
    "47534e27c9851bb1128ccc0102f1145e27f23f98/models/face_detection_yunet"
)
VARIABLE = "FFD_FACE_MODEL"

# The file has 230 kB, so the limit leaves room.
MAX_MODEL_BYTES = 1 << 22
# For one read, and for the whole download.
READ_TIMEOUT_SECONDS = 15.0
FETCH_TIMEOUT_SECONDS = 60.0


def find_face_model(path: Path | None = None) -> Path:
    """Return the path of the face detector's model; download the model if necessary.

    Args:
        path: the file; None for the file in `FFD_FACE_MODEL`, or else the one in the user's cache,
            which is downloaded if absent or damaged. Proxies of the environment are used.

    Returns:
        The path. The file in the cache has the pinned sha256; a given file is not checked.

    Raises:
        ModelError: the given file does not exist, or the download fails; the message explains how
            to download it manually.
    """
    if path is not None:
        return _given(path, "--face-model")
    if named := os.environ.get(VARIABLE):
        return _given(Path(named), VARIABLE)
    try:
        cached = cache_folder() / NAME
    except RuntimeError:
        raise ModelError(
            f"the user has no home folder for the face detector: set XDG_CACHE_HOME or {VARIABLE}"
        ) from None
    if _is_ours(cached):
        return cached
    log.warning("downloading the face detector (230 kB) from %s, once", BASE_URL.split("/")[2])
    try:
        data = _fetch(f"{BASE_URL}/{NAME}")
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cached, data)
        except OSError as error:
            reason = f"{cached.parent} cannot be written to ({_text(error)})"
            raise _NotFetchedError(reason) from None
    except _NotFetchedError as error:
        # Another process may have downloaded it in the meantime.
        if not _is_ours(cached):
            raise ModelError(
                f"the face detector cannot be downloaded: {error}; copy {BASE_URL}/{NAME} to "
                f"{cached}, or name another file with --face-model or {VARIABLE}"
            ) from None
    return cached


class _NotFetchedError(Exception):
    """The download failed; the message says why."""


def _given(path: Path, by: str) -> Path:
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ModelError(f"face model {path} {what}: give a YuNet ONNX with {by}")
    return path


def _is_ours(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > MAX_MODEL_BYTES:
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    except OSError:
        return False


def _fetch(url: str) -> bytes:
    """Download the model and check its hash."""
    request = Request(url, headers={"User-Agent": f"ffd-edge/{__version__}"})  # noqa: S310 (ours)
    deadline = time.monotonic() + FETCH_TIMEOUT_SECONDS
    body = bytearray()
    try:
        with build_opener().open(request, timeout=READ_TIMEOUT_SECONDS) as response:
            while piece := response.read1(1 << 16):
                body += piece
                if len(body) > MAX_MODEL_BYTES:
                    raise _NotFetchedError("the server sends too much")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except HTTPError as error:
        error.close()
        phrase = responses.get(error.code, "")
        raise _NotFetchedError(f"the server answered {error.code} {phrase}".rstrip()) from None
    except (HTTPException, OSError, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError):
            raise _NotFetchedError("the server takes too long") from None
        problem = "no connection" if isinstance(error, URLError) else "the connection broke"
        raise _NotFetchedError(f"{problem} ({_text(cause)})") from None
    digest = hashlib.sha256(body).hexdigest()
    if digest != SHA256:
        raise _NotFetchedError(
            f"the response ({len(body)} bytes) has the sha256 {digest} instead of {SHA256}"
        )
    return bytes(body)


def _text(error: BaseException | str) -> str:
    """Return the text of an error on one line."""
    return getattr(error, "strerror", None) or first_line(error)

"""Where the face detector's model is: given, in the user's cache, or fetched into it once.

It is OpenCV's model zoo that it comes from (MIT licence), at a fixed commit. Its content is checked
before it is used, so neither the network nor the server need be trusted.
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
# The zoo keeps its models in Git LFS: only this address gives the file and not a pointer to it.
BASE_URL = (
    "https://media.githubusercontent.com/media/opencv/opencv_zoo/"
    "47534e27c9851bb1128ccc0102f1145e27f23f98/models/face_detection_yunet"
)
VARIABLE = "FFD_FACE_MODEL"

# The file has 230 kB.
MOST_BYTES = 1 << 22
# Seconds of silence, and for all of it.
TIMEOUT = 15.0
DEADLINE = 60.0


def find_face_model(path: Path | None = None) -> Path:
    """The face detector's model, fetched if it is nowhere yet.

    Args:
        path: a file to use; else the one that `FFD_FACE_MODEL` names, else the one in the user's
            cache, fetched where it is absent or damaged. A proxy named in the environment is used.

    Returns:
        The file. One that was given may be any; the one in the cache has the pinned sha256.

    Raises:
        ModelError: the file that was given does not exist, or it cannot be fetched; the message
            says how to get it by hand.
    """
    if path is not None:
        return _given(path, "--face-model")
    if named := os.environ.get(VARIABLE):
        return _given(Path(named), VARIABLE)
    try:
        cached = cache_folder() / NAME
    except RuntimeError:
        raise ModelError(
            f"this user has no home folder for the face detector: set XDG_CACHE_HOME or {VARIABLE}"
        ) from None
    if _is_ours(cached):
        return cached
    log.warning("fetching the face detector (230 kB) from %s, once", BASE_URL.split("/")[2])
    try:
        _keep(_fetch(f"{BASE_URL}/{NAME}"), cached)
    except _NotFetchedError as error:
        # Another process may have been luckier in the meantime.
        if not _is_ours(cached):
            raise ModelError(
                f"the face detector cannot be fetched: {error}; get it from {BASE_URL}/{NAME} and "
                f"put it at {cached}, or name it with --face-model or {VARIABLE}"
            ) from None
    return cached


class _NotFetchedError(Exception):
    """Why the file is not in the cache, for a person."""


def _given(path: Path, by: str) -> Path:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise ModelError(f"face model {path} {what}: give a YuNet ONNX with {by}")
    return path


def _is_ours(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    except OSError:
        return False


def _fetch(url: str) -> bytes:
    """The file behind an address, with the right content.

    Raises:
        _NotFetchedError: no connection, a status other than 200, or another content.
    """
    request = Request(url, headers={"User-Agent": f"ffd-edge/{__version__}"})  # noqa: S310 (ours)
    deadline = time.monotonic() + DEADLINE
    body = bytearray()
    try:
        with build_opener().open(request, timeout=TIMEOUT) as response:
            while piece := response.read1(1 << 16):
                body += piece
                if len(body) > MOST_BYTES:
                    raise _NotFetchedError("the server sends too much")
                if time.monotonic() > deadline:
                    raise TimeoutError
    except HTTPError as error:
        error.close()
        phrase = responses.get(error.code, "")
        raise _NotFetchedError(f"the server answered {error.code} {phrase}".rstrip()) from None
    except TimeoutError:
        raise _NotFetchedError("the server takes too long") from None
    except URLError as error:
        late = isinstance(error.reason, TimeoutError)
        reason = "the server takes too long" if late else f"no connection ({_text(error.reason)})"
        raise _NotFetchedError(reason) from None
    except (HTTPException, OSError, ValueError) as error:
        raise _NotFetchedError(f"the connection broke ({_text(error)})") from None
    digest = hashlib.sha256(body).hexdigest()
    if digest != SHA256:
        raise _NotFetchedError(
            f"what came ({len(body)} bytes) has the sha256 {digest} instead of {SHA256}"
        )
    return bytes(body)


def _text(error: BaseException | str) -> str:
    """What went wrong, on one line."""
    return getattr(error, "strerror", None) or first_line(error)


def _keep(data: bytes, path: Path) -> None:
    """Put a file in its place at once, so that nobody ever sees a part of it.

    Raises:
        _NotFetchedError: the place cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise _NotFetchedError(f"{path.parent} cannot be written to ({_text(error)})") from None

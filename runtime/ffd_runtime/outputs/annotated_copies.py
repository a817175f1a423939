"""Annotated copies of images, in a folder that mirrors the folders of their sources."""

from __future__ import annotations

import glob
import hashlib
import itertools
import logging
import os
import struct
import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from ..core.atomic_file import write_atomic
from ..core.cores import count_cores
from ..core.errors import InputError, OutputError, os_errors_as
from ..core.pipeline import MAX_KEPT_FETCHED_BYTES
from ..core.results import Result
from ..core.text import printable
from ..image.decode import Image, decode, read_file
from ..image.draw import draw_verdict, overlay_heatmap
from ..image.image_header import read_header
from ..inputs import Item
from ..model.card import PreprocessSpec

log = logging.getLogger(__name__)

JPEG_QUALITY = 90

# Marks annotated copies, which a later run may overwrite.
STAMP = b"annotated by ffd"
# The stamp is among the first bytes of a file: after SOI in a JPEG, after IHDR in a PNG.
_MAX_STAMP_OFFSET = 128

# libjpeg's JPEG_MAX_DIMENSION.
_MAX_JPEG_SIDE_PX = 65_500

_SUFFIXES = {".jpg": (".jpg", ".jpeg"), ".png": (".png",)}
_ALL_SUFFIXES = (*_SUFFIXES[".jpg"], *_SUFFIXES[".png"])
_MAX_NAME_BYTES = 200
_MAX_PATH_CHARACTERS = 1000
# Characters that FAT, exFAT and NTFS do not allow in names.
_FORBIDDEN = frozenset('/\\:*?"<>|')


class AnnotatedCopies:
    """Write a copy of each image with its verdict drawn on it.

    The copy of `portraits/x/a.jpg` from the source `portraits` is `FOLDER/x/a.jpg`. Copies of PNG
    files, and those with a side above 65,500 pixels, are PNG files; all others are JPEG files. A
    short hash of the source is added to a name that must change because of its suffix, a character
    or its length, and to the names of addresses and of files outside the source folders. Rows
    without a verdict are skipped.

    Args:
        folder: created if absent. Only annotated copies are overwritten.
        sources: as on `ffd-run`'s command line; names are relative to their common folder.
        heatmap: whether to draw the evidence, too.
        face_scale: `preprocess.face_scale` of the card, for results with a face.

    Raises:
        OutputError: the folder is a source or inside one, or it cannot be created.
    """

    def __init__(
        self,
        folder: Path,
        sources: Iterable[str] = (),
        *,
        heatmap: bool = False,
        face_scale: float = PreprocessSpec.face_scale,
    ) -> None:
        self.folder = folder
        self.heatmap = heatmap
        self.face_scale = face_scale
        self._names = Names(sources)
        target = os.path.realpath(folder)
        for top, walked in self._names.tops.items():
            read = os.path.realpath(top)
            if target == read or (walked and Path(target).is_relative_to(read)):
                raise OutputError(
                    f"--annotate {folder} is in {top or 'the current folder'}, which is a "
                    "source: name a folder outside it"
                )
        with os_errors_as(OutputError, f"--annotate {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            self._top = folder.resolve()
        workers = count_cores()
        self._pool = ThreadPoolExecutor(workers, "ffd-annotate")
        self._max_pending = 3 * workers
        # Whether a folder of inputs is inside `folder`.
        self._inside: dict[str, bool] = {}

    def follow(self, results: Iterable[Result], at_once: bool = False) -> Iterator[Result]:
        """Draw and write copies in the background; yield rows in order, each after its copy exists.

        Args:
            results: rows with their images.
            at_once: whether to wait for each copy, for a source that waits for each row.

        Raises:
            OutputError: a copy cannot be written.
        """
        pending: deque[Future[Result]] = deque()
        for result in results:
            number = 0 if result.error else self._names.find_number(result)
            pending.append(self._pool.submit(self._copy, result, number))
            while pending and (at_once or len(pending) > self._max_pending or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def without_copies(
        self, items: Iterable[Item], skip: Callable[[str], object]
    ) -> Iterator[Item]:
        """Leave out the copies of earlier runs, which a list of all images contains."""
        for item in items:
            if item.fetch is None and self._is_own_copy(item.source):
                skip(item.source)
            else:
                yield item

    def _is_own_copy(self, source: str) -> bool:
        folder = os.path.dirname(source)
        try:
            if folder not in self._inside:
                self._inside[folder] = Path(folder).resolve().is_relative_to(self._top)
            return self._inside[folder] and is_annotated(Path(source))
        except (OSError, RuntimeError, ValueError):
            # A loop of links, no permission, or not a path: reading it reports it.
            return False

    def remember(self, result: Result) -> bool:
        """Reserve the name of a row of an earlier run; return whether its copy exists."""
        if result.error:
            return True
        number = self._names.find_number(result)
        paths = [self.folder / self._names.of(result, suffix, number) for suffix in _SUFFIXES]
        return any(path.exists() for path in paths)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Copies in progress are finished in either case.
        self._pool.shutdown(cancel_futures=kind is not None)

    def _copy(self, result: Result, number: int) -> Result:
        if result.error or result.heatmap is None:
            return result
        try:
            encoded = result.encoded or _read_again(result.source)
            header = read_header(encoded)
            # It was decoded before, so it is within the limit.
            image = decode(encoded, sys.maxsize)
            if self.heatmap:
                image = overlay_heatmap(image, result.heatmap, result.face, self.face_scale)
            image = draw_verdict(image, result, self.face_scale)
        except (InputError, MemoryError) as error:
            # The row has its verdict, so a failed copy does not end the run.
            log.warning("no annotated copy of %s: %s", printable(result.source), error)
            return result
        png = header.format == "png" or max(header.width, header.height) > _MAX_JPEG_SIDE_PX
        suffix = ".png" if png else ".jpg"
        target = self.folder / self._names.of(result, suffix, number)
        with os_errors_as(OutputError, f"cannot write {target}"):
            self._replace(target, encode(image, suffix))
        return result

    def _replace(self, target: Path, data: bytes) -> None:
        """Write a file atomically; never overwrite a file of another program."""
        if not target.parent.resolve().is_relative_to(self._top):
            raise OutputError(
                f"{target.parent} is a link to a folder outside {self.folder}: remove it"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target) and not is_annotated(target):
            raise OutputError(
                f"{target} exists and is not an annotated copy: give --annotate another folder"
            )
        # A run writes thousands of copies: syncing each would slow it down.
        write_atomic(target, data, sync=False)


class Names:
    """Names of copies: the same in every run, and unique for each source.

    Attributes:
        tops: the folders of the sources, and whether their subfolders are read.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self.tops: dict[str, bool] = {}
        for source in sources:
            if "://" not in source and "\0" not in source:
                top, walked = _top_of(source)
                self.tops[top] = walked or self.tops.get(top, False)
        self._below = _below_common({top: os.path.abspath(top) for top in self.tops})
        # Digests of the names in use, in lower case, and of their sources.
        self._used: dict[bytes, bytes] = {}
        self._members: Counter[bytes] = Counter()

    def find_number(self, result: Result) -> int:
        """Return the number that makes the names of a source unique where case is ignored."""
        source = _digest(result.source)
        if "!/" in result.source:
            # Members of an archive may have the same name.
            member = _digest(f"{result.source}\0{result.frame}\0{result.face}")
            source += str(self._members[member]).encode()
            self._members[member] += 1
        number = 1
        while True:
            names = [_digest(str(self.of(result, end, number)).lower()) for end in _SUFFIXES]
            if all(self._used.get(name, source) == source for name in names):
                self._used |= dict.fromkeys(names, source)
                return number
            number += 1

    def of(self, result: Result, suffix: str, number: int = 1) -> Path:
        """Return the path of a copy: relative, without `..`, and valid on every file system.

        A `number` other than 1 is added to the name; see `find_number`.
        """
        path = self._of(result, suffix)
        return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")

    def _of(self, result: Result, suffix: str) -> Path:
        source = result.source
        *folders, name = self._place(source) or ["", source.rstrip("/").rpartition("/")[2]]
        part = _suffix_of(result)
        # A folder must not have a name that a copy could have.
        if len("/".join(folders)) > _MAX_PATH_CHARACTERS or not all(
            _is_valid_name(folder) and not folder.lower().endswith(_ALL_SUFFIXES)
            for folder in folders
        ):
            folders = []
        elif _is_valid_name(name) and name.lower().endswith(_SUFFIXES[suffix]) and not part:
            return Path(*folders, name)
        digest = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()[:10]
        plain = "".join("_" if c in _FORBIDDEN else c for c in printable(name))
        plain = plain.encode()[: _MAX_NAME_BYTES // 2].decode(errors="ignore")
        return Path(*folders, f"{plain}{part}-{digest}{suffix}")

    def _place(self, source: str) -> list[str] | None:
        """Return the folders below the common one, and the file; None for other places."""
        if "://" in source:
            return None
        cut = len(source)
        while cut > 0:
            cut = source.rfind("/", 0, cut)
            top = _without_slash(source[: cut + 1])
            if top in self._below:
                parts = source[cut + 1 :].split("/")
                return [*self._below[top], *(part for part in parts if part != ".")]
        return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8]


def _below_common(paths: dict[str, str]) -> dict[str, list[str]]:
    """Return the folders of each path below the common folder, or with several, below drives."""
    drives = {os.path.splitdrive(path)[0] for path in paths.values()}
    if len(drives) > 1:
        return {top: _folders(path.replace(":", "", 1)) for top, path in paths.items()}
    shared = os.path.commonpath(paths.values()) if paths else ""
    return {top: _folders(os.path.relpath(path, shared)) for top, path in paths.items()}


def _folders(path: str) -> list[str]:
    return [part for part in path.split(os.sep) if part not in ("", ".")]


def _read_again(source: str) -> bytes:
    """Read a file whose bytes were not kept."""
    if not os.path.lexists(source):
        mib = MAX_KEPT_FETCHED_BYTES >> 20
        reason = f"no such file; images in archives and at addresses are drawn up to {mib} MiB"
        raise InputError("not_found", reason)
    return read_file(source)


def encode(image: Image, suffix: str) -> bytes:
    """Encode uint8 [height, width, 3], BGR, as `.jpg` or `.png` with the stamp."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    done, array = cv2.imencode(suffix, image, options)
    if not done:
        raise OutputError(
            f"OpenCV cannot encode an image of {image.shape[1]}x{image.shape[0]} pixels"
        )
    data = np.asarray(array, np.uint8).tobytes()
    if suffix == ".png":
        body = b"tEXtComment\0" + STAMP
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        after = 33  # signature and IHDR
    else:
        chunk = b"\xff\xfe" + struct.pack(">H", len(STAMP) + 2) + STAMP
        after = 4 + int.from_bytes(data[4:6])  # SOI and APP0, which JFIF requires first
    return data[:after] + chunk + data[after:]


def is_annotated(path: Path) -> bool:
    """Return whether a file has the stamp; False for a pipe, which reading would block."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return STAMP in file.read(_MAX_STAMP_OFFSET)


def _top_of(source: str) -> tuple[str, bool]:
    """Return the folder of a source, and whether its subfolders are read."""
    if source == "-":
        return "", False
    if os.path.isdir(source):
        return _without_slash(source), True
    if glob.has_magic(source) and not os.path.lexists(source):
        *folders, _ = source.split("/")
        fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), folders))
        head = "/".join(fixed) or ("/" if source.startswith("/") else "")
        return _without_slash(head), len(fixed) < len(folders)
    return _without_slash(os.path.dirname(source)), False


def _without_slash(path: str) -> str:
    return path.rstrip("/") or path[:1]


def _is_valid_name(name: str) -> bool:
    """Return whether a name is valid on every file system, such as those of Windows."""
    return (
        name not in ("", ".", "..")
        and printable(name) == name
        and not set(name) & _FORBIDDEN
        and name[-1] not in " ."
        and len(name.encode()) <= _MAX_NAME_BYTES
    )


def _suffix_of(result: Result) -> str:
    """Return a suffix for the frame and the face of a result."""
    frame = "" if result.frame is None else f"-frame{result.frame:06}"
    return frame + ("-face" + "_".join(map(str, result.face)) if result.face else "")

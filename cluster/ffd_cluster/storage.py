"""Read and write files in object stores and shared folders, through pyarrow's file systems.

Credentials are never sent: each machine uses its own, as pyarrow finds them (environment,
configuration files, the role of the machine). Only the address of the store is sent.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self

from ffd_runtime.core.atomic_file import write_atomic
from ffd_runtime.core.errors import InputError, StorageError
from ffd_runtime.core.redact import redact
from ffd_runtime.image.decode import MAX_FILE_BYTES, read_file

from .object_address import is_object, join
from .store_errors import (
    missing_bucket,
    retry_unreachable,
    translate_read_errors,
    translate_write_errors,
)

# pyarrow's default is three, too few for a store under load.
MAX_ATTEMPTS = 8
# For a connection, and for a request.
TIMEOUT_S = 20.0
# The prefix of temporary files. Readers of Parquet folders skip names that begin with "_".
DRAFT_PREFIX = "_draft-"


@dataclass(frozen=True)
class Storage:
    """An object store, or folders that every machine has under the same path.

    Methods raise `StorageError` if the store refuses or does not respond. Those that write raise
    `OutputError` if the file or folder cannot be written.

    Attributes:
        scheme: `s3`, `gs`, or `file`.
        endpoint: address of an S3 server; None for Amazon's.
        region: of the bucket; None to use pyarrow's configuration.
        root: the folder that paths are relative to. The machines have other working folders.
    """

    scheme: str
    endpoint: str | None = None
    region: str | None = None
    root: str = ""

    @classmethod
    def of(cls, address: str) -> Self:
        """Return the storage of an address or a path.

        Raises:
            StorageError: the address names no bucket, or contains credentials.
        """
        if not is_object(address):
            return cls("file", root=os.getcwd())
        scheme, _, rest = address.partition("://")
        scheme, bucket = scheme.lower(), rest.partition("/")[0]
        # A secret may contain slashes, so the text after the first slash may belong to it.
        if "@" in bucket or ":" in bucket:
            raise StorageError(
                f"{scheme}://***: an address must not contain credentials; put them into "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            )
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket):
            raise StorageError(
                f"{redact(address)}: give a bucket, such as {scheme}://bucket/folder/"
            )
        if scheme == "gs":
            return cls("gs")
        names = "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"
        endpoint = next(filter(None, map(os.environ.get, names)), None)
        names = "AWS_REGION", "AWS_DEFAULT_REGION"
        region = next(filter(None, map(os.environ.get, names)), None)
        return cls("s3", endpoint, region or (None if endpoint else _find_region(bucket)))

    def files(self, address: str) -> Iterator[str]:
        """Yield the addresses of all objects below a prefix, or of a single one; sorted by folder.

        Folders are listed one at a time, so that memory holds the names of one folder.
        """
        kind, path = _arrow().fs.FileType, self._path(address)
        # A trailing slash means the folder, even if an object has the same name.
        found = kind.Directory
        if not address.endswith("/"):
            with translate_read_errors(address):
                found = _open(self).get_file_info(path).type
        if found == kind.File:
            yield address
        elif found == kind.Directory:
            yield from map(self._address, self._walk(path))

    def require_bucket(self, address: str) -> None:
        """Check that the bucket exists; listing a missing bucket raises no error."""
        if self.scheme == "file":
            return
        bucket = self._path(address).partition("/")[0]
        with translate_read_errors(address):
            info = _open(self).get_file_info(bucket)
        if info.type == _arrow().fs.FileType.NotFound:
            raise missing_bucket(address)

    def _walk(self, top: str) -> Iterator[str]:
        """Yield the paths of all files below a folder."""
        # The remaining entries of each open folder, in reverse order.
        stack = [self._list(top)]
        while stack:
            if not stack[-1]:
                stack.pop()
                continue
            path, is_folder = stack[-1].pop()
            if is_folder:
                stack.append(retry_unreachable(partial(self._list, path)))
            else:
                yield path

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        """Return path and whether it is a folder, for each entry of a folder, in reverse order."""
        fs = _arrow().fs
        with translate_read_errors(self._address(folder)):
            # The folder may have been deleted since its parent was listed.
            selector = fs.FileSelector(folder, allow_not_found=True)
            infos = _open(self).get_file_info(selector)
        # pyarrow cannot read a key with an empty component, such as in//a.jpg, and lists it as the
        # folder itself. Such a key is returned with two slashes and gets an error row.
        found = (
            (f"{info.path.rstrip('/')}//", False)
            if info.path.rstrip("/") == folder
            else (info.path, info.type == fs.FileType.Directory)
            for info in infos
        )
        return sorted(found, reverse=True)

    def read(self, address: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            InputError: this file cannot be read.
            StorageError: no file of the store can be read.
        """
        if self.scheme == "file":
            return read_file(self._path(address))
        try:
            with (
                translate_read_errors(address, single=True),
                _open(self).open_input_file(self._path(address)) as file,
            ):
                if (size := file.size()) > MAX_FILE_BYTES:
                    limit = f"{size >> 20} MiB, over the limit of {MAX_FILE_BYTES >> 20}"
                    raise InputError("too_large", limit)
                data: bytes = file.read(size)
        except StorageError as error:
            if error.everywhere:
                raise
            if error.code != "not_found":
                self._require_access(address)
            raise InputError(error.code, str(error)) from None
        except ValueError:
            raise InputError("not_found", "not a valid name of an object") from None
        return data

    def _require_access(self, address: str) -> None:
        """Check with a listing whether the credentials are refused for every file.

        For one file, pyarrow reports only the HTTP status. Expired credentials have the same status
        as other invalid requests.
        """
        probe = self._address(self._path(address).partition("/")[0]) + "/.ffd-probe"
        try:
            self.names(probe)
        except StorageError as error:
            # Listing may be denied where reading is allowed.
            if "access is denied" not in str(error):
                message = str(error).replace(probe, address)
                raise StorageError(message, error.code) from None

    def names(self, folder: str) -> list[str]:
        """Return the names of the files in a folder; an empty list if the folder does not exist."""
        if self.scheme == "file":
            try:
                with os.scandir(self._path(folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file())
            except FileNotFoundError:
                return []
            except OSError as error:
                raise StorageError(f"{folder}: {error.strerror}") from None
        fs = _arrow().fs
        with translate_read_errors(folder):
            selector = fs.FileSelector(self._path(folder), allow_not_found=True)
            infos = _open(self).get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def create_folder(self, folder: str) -> None:
        """Create a local folder; object stores need none."""
        if self.scheme == "file":
            with translate_write_errors(folder):
                os.makedirs(self._path(folder), exist_ok=True)

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a file atomically; an existing file of the name is replaced."""
        address = join(folder, name)
        if self.scheme != "file":
            # An object is visible when its upload is complete. All bytes are in memory before the
            # upload begins, so an error of ours cannot complete a partial upload.
            with translate_write_errors(address):
                file = _open(self).open_output_stream(self._path(address))
                file.write(data)
                file.close()
            return
        path = self._path(address)
        draft = self._path(join(folder, f"{DRAFT_PREFIX}{uuid.uuid4().hex}-{name}"))
        with translate_write_errors(address):
            write_atomic(Path(path), data, temporary=Path(draft))

    def delete(self, folder: str, name: str) -> None:
        """Delete a file if it exists."""
        with translate_write_errors(address := join(folder, name)):
            if self.scheme == "file":
                with suppress(FileNotFoundError):
                    os.unlink(self._path(address))
            elif name in self.names(folder):
                _open(self).delete_file(self._path(address))

    def _path(self, address: str) -> str:
        if self.scheme == "file":
            return os.path.join(self.root, address)
        return address.partition("://")[2].rstrip("/")

    def _address(self, path: str) -> str:
        return f"{self.scheme}://{path}"


# For a bucket, or an empty name for paths; see `Storage.of`.
storage_of = lru_cache(1024)(Storage.of)


@lru_cache
def _open(storage: Storage) -> Any:
    """Open one client per store and process, which keeps its connections."""
    fs = _arrow().fs
    if storage.scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=MAX_ATTEMPTS * TIMEOUT_S / 2))
    return fs.S3FileSystem(
        endpoint_override=storage.endpoint,
        region=storage.region,
        connect_timeout=TIMEOUT_S,
        request_timeout=TIMEOUT_S,
        # Write a small object with one request.
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=MAX_ATTEMPTS),
    )


def _find_region(bucket: str) -> str | None:
    try:
        region: str = _arrow().fs.resolve_s3_region(bucket)
    except OSError:
        # Reading reports the error.
        return None
    return region


def _arrow() -> Any:
    import pyarrow.fs

    return pyarrow

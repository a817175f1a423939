"""Object stores and shared folders, through pyarrow's file systems.

Credentials are never ours to carry: each machine finds its own, as pyarrow does (environment,
configuration files, the role of the machine). What travels with the work is where the store is.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self, TypeVar

from ffd_runtime.core.atomic_file import write_atomic
from ffd_runtime.core.errors import InputError, OutputError, StorageError
from ffd_runtime.core.redact import redact
from ffd_runtime.image.decode import MAX_BYTES, read_file

from .object_address import is_object, join

log = logging.getLogger(__name__)

T = TypeVar("T")

# A store under load asks for patience; pyarrow's default gives up after three tries.
TRIES = 8
# Seconds for a connection, and for a request that is under way.
TIMEOUT = 20.0
# What an object store says of a run that cannot go on, whatever the object is.
REFUSED = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "INVALID_ACCESS_KEY_ID": "its access key is not known there",
    "SIGNATURE_DOES_NOT_MATCH": "its secret key does not fit its access key",
    "EXPIRED_TOKEN": "the credentials have expired",
    "INVALID_CLIENT_TOKEN_ID": "its access key is not known there",
    "UNRECOGNIZED_CLIENT": "its access key is not known there",
    "MISSING_AUTHENTICATION_TOKEN": "it wants credentials, and none were found",
    "UNAUTHENTICATED": "it does not take the credentials",
}
# What may be otherwise in a while.
PASSING = {
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "THROTTLING",
    "INTERNAL_FAILURE",
    "SERVICE_UNAVAILABLE",
    "REQUEST_TIMEOUT",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "INTERNAL",
    "ABORTED",
}
# S3's names of errors, with the number of HTTP, and Google's.
CODE = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?|google::cloud::Status\((\w+)")
UNREACHABLE = "unreachable"
# Seconds until it is asked again, if a run would end otherwise.
PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0)
# How the names of files begin that are being written; readers of Parquet folders skip them.
DRAFT = "_draft-"
CREDENTIALS = {
    "s3": "check the bucket's name, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or the profile",
    "gs": "check the bucket's name, and Google's application default credentials",
}


def require_no_credentials(address: str) -> None:
    """Refuse a pre-signed address of an object, whose signature rows would show.

    Raises:
        StorageError: behind its `?` is a parameter that grants access.
    """
    query = "?" + address.partition("?")[2]
    if is_object(address) and redact(query) != query:
        raise StorageError(
            f"{redact(address)}: an address must not hold credentials; give a pre-signed one as "
            "https://, without --ray"
        )


@lru_cache(1024)
def storage_of(place: str) -> Storage:
    """The storage of a place; see `Storage.of`."""
    return Storage.of(place)


@dataclass(frozen=True)
class Storage:
    """Where files are: an object store, or folders that every machine has under the same path.

    Attributes:
        scheme: `s3`, `gs`, or `file`.
        endpoint: address of another S3 than Amazon's; None for Amazon's.
        region: of the bucket; None to leave it to the configuration.
        root: the folder that paths are relative to, since each machine works in another.
    """

    scheme: str
    endpoint: str | None = None
    region: str | None = None
    root: str = ""

    @classmethod
    def of(cls, address: str) -> Self:
        """The storage that an address or a path is in.

        Raises:
            StorageError: it is no address of a bucket, or holds credentials.
        """
        if not is_object(address):
            return cls("file", root=os.getcwd())
        scheme, _, rest = address.partition("://")
        scheme, bucket = scheme.lower(), rest.partition("/")[0]
        # A secret may hold slashes, so what follows the first one may be of it, too.
        if "@" in bucket or ":" in bucket:
            raise StorageError(
                f"{scheme}://***: an address must not hold credentials; put them into "
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
        """Addresses of all objects below a prefix, or of the one that it is; sorted by folder.

        Folders are listed one at a time, so that memory holds the names of one.

        Raises:
            StorageError: the store refuses.
        """
        kind, path = _arrow().fs.FileType, self._path(address)
        if self.scheme != "file" and address.endswith("/"):
            # There may be an object of that name, too.
            yield from (self._address(name) for name in self._walk(path))
            return
        with _explaining(address):
            info = self._system().get_file_info(path)
        if info.type == kind.File:
            yield address
        elif info.type == kind.Directory:
            yield from (self._address(name) for name in self._walk(path))

    def require_bucket(self, address: str) -> None:
        """See that there is something to list or to write to; a store without a bucket is silent.

        Raises:
            StorageError: there is no such bucket, or it refuses.
        """
        if self.scheme == "file":
            return
        bucket = self._path(address).partition("/")[0]
        with _explaining(address):
            info = self._system().get_file_info(bucket)
        if info.type == _arrow().fs.FileType.NotFound:
            hint = CREDENTIALS[self.scheme]
            raise StorageError(f"{address}: {REFUSED['NO_SUCH_BUCKET']}; {hint}")

    def _walk(self, top: str) -> Iterator[str]:
        # Folders that have been entered, each with what is left of it, last first.
        stack = [self._list(top)]
        while stack:
            if not stack[-1]:
                stack.pop()
                continue
            path, is_folder = stack[-1].pop()
            if is_folder:
                stack.append(patiently(partial(self._list, path)))
            else:
                yield path

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        """What is in a folder and whether it is one, backwards."""
        fs = _arrow().fs
        with _explaining(self._address(folder)):
            # A folder may have gone since its parent was listed.
            selector = fs.FileSelector(folder, allow_not_found=True)
            infos = self._system().get_file_info(selector)
        # A name with an empty part, such as in//a.jpg, looks like the folder itself and cannot be
        # read through pyarrow: it gets a row that says so.
        found = (
            (f"{info.path.rstrip('/')}//", False)
            if info.path.rstrip("/") == folder
            else (info.path, info.type == fs.FileType.Directory)
            for info in infos
        )
        return sorted(found, reverse=True)

    def read(self, address: str) -> bytes:
        """A file's bytes.

        Raises:
            InputError: this file cannot be read.
            StorageError: none can.
        """
        if self.scheme == "file":
            return read_file(self._path(address))
        try:
            with (
                _explaining(address, one=True),
                self._system().open_input_file(self._path(address)) as file,
            ):
                if (size := file.size()) > MAX_BYTES:
                    limit = f"{size >> 20} MiB, over the limit of {MAX_BYTES >> 20}"
                    raise InputError("too_large", limit)
                data: bytes = file.read(size)
        except StorageError as error:
            if error.everywhere:
                raise
            if error.code != "not_found":
                self._require_access(address)
            raise InputError(error.code, str(error)) from None
        except ValueError:
            raise InputError("not_found", "not a possible name of an object") from None
        return data

    def _require_access(self, address: str) -> None:
        """Ask what a refused file does not say: whether it is the credentials, for every file.

        A store tells a request for a file no more than a number, and expired credentials have that
        of any wrong request.
        """
        probe = self._address(self._path(address).partition("/")[0]) + "/.ffd-probe"
        try:
            self.names(probe)
        except StorageError as error:
            # Files may be readable where listing is not allowed.
            if "access is denied" not in str(error):
                message = str(error).replace(probe, address)
                raise StorageError(message, error.code) from None

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, none if there is no such folder.

        Raises:
            StorageError: the store refuses.
        """
        if self.scheme == "file":
            try:
                with os.scandir(self._path(folder)) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file())
            except FileNotFoundError:
                return []
            except OSError as error:
                raise StorageError(f"{folder}: {error.strerror}") from None
        fs = _arrow().fs
        with _explaining(folder):
            selector = fs.FileSelector(self._path(folder), allow_not_found=True)
            infos = self._system().get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == fs.FileType.File)

    def create_folder(self, folder: str) -> None:
        """Make a local folder; an object store has none to make.

        Raises:
            OutputError: it cannot be made.
        """
        if self.scheme == "file":
            with _writing(folder):
                os.makedirs(self._path(folder), exist_ok=True)

    def write(self, folder: str, name: str, data: bytes) -> None:
        """Write a file that is there whole or not at all, in place of an earlier one of that name.

        Raises:
            OutputError: it cannot be written.
            StorageError: not now; the store does not answer.
        """
        address = join(folder, name)
        if self.scheme != "file":
            # An object appears once its upload is complete. All of it is in memory before the
            # upload begins, so that no error of ours can complete half of it.
            with _writing(address):
                file = self._system().open_output_stream(self._path(address))
                file.write(data)
                file.close()
            return
        path = self._path(address)
        draft = self._path(join(folder, f"{DRAFT}{uuid.uuid4().hex}-{name}"))
        with _writing(address):
            write_atomic(Path(path), data, temporary=Path(draft))

    def delete(self, folder: str, name: str) -> None:
        """Delete a file; one that is not there is no error.

        Raises:
            OutputError: it cannot be deleted.
            StorageError: not now; the store does not answer.
        """
        with _writing(address := join(folder, name)):
            if self.scheme == "file":
                with suppress(FileNotFoundError):
                    os.unlink(self._path(address))
            elif name in self.names(folder):
                self._system().delete_file(self._path(address))

    def _path(self, address: str) -> str:
        if self.scheme == "file":
            return os.path.join(self.root, address)
        return address.partition("://")[2].rstrip("/")

    def _address(self, path: str) -> str:
        return f"{self.scheme}://{path}"

    def _system(self) -> Any:
        return _open(self)


@lru_cache
def _open(storage: Storage) -> Any:
    """One client for each store and process: it keeps its connections."""
    fs = _arrow().fs
    if storage.scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=TRIES * TIMEOUT / 2))
    return fs.S3FileSystem(
        endpoint_override=storage.endpoint,
        region=storage.region,
        connect_timeout=TIMEOUT,
        request_timeout=TIMEOUT,
        # Small objects are put by one request.
        allow_delayed_open=True,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
    )


def _find_region(bucket: str) -> str | None:
    try:
        region: str = _arrow().fs.resolve_s3_region(bucket)
    except OSError:
        # What is wrong, reading will say.
        return None
    return region


def _arrow() -> Any:
    import pyarrow.fs

    return pyarrow


@contextmanager
def _explaining(address: str, one: bool = False) -> Iterator[None]:
    """What a store says, as a `StorageError` with one line of ours.

    Args:
        address: what it was asked for.
        one: of a single file: another may well be readable.
    """
    try:
        yield
    except OSError as error:
        raise _explain(error, address, one) from None


def _explain(error: OSError, address: str, one: bool) -> StorageError:
    text = str(error)
    said = CODE.search(text)
    code, status = (said[1] or said[3], said[2] or "") if said else ("", "")
    hint = CREDENTIALS.get(address.partition("://")[0].lower(), "")
    if code in REFUSED:
        return StorageError(f"{address}: {REFUSED[code]}; {hint}")
    denied = ("ACCESS_DENIED", "PERMISSION_DENIED")
    if isinstance(error, PermissionError) or code in denied or status == "403":
        if one:
            return StorageError("no permission to read it", "permission_denied", everywhere=False)
        return StorageError(f"{address}: access is denied" + (hint and f"; {hint}"))
    if isinstance(error, FileNotFoundError) or code in ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND"):
        return StorageError("no such file or folder", "not_found", everywhere=False)
    ours = text.partition(": AWS Error ")[2] or text.partition("google::cloud::Status(")[2]
    detail = (error.strerror or ours or text).splitlines()[0][:200]
    if code in PASSING or status.startswith("5"):
        message = f"{address}: the store does not answer ({detail}); try again later"
        return StorageError(message, UNREACHABLE)
    if one:
        return StorageError(f"reading failed: {detail}", everywhere=False)
    return StorageError(f"{address}: {detail}")


@contextmanager
def _writing(address: str) -> Iterator[None]:
    try:
        with _explaining(address):
            yield
    except StorageError as error:
        reason = str(error).removeprefix(f"{address}: ")
        message = f"cannot write {address}: {reason}"
        if error.code == UNREACHABLE:
            raise StorageError(message, UNREACHABLE) from None
        raise OutputError(message) from None


def patiently(work: Callable[[], T]) -> T:
    """Do something, again after a while if the store does not answer; it may be done twice.

    Raises:
        StorageError: it has not answered for minutes, or refuses.
    """
    for pause in PAUSES:
        try:
            return work()
        except StorageError as error:
            if error.code != UNREACHABLE:
                raise
            log.warning("%s; asking again in %.0f s", error, pause)
            time.sleep(pause)
    return work()

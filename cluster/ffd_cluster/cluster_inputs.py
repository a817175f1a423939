"""Find the inputs of a cluster run: objects, files, and lists on standard input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future

from ffd_runtime.core.errors import FfdError, InputError, StorageError
from ffd_runtime.core.text import printable
from ffd_runtime.inputs import Item, find_files
from ffd_runtime.inputs.files import Search, ignore
from ffd_runtime.inputs.lists import read_names

from .object_address import bucket_of, is_object, require_no_credentials
from .output_parts import is_run_file
from .storage import storage_of

UNSUPPORTED = "--ray does not support archives and web addresses: run without --ray"


def find_inputs(sources: Iterable[str], output: str, null: bool = False) -> Iterator[Item]:
    """Yield every input of the sources.

    Args:
        sources: addresses of objects and prefixes; files, folders and globs that all machines
            have; `-` for a list of files and objects on standard input.
        output: the run's output folder, whose files are not inputs.
        null: names on standard input end with NUL.

    Raises:
        StorageError: a store refuses.
        FfdError: a source is unsupported on a cluster.
    """
    for source in sources:
        for item in _read_list(null) if source == "-" else _find(source):
            if not is_run_file(item.source, output):
                yield item


def counted_into(total: Future[int], items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, and set `total` to their number after the last one."""
    count = 0
    for item in items:
        count += 1
        yield item
    total.set_result(count)


def _read_list(null: bool) -> Iterator[Item]:
    """Yield the inputs of a list; objects are not looked up, an invalid name gets an error row."""
    search = Search()
    for number, name in enumerate(read_names(null), 1):
        if not is_object(name):
            for item in search.expand([name]):
                yield Item(item.source, InputError("refused", UNSUPPORTED)) if item.fetch else item
            continue
        try:
            require_no_credentials(name)
            storage_of(bucket_of(name))
            yield Item(name)
        except StorageError as error:
            # The name may contain a secret.
            shown = f"{name.partition('://')[0]}://*** ({number} on standard input)"
            yield Item(shown, InputError("refused", str(error)))


def _find(source: str) -> Iterator[Item]:
    if not is_object(source):
        for item in find_files([source]):
            if item.fetch:
                raise FfdError(f"{printable(item.source)}: {UNSUPPORTED}")
            yield item
        return
    require_no_credentials(source)
    storage = storage_of(bucket_of(source))
    storage.require_bucket(source)
    found = False
    for address in storage.files(source):
        found = True
        yield Item(address, skip=None if address == source else ignore)
    if not found:
        yield Item(source, InputError("not_found", "no such file or folder"))

"""Find inputs: files, folders, globs, and lists of paths on standard input."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from importlib import import_module

from ..core.errors import InputError
from ..core.redact import MAX_ADDRESS_CHARACTERS, hide_address, redact
from ..core.tree_walk import walk_tree
from ..image.decode import os_error
from .fetch_policy import FetchPolicy
from .items import Item
from .lists import read_names
from .source_registry import ADDRESS_MODULES


def ignore(source: str) -> None:
    """Skip a file silently."""


def find_files(
    sources: Iterable[str],
    *,
    null: bool = False,
    leave_out: Collection[str] = (),
    policy: FetchPolicy | None = None,
    skip: Callable[[str], object] = ignore,
) -> Iterator[Item]:
    """Yield the inputs of all sources, lazily and in a fixed order.

    A folder stands for every file below it, sorted by name, with links followed. Files that are not
    images are skipped when they are read. A source that does not exist and contains wildcards is a
    glob. An archive stands for its members. `-` stands for the paths and addresses on standard
    input. Addresses that differ only in their credentials get different sources.

    Args:
        sources: files, folders, patterns, archives, http and https addresses, `-`.
        null: whether paths on standard input end with NUL instead of a newline.
        leave_out: paths to exclude, absolute and without links in their folders, such as the output
            file.
        policy: limits for addresses; None for the defaults.
        skip: see `Item`; for files in folders and archives.
    """
    search = Search(leave_out, policy or FetchPolicy(), skip)
    for source in sources:
        yield from search.expand(read_names(null)) if source == "-" else search.find(source)


class _Names:
    """Unique sources for addresses with hidden credentials.

    `#2` is appended to the second address with the same redacted form, and so on in the order of
    the sources, so that `--resume` and annotated copies do not confuse them. A repeated address
    keeps its name. Only addresses with credentials need memory.
    """

    def __init__(self) -> None:
        # The suffix of each address, by digest.
        self._suffixes: dict[bytes, str] = {}
        self._counts: Counter[bytes] = Counter()

    def of(self, address: str, hidden: str) -> str:
        """Return the source of an address with the redacted form `hidden`."""
        if address == hidden:
            return address
        whole, shown = _digest(address), _digest(hidden)
        if whole not in self._suffixes:
            self._counts[shown] += 1
            count = self._counts[shown]
            self._suffixes[whole] = f"#{count}" if count > 1 else ""
        return hidden + self._suffixes[whole]


@dataclass(frozen=True)
class Search:
    """Finds inputs; see `find_files`."""

    leave_out: Collection[str] = ()
    policy: FetchPolicy = field(default_factory=FetchPolicy)
    skip: Callable[[str], object] = ignore
    _names: _Names = field(default_factory=_Names)

    def find(self, source: str) -> Iterator[Item]:
        """Yield the inputs of a source, which may be a pattern."""
        if "://" in source or os.path.lexists(source) or not glob.has_magic(source):
            yield from self.expand([source])
            return
        matches = self._match(source.replace(os.sep, "/"))
        no_match = InputError("not_found", "no file matches this pattern")
        yield next(matches, Item(source, no_match))
        yield from matches

    def expand(self, paths: Iterable[str]) -> Iterator[Item]:
        """Yield the inputs of paths and addresses, without expanding patterns."""
        for path in paths:
            scheme, is_address, _ = path.partition("://")
            module = ADDRESS_MODULES.get(scheme.lower()) if is_address else None
            if is_address and len(path) > MAX_ADDRESS_CHARACTERS:
                size = f"{len(path)} characters, over the limit of {MAX_ADDRESS_CHARACTERS}"
                source = self._names.of(path, hide_address(path))
                yield Item(source, InputError("refused", f"an address of {size}"))
            elif module:
                for item in import_module(module).find_inputs(path, self.policy):
                    yield replace(item, source=self._names.of(path, item.source))
            elif is_address and not os.path.lexists(path.partition("\0")[0]):
                reason = "no such file, and not an http or https address"
                yield Item(redact(path), InputError("not_found", reason))
            elif os.path.isdir(path):
                yield from self._walk(path)
            elif not _left_out(path, self.leave_out):
                yield from self._open(path)

    def _match(self, pattern: str) -> Iterator[Item]:
        """Yield inputs that match a pattern. `**` walks folders, which detects link loops."""
        parts = pattern.split("/")
        if "**" not in parts:
            yield from self.expand(sorted(glob.iglob(pattern)))
            return
        deep = parts.index("**")
        wanted = [part for part in parts[deep:] if part not in ("", ".")]
        top = "/".join(parts[:deep]) or ("/" if pattern.startswith("/") else ".")
        for folder in sorted(glob.iglob(top)) if glob.has_magic(top) else [top]:
            if not os.path.isdir(folder):
                continue
            for item in self._walk(folder):
                below = os.path.relpath(item.source, folder).split(os.sep)
                loop = item.error is not None and item.error.code == "link_loop"
                if loop or not (item.error or _fits(below, wanted)):
                    continue
                path = "/".join(below) if deep == 0 else item.source
                # A final `**` stands for the content of folders.
                named = wanted[-1] != "**" and fnmatch.fnmatchcase(below[-1], wanted[-1])
                for one in [Item(path, item.error)] if item.error else self._open(path):
                    yield one if named or one.error else replace(one, skip=self.skip)

    def _open(self, path: str) -> Iterator[Item]:
        """Yield a file that the user named, or the members of an archive."""
        from .archives import find_in_archive, is_archive

        if is_archive(path):
            for item in find_in_archive(path):
                # An error of the archive itself always has its row.
                yield item if item.source == path else replace(item, skip=self.skip)
        else:
            yield Item(path)

    def _walk(self, top: str) -> Iterator[Item]:
        for entry in walk_tree(top):
            if entry.error:
                yield Item(entry.path, os_error(entry.error, entry.path))
            elif not _left_out(entry.path, self.leave_out):
                yield Item(entry.path, skip=self.skip)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _fits(names: list[str], patterns: list[str]) -> bool:
    """Return whether a path, or one of its folders, matches a pattern, name by name.

    As in a shell, a leading dot must be matched explicitly.
    """
    if not patterns:
        return True
    if patterns[0] == "**":
        hidden = [name.startswith(".") for name in names]
        if patterns == ["**"]:
            return not any(hidden)
        return any(_fits(names[i:], patterns[1:]) for i in range(len(names)) if not any(hidden[:i]))
    if not names or (names[0].startswith(".") and not patterns[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _left_out(path: str, leave_out: Collection[str]) -> bool:
    if not leave_out:
        return False
    folder, name = os.path.split(path)
    try:
        return os.path.join(os.path.realpath(folder or "."), name) in leave_out
    except ValueError:
        # A NUL is not valid in a name; reading the file reports it.
        return False

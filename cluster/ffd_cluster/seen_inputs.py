"""Remember inputs by a digest of 16 bytes each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


def identify(source: str) -> bytes:
    """Return the id of an input: a digest of its name, as rows spell it."""
    return digest([source.encode("utf-8", "backslashreplace")])


def digest(values: Iterable[bytes]) -> bytes:
    """Return 16 bytes that depend on the values and their order."""
    state = hashlib.blake2b(digest_size=16)
    for value in values:
        state.update(value)
    return state.digest()


class Seen:
    """A set of inputs that needs 16 bytes for each."""

    def __init__(self) -> None:
        # Sorted arrays, each at least twice as long as the next, so that adding stays cheap. NumPy
        # ignores trailing zero bytes, which is harmless, as all digests have 16 bytes.
        self._runs: list[npt.NDArray[np.bytes_]] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def find_new(self, sources: Iterable[str]) -> list[bool]:
        """Return for each source whether it is new; of equal sources, only the first is."""
        ids = _ids(sources)
        new = np.zeros(len(ids), bool)
        new[np.unique(ids, return_index=True)[1]] = True
        for known in self._runs:
            place = np.searchsorted(known, ids)
            inside = place < len(known)
            new[inside] &= known[place[inside]] != ids[inside]
        return new.tolist()

    def add(self, sources: Iterable[str]) -> None:
        """Add sources that `find_new` reported as new."""
        ids = np.unique(_ids(sources))
        while self._runs and len(self._runs[-1]) < 2 * len(ids):
            known = self._runs.pop()
            ids = np.insert(known, np.searchsorted(known, ids), ids)
        if len(ids):
            self._runs.append(ids)


def _ids(sources: Iterable[str]) -> npt.NDArray[np.bytes_]:
    return np.array(list(map(identify, sources)), "S16")

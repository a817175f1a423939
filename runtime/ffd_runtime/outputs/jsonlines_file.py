"""JSON Lines in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import IO

from ..core.results import Result
from .jsonlines import to_line
from .partial_file import PartialFile

CHUNK_BYTES = 1 << 20


class JsonLinesFile(PartialFile):
    """Rows to a `.jsonl` file."""

    to_line = staticmethod(to_line)

    def _whole_rows(self, file: IO[bytes]) -> int:
        end = 0
        offset = 0
        while chunk := file.read(CHUNK_BYTES):
            last = chunk.rfind(b"\n")
            if last >= 0:
                end = offset + last + 1
            offset += len(chunk)
        return end

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        for line in lines:
            yield Result.from_dict(json.loads(line))

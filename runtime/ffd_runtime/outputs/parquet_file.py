"""Parquet with the schema of the rows, for pandas, DuckDB and Spark."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.atomic_file import atomic_path
from ..core.errors import OutputError
from ..core.install_hint import install_hint
from .jsonlines import JsonLinesFile
from .provenance import RunProvenance

ROW_GROUP_ROWS = 1 << 16


class ParquetFile(JsonLinesFile):
    """Rows to a `.parquet` file.

    A Parquet file is readable only after it is closed. Rows are therefore written as JSON Lines,
    which survive any end of the run, and converted at the end. Bytes of a name that are not UTF-8
    become backslash escapes (`\\udcff`), because strings in Parquet must be UTF-8.
    """

    pipes = False

    def __init__(
        self, path: Path, origin: RunProvenance | None = None, resume: bool = False
    ) -> None:
        _pyarrow()
        super().__init__(path, origin, resume)

    def _finish(self) -> None:
        pa = _pyarrow()
        schema = _schema(pa)
        draft = self.partial.with_name(self.partial.name + ".draft")
        try:
            with (
                atomic_path(self.path, temporary=draft),
                self.partial.open(encoding="ascii") as lines,
                pa.parquet.ParquetWriter(draft, schema, compression="zstd") as writer,
            ):
                self._copy_mode(draft)
                while rows := [_to_arrow(line) for line in islice(lines, ROW_GROUP_ROWS)]:
                    writer.write_table(pa.Table.from_pylist(rows, schema))
        except pa.ArrowException as error:
            raise OSError(None, str(error)) from None
        self.partial.unlink()


def to_parquet(lines: Iterable[str]) -> bytes:
    """Convert rows to the content of a Parquet file.

    Args:
        lines: the rows as JSON.
    """
    pa = _pyarrow()
    table = pa.Table.from_pylist(list(map(_to_arrow, lines)), _schema(pa))
    file = pa.BufferOutputStream()
    pa.parquet.write_table(table, file, compression="zstd")
    data: bytes = file.getvalue().to_pybytes()
    return data


def _to_arrow(line: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    row["source"] = row["source"].encode("utf-8", "backslashreplace").decode()
    if row["error"]:
        message = row["error"]["message"]
        row["error"]["message"] = message.encode("utf-8", "backslashreplace").decode()
    return row


def _schema(pa: Any) -> Any:
    track = [("number", pa.int64()), ("label", pa.string()), ("score", pa.float64())]
    return pa.schema(
        [
            pa.field("source", pa.string(), nullable=False),
            pa.field("frame", pa.int64()),
            pa.field("face", pa.list_(pa.int32())),
            pa.field("label", pa.string()),
            pa.field("score", pa.float64()),
            pa.field("error", pa.struct([("code", pa.string()), ("message", pa.string())])),
            pa.field("reason", pa.string()),
            pa.field("time", pa.float64()),
            pa.field("track", pa.struct(track)),
        ]
    )


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OutputError(
            f"Parquet needs pyarrow ({error}): {install_hint('parquet')}, or write .jsonl or .csv"
        ) from None
    return pyarrow

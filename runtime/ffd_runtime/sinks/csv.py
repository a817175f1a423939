"""CSV with a header; names keep their bytes, also those that are not UTF-8."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from ..results import Result
from .origin import Origin
from .partial import PartialFile

HEADER = (
    "source",
    "frame",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "label",
    "score",
    "error_code",
    "error_message",
    "reason",
    "time",
    "track_number",
    "track_label",
    "track_score",
)


class CsvFile(PartialFile):
    """Rows to a `.csv` file; None is an empty field."""

    def __init__(self, path: Path, origin: Origin | None = None, resume: bool = False) -> None:
        super().__init__(path, origin, resume, errors="surrogateescape")
        self._rows = csv.writer(self.file)

    def _header(self) -> str:
        return ",".join(HEADER) + "\r\n"

    def _write(self, result: Result) -> None:
        row = result.to_row()
        error, track = result.error, row["track"]
        self._rows.writerow(
            [
                row["source"],
                row["frame"],
                *(result.face or (None,) * 4),
                row["label"],
                row["score"],
                error and error.code,
                error and error.message,
                row["reason"],
                row["time"],
                *(track.values() if track else (None,) * 3),
            ]
        )

    def _whole_rows(self, file: IO[bytes]) -> int:
        end = offset = 0
        quoted = False
        for line in file:
            offset += len(line)
            # Quotes inside a field are doubled, so an odd count means that one is open.
            quoted ^= line.count(b'"') % 2 == 1
            if not quoted and line.endswith(b"\r\n"):
                end = offset
        return end

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        # A line on standard input may be longer than any path.
        csv.field_size_limit(1 << 30)
        try:
            for fields in csv.DictReader(lines):
                yield _to_result(fields)
        except csv.Error as error:
            raise ValueError(str(error)) from None


def _to_result(fields: dict[str, str]) -> Result:
    face = [fields[f"face_{name}"] for name in ("x", "y", "width", "height")]
    code, number = fields["error_code"], fields["track_number"]
    track = {
        "number": int(number or 0),
        "label": fields["track_label"],
        "score": _number(fields["track_score"]),
    }
    return Result.from_row(
        {
            "source": fields["source"],
            "frame": int(fields["frame"]) if fields["frame"] else None,
            "face": [int(number) for number in face] if face[0] else None,
            "label": fields["label"] or None,
            "score": _number(fields["score"]),
            "error": {"code": code, "message": fields["error_message"]} if code else None,
            "reason": fields["reason"] or None,
            "time": _number(fields["time"]),
            "track": track if number else None,
        }
    )


def _number(field: str) -> float | None:
    return float(field) if field else None

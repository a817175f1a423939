"""CSV with a header; names keep their bytes, also those that are not UTF-8."""

from __future__ import annotations

import csv
from pathlib import Path

from ..results import Result
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
)


class CsvFile(PartialFile):
    """Rows to a `.csv` file; None is an empty field."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, errors="surrogateescape")
        self._rows = csv.writer(self.file)
        self._rows.writerow(HEADER)

    def _write(self, result: Result) -> None:
        row = result.to_row()
        error = result.error
        self._rows.writerow(
            [
                row["source"],
                row["frame"],
                *(result.face or (None,) * 4),
                row["label"],
                row["score"],
                error and error.code,
                error and error.message,
            ]
        )

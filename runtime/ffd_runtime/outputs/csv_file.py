"""CSV with a header. Names keep their bytes, also those that are not UTF-8.

Text that a spreadsheet would read as a formula gets an apostrophe in front, which reading removes:
see OWASP, "CSV Injection".
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from typing import IO

from ..core.results import Result
from .partial_file import PartialFile

HEADER = (
    "source frame face_x face_y face_width face_height label score error_code error_message "
    "reason time track_number track_label track_score"
).split()

# The start of a formula, also after spaces and in the full-width forms of East Asian keyboards.
# Some programs drop a leading tab or line end, and then read a formula.
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
# Also other separators than the comma, which a spreadsheet may be set to.
_QUOTED = re.compile(r"""[,;\t|"\r\n]""")


def to_line(result: Result) -> str:
    """Return a row as CSV, in several lines if a name contains line ends."""
    row = result.to_dict()
    error, track = result.error, row["track"]
    fields = [
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
    return ",".join(map(_to_field, fields)) + "\r\n"


def _to_field(value: str | float | None) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return repr(value)
    text = f"'{value}" if _FORMULA.match(value) else value
    doubled = text.replace('"', '""')
    return f'"{doubled}"' if _QUOTED.search(text) else text


def _from_field(text: str) -> str:
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class CsvFile(PartialFile):
    """Rows to a `.csv` file; None is an empty field."""

    header = ",".join(HEADER) + "\r\n"
    to_line = staticmethod(to_line)
    _errors = "surrogateescape"

    def _whole_rows(self, file: IO[bytes]) -> int:
        end = offset = 0
        quoted = False
        for line in file:
            offset += len(line)
            # Quotes inside a field are doubled, so an odd count means an open field.
            quoted ^= line.count(b'"') % 2 == 1
            if not quoted and line.endswith(b"\r\n"):
                end = offset
        return end

    def _read(self, lines: Iterable[str]) -> Iterator[Result]:
        # A name from standard input may be longer than any path.
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
    return Result.from_dict(
        {
            "source": _from_field(fields["source"]),
            "frame": int(fields["frame"]) if fields["frame"] else None,
            "face": [int(number) for number in face] if face[0] else None,
            "label": fields["label"] or None,
            "score": _number(fields["score"]),
            "error": {"code": code, "message": _from_field(fields["error_message"])}
            if code
            else None,
            "reason": fields["reason"] or None,
            "time": _number(fields["time"]),
            "track": track if number else None,
        }
    )


def _number(field: str) -> float | None:
    return float(field) if field else None

"""Result rows: the same value for every source, sink and backend."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class RowError:
    """Why an input has no verdict: an `InputError.CODES` code and a sentence."""

    code: str
    message: str


@dataclass(frozen=True)
class Result:
    """The verdict on one input, or the reason why there is none.

    Attributes:
        source: path or address, as it was given or found.
        frame: number of a video's frame, from 0; None for still images.
        face: `(x, y, width, height)` in pixels; None for the whole picture.
        label: `generated`, `groundtruth`, `unsure`; None with an error.
        score: P(generated), 0 to 1; None with an error.
        error: None with a verdict.
        heatmap: float32 [h, w], evidence for `generated` in log-odds over the square that was
            classified; None with an error. Not part of the row.
        encoded: the picture's file as it was read, for sinks that show it; None unless asked for,
            and for files above 8 MiB. Not part of the row.
    """

    source: str
    frame: int | None = None
    face: Box | None = None
    label: str | None = None
    score: float | None = None
    error: RowError | None = None
    heatmap: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    encoded: bytes | None = field(default=None, compare=False, repr=False)

    @classmethod
    def failed(cls, source: str, error: InputError) -> Result:
        """The row of an input that could not be classified."""
        return cls(source, error=RowError(error.code, error.message))

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Result:
        """A result from what `to_row` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no row.
        """
        error, face = row["error"], row["face"]
        if not isinstance(row["source"], str):
            raise ValueError("source must be a text")
        return cls(
            row["source"],
            frame=row["frame"],
            face=face and tuple(face),
            label=row["label"],
            score=row["score"],
            error=error and RowError(error["code"], error["message"]),
        )

    def to_row(self) -> dict[str, Any]:
        """The row as JSON types, the score to six digits."""
        return {
            "source": self.source,
            "frame": self.frame,
            "face": list(self.face) if self.face else None,
            "label": self.label,
            "score": None if self.score is None else round(self.score, 6),
            "error": self.error and {"code": self.error.code, "message": self.error.message},
        }

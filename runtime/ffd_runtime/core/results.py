"""Result rows, which every source, sink and backend shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Box = tuple[int, int, int, int]
# The labels of rows. `groundtruth` is the article's name for photographs of real faces.
Label = Literal["generated", "groundtruth", "unsure"]
LABELS: tuple[Label, ...] = get_args(Label)
# The labels as people read them.
LABEL_NAMES: dict[Label, str] = {
    "generated": "generated",
    "groundtruth": "photograph",
    "unsure": "unsure",
}


@dataclass(frozen=True)
class RowError:
    """Why an input has no verdict: a code of `InputError.CODES` and a sentence."""

    code: str
    message: str

    @classmethod
    def of(cls, error: InputError) -> RowError:
        """Return the row's form of an error."""
        return cls(error.code, error.message)


@dataclass(frozen=True)
class Track:
    """One face in a stream, up to the current frame.

    Attributes:
        number: from 1; unique in a stream.
        label: smoothed over time, so that it does not flicker.
        score: the smoothed P(generated); None before the first clear view.
    """

    number: int
    label: Label
    score: float | None = None


@dataclass(frozen=True)
class Result:
    """The verdict on one input, or the reason why it failed.

    Attributes:
        source: path or address, as given by the user or found in a folder.
        frame: index of a video frame, from 0; None for still images.
        face: `(x, y, width, height)` in pixels; None for the whole image.
        label: None with an error.
        score: P(generated), 0 to 1; None with an error.
        error: None with a verdict.
        reason: why the label is `unsure` regardless of the score, one of `faces.REASONS` or
            `animation`; otherwise None.
        time: of a frame, in seconds: since the start of a video file, or since 1970 (UTC) in a live
            stream; None for still images.
        track: of a face in a stream; None for still images.
        heatmap: float32 [h, w], evidence for `generated` in log-odds over the classified square;
            None with an error. Not part of the row.
        encoded: the bytes of the image file, for sinks that show it; None unless requested, and for
            files above 8 MiB. Not part of the row.
    """

    source: str
    frame: int | None = None
    face: Box | None = None
    label: Label | None = None
    score: float | None = None
    error: RowError | None = None
    reason: str | None = None
    time: float | None = None
    track: Track | None = None
    heatmap: npt.NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    encoded: bytes | None = field(default=None, compare=False, repr=False)

    @property
    def box(self) -> Box | None:
        """The box of the face, `(x, y, width, height)` in pixels; None for the whole image."""
        return self.face

    @classmethod
    def failed(cls, source: str, error: InputError) -> Result:
        """Return the row of an input that could not be classified."""
        return cls(source, error=RowError.of(error))

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Result:
        """Read a result from the output of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: the mapping is not a row.
        """
        error, face, track = row["error"], row["face"], row["track"]
        if not isinstance(row["source"], str):
            raise ValueError("source must be a string")
        return cls(
            row["source"],
            frame=row["frame"],
            face=face and tuple(face),
            label=row["label"],
            score=row["score"],
            error=error and RowError(error["code"], error["message"]),
            reason=row["reason"],
            time=row["time"],
            track=track and Track(track["number"], track["label"], track["score"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON types, scores to six digits, times to milliseconds."""
        return {
            "source": self.source,
            "frame": self.frame,
            "face": list(self.face) if self.face else None,
            "label": self.label,
            "score": _rounded(self.score, 6),
            "error": self.error and {"code": self.error.code, "message": self.error.message},
            "reason": self.reason,
            "time": _rounded(self.time, 3),
            "track": self.track
            and {
                "number": self.track.number,
                "label": self.track.label,
                "score": _rounded(self.track.score, 6),
            },
        }


def _rounded(number: float | None, digits: int) -> float | None:
    return None if number is None else round(number, digits)

"""The provenance of a file of rows. A run may resume another only if it is unchanged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..core.atomic_file import write_atomic
from ..core.errors import OutputError
from ..model.card import ModelCard


@dataclass(frozen=True)
class RunProvenance:
    """Model, preprocessing and inputs of a run.

    Attributes:
        model: name and precision of the model, for people.
        model_sha256: of the model's file and card.
        preprocess: the `PreprocessSpec` of the card as a mapping, and settings of face detection.
        sources_sha256: of the source arguments and the current folder. A digest, because addresses
            may contain passwords.
    """

    model: str
    model_sha256: str
    preprocess: dict[str, Any]
    sources_sha256: str

    @classmethod
    def of(
        cls,
        model: Path,
        card: ModelCard,
        sources: Iterable[str],
        faces: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return the provenance of a run; `faces` are the settings of the face detector."""
        with model.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        # The card of an engine, with the threshold, is in another file.
        digest.update(card.to_json().encode())
        words = json.dumps([os.getcwd(), *sources]).encode()
        return cls(
            model=f"{card.name} ({card.precision})",
            model_sha256=digest.hexdigest(),
            preprocess=dataclasses.asdict(card.preprocess) | {"faces": faces and dict(faces)},
            sources_sha256=hashlib.sha256(words).hexdigest(),
        )

    def save(self, path: Path) -> None:
        """Write the provenance atomically."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_atomic(path, text.encode(), temporary=path.with_name(path.name + ".draft"))

    def require_same(
        self, text: bytes | None, record: object, rows: object, sources: bool = True
    ) -> None:
        """Check that a record equals this provenance.

        Args:
            text: of the record, as `save` wrote it; None if it cannot be read.
            record: its path, for messages.
            rows: path of the rows, for messages.
            sources: whether the sources must be the same, too.

        Raises:
            OutputError: the record is invalid or differs; the message names the difference.
        """
        try:
            values = json.loads(text or b"")
            # The model's name is not compared: a later version may change its form.
            then = {name: values[name] for name in ("model_sha256", "preprocess", "sources_sha256")}
            model = str(values["model"])
        except (ValueError, KeyError, TypeError):
            raise OutputError(
                f"{record} does not describe the run that wrote {rows}: "
                "delete the rows to begin again without --resume"
            ) from None
        now = dataclasses.asdict(self)
        if then["preprocess"] != now["preprocess"]:
            changed = "with other preprocessing: use the model that made them"
        elif then["model_sha256"] != now["model_sha256"]:
            changed = (
                f"by the model {model}, not by {self.model}: give that model with --model, or if "
                "it is the embedded one, the --device of that run"
            )
        elif sources and then["sources_sha256"] != now["sources_sha256"]:
            changed = (
                "from other SOURCEs or in another folder: give the same SOURCEs in the same folder"
            )
        else:
            return
        raise OutputError(
            f"the rows in {rows} were made {changed}, or delete the rows to begin again"
        )

    def require_same_file(self, record: Path, rows: Path) -> None:
        """Check that a file of `save` equals this provenance; see `require_same`."""
        try:
            text = record.read_bytes()
        except OSError:
            text = None
        self.require_same(text, record, rows)

"""What a file of rows was made by: a run may continue another only if nothing of it has changed."""

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
class Origin:
    """Model, preprocessing and inputs of a run.

    Attributes:
        model: the model's name, for people.
        model_sha256: of its file and card.
        preprocess: the card's `PreprocessSpec`, as a mapping, and how faces are found.
        sources_sha256: of the words that name the inputs, and of the folder they are relative to.
            A digest, because addresses may hold passwords.
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
        """The origin of a run.

        Args:
            model: the file.
            card: of the model.
            sources: as on the command line.
            faces: the detector's settings; None without one.
        """
        with model.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        # An engine's card, and with it the threshold, stands in another file.
        digest.update(card.to_json().encode())
        words = json.dumps([os.getcwd(), *sources]).encode()
        return cls(
            model=f"{card.name} ({card.precision})",
            model_sha256=digest.hexdigest(),
            preprocess=dataclasses.asdict(card.preprocess) | {"faces": faces and dict(faces)},
            sources_sha256=hashlib.sha256(words).hexdigest(),
        )

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_atomic(path, text.encode(), temporary=path.with_name(path.name + ".draft"))

    def require_same(
        self, text: bytes | None, record: object, rows: object, sources: bool = True
    ) -> None:
        """Compare with what `save` wrote.

        Args:
            text: of the record; None if it cannot be read.
            record: where it is, and
            rows: what it is about, for messages.
            sources: these must be the same, too.

        Raises:
            OutputError: it differs, or says nothing; the message says in what.
        """
        try:
            values = json.loads(text or b"")
            # Only what decides is compared: a name may be put better in a later version.
            then = {name: values[name] for name in ("model_sha256", "preprocess", "sources_sha256")}
            model = str(values["model"])
        except (ValueError, KeyError, TypeError):
            raise OutputError(
                f"{record} does not say what {rows} was made by: "
                "delete the rows to begin again without --resume"
            ) from None
        now = dataclasses.asdict(self)
        if then["preprocess"] != now["preprocess"]:
            changed = "with other preprocessing"
        elif then["model_sha256"] != now["model_sha256"]:
            changed = f"by the model {model}, not by this {self.model}: give that one with --model"
        elif sources and then["sources_sha256"] != now["sources_sha256"]:
            changed = "of other SOURCEs or in another folder: give the same, written the same way"
        else:
            return
        raise OutputError(f"the rows in {rows} were made {changed}, or delete them to begin again")

    def require_same_file(self, record: Path, rows: Path) -> None:
        """Compare with a file that `save` wrote; see `require_same`."""
        try:
            text = record.read_bytes()
        except OSError:
            text = None
        self.require_same(text, record, rows)

"""The robustness table of a model card."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from ffd_runtime import __version__
from ffd_runtime.core.atomic_file import atomic_path
from ffd_runtime.core.errors import OutputError, os_errors_as
from ffd_runtime.core.text import printable

from ..intervals import CONFIDENCE
from ..robustness import Cell
from .page_tables import ROBUSTNESS_METRICS, robustness_by_group_tables
from .study import Study, manifest_of, note_strictness, percent, span

BEGIN = "<!-- robustness -->"
END = "<!-- /robustness -->"


def require_place(path: Path) -> str:
    """Read a card, and check that it has a place for the table.

    Raises:
        OutputError: the file cannot be read, or does not have exactly one pair of marks.
    """
    try:
        # read_text would convert line ends.
        text = path.read_bytes().decode()
    except OSError as error:
        raise OutputError(f"--card {path}: {error.strerror}") from None
    except ValueError:
        raise OutputError(f"--card {path} is not UTF-8 text: save it as UTF-8") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise OutputError(
            f"--card {path}: add the lines {BEGIN} and {END}, once each, around the place for the "
            "table"
        )
    return text


def put_table(path: Path, study: Study) -> None:
    """Replace the text between the marks. Links are followed, and the file mode is kept.

    Raises:
        OutputError: the marks are missing, or the file cannot be written.
    """
    text = require_place(path)
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    newline = "\r\n" if "\r\n" in text else "\n"
    table = to_markdown(study).replace("\n", newline)
    content = f"{before}{BEGIN}{newline}{table}{newline}{END}{after}"
    target = Path(os.path.realpath(path))
    failure = os_errors_as(OutputError, f"cannot write {path}")
    with failure, atomic_path(target, sync=False) as draft:
        draft.write_bytes(content.encode())
        shutil.copymode(target, draft)


def to_markdown(study: Study) -> str:
    """Return the robustness of all images and of each source as tables, with their origin."""
    subject = study.subject
    names = {**ROBUSTNESS_METRICS, "tpr_at_1_fpr": "found at 1 % false alarms"}
    parts = [
        f"{_text(subject.evaluation.card.name)}, {subject.cells[0].images} images, by "
        f"`ffd-eval --robustness`; in brackets {100 * CONFIDENCE:.0f} % intervals.",
        _format_table(
            list(names.values()), [(cell.label, _metrics(cell)) for cell in subject.cells]
        ),
    ]
    for table in robustness_by_group_tables(subject.cells):
        rows = [(name, [entry.text for entry in row]) for name, row in table.rows]
        title = f"{table.head[0].capitalize()} (images):"
        parts += [title, _format_table(table.head[1:], rows)]
    note = note_strictness(subject)
    return "\n\n".join([*parts, *([note] if note else []), _origin(study)])


def _origin(study: Study) -> str:
    """Describe data, model and command, without paths of this machine."""
    data, subject = study.data, study.subject
    folder = data.root.resolve().name
    file = Path(subject.file)
    model = file.name if file.is_absolute() else subject.file
    count, size = len(data.samples), f"{len(data.samples):,} images"
    options = ["--split", study.split] if study.split else []
    if count < study.available:
        size += f" drawn from {study.available:,}"
        options += ["--sample", str(count)]
    splits = ", ".join(sorted({sample.split for sample in data.samples if sample.split}))
    command = printable(shlex.join(["ffd-eval", model, folder, *options, "--robustness"]))
    # Safe within a code span, and different from the marks.
    command = re.sub(r"[`<>|]", "?", command)
    manifest = manifest_of(data)
    return (
        f"Measured on {_text(folder)} ({f'split {splits}' if splits else 'all of it'}, {size}, "
        f"{f'manifest sha256 `{manifest}`' if manifest else 'no manifest.csv'}), model sha256 "
        f"`{subject.sha256}`, by ffd {__version__}: `{command}`."
    )


def _metrics(cell: Cell) -> list[str]:
    low, high = cell.intervals["roc_auc"]
    return [
        f"{cell.roc_auc:.3f} ({low:.3f} to {high:.3f})",
        f"{percent(cell.accuracy)} ({span(cell.intervals['accuracy'])})",
        f"{percent(cell.tpr_at_1_fpr)} ({span(cell.intervals['tpr_at_1_fpr'])})",
        percent(cell.false_alarms),
        percent(cell.misses),
    ]


def _format_table(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Format a table with one row for each perturbation."""
    head = "".join(f" {_text(name)} |" for name in names)
    lines = (f"| {_text(label)} | {' | '.join(cells)} |" for label, cells in rows)
    return "\n".join([f"| image |{head}", "|---" * len(names) + "|---|", *lines])


def _text(text: str) -> str:
    """Escape a text for a table cell."""
    shown = printable(text)
    for character in "\\`*_[]|~":
        shown = shown.replace(character, "\\" + character)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

"""The results of ffd-eval as JSON, HTML page and model card table."""

from __future__ import annotations

from .evaluation_page import require_writable, write_page
from .markdown import put_table, require_place
from .study import Study, Subject, note_strictness, summarise, to_document

__all__ = [
    "Study",
    "Subject",
    "note_strictness",
    "put_table",
    "require_place",
    "require_writable",
    "summarise",
    "to_document",
    "write_page",
]

"""What ffd-eval found, as JSON, as a page and as a model card's table."""

from __future__ import annotations

from .markdown import put_table, require_place
from .page import require_writable, write_page
from .study import Study, Subject, sha256_of, summarise, to_document

__all__ = [
    "Study",
    "Subject",
    "put_table",
    "require_place",
    "require_writable",
    "sha256_of",
    "summarise",
    "to_document",
    "write_page",
]

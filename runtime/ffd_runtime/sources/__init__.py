"""Sources: what the words on a command line stand for."""

from __future__ import annotations

from .files import Item, find_files
from .policy import FetchPolicy

__all__ = ["FetchPolicy", "Item", "find_files"]

"""Sources: what the words on a command line stand for."""

from __future__ import annotations

from .files import Item, find_files

__all__ = ["Item", "find_files"]

"""Sources: what the words on a command line stand for."""

from __future__ import annotations

from .fetch_policy import FetchPolicy
from .files import Item, find_files

__all__ = ["FetchPolicy", "Item", "find_files"]

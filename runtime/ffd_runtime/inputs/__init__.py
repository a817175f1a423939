"""Inputs: find the images that the sources on a command line name."""

from __future__ import annotations

from .fetch_policy import FetchPolicy
from .files import find_files
from .items import Item

__all__ = ["FetchPolicy", "Item", "find_files"]

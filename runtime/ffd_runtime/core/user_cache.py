"""The cache folder of the current user."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Return ffd's folder in the cache folder of this system.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "ffd"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ffd"
    # The XDG base directory specification says to ignore relative paths.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "ffd"

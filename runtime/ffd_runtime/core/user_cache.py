"""The folder of this user for files that can be made or fetched again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where this system's programs keep what they can make again, and in it ffd's own folder.

    Raises:
        RuntimeError: the user has no home folder.
    """
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "ffd"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ffd"
    # The XDG base directory specification has relative paths ignored.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "ffd"

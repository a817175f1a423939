"""The cache folder of the current user."""

from __future__ import annotations

import os
import sys
from pathlib import Path


# platformdirs would be a dependency for these few lines. It also accepts a relative XDG_CACHE_HOME,
# which the specification says to ignore, and returns a path without a home folder.
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
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "ffd"

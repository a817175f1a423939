"""Build the pip command that installs an extra from where ffd itself was installed."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path

from .redact import redact

DISTRIBUTION = "ffd-edge"


@cache
def install_hint(extra: str = "", reinstall: bool = False) -> str:
    """Return the pip command that installs ffd with an extra; empty for ffd without extras.

    Installers record a clone, a file or a repository in `direct_url.json` (PEP 610). They record
    nothing for an installation from a package index.

    Example:
        >>> install_hint("web")  # doctest: +SKIP
        "pip install -e '/home/me/ffd[web]'"
    """
    command = "pip install --force-reinstall" if reinstall else "pip install"
    return f"{command} {_find_requirement(f'[{extra}]' if extra else '')}"


def _find_requirement(extra: str) -> str:
    # Their imports take a tenth of the time to the first result.
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        text = distribution(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        return _of_folder(Path(__file__).parents[3], True, extra)
    record = json.loads(text) if text else {}
    url = record.get("url", "")
    if not url:
        return shlex.quote(DISTRIBUTION + extra)
    if vcs := record.get("vcs_info"):
        return shlex.quote(f"{DISTRIBUTION}{extra} @ {vcs['vcs']}+{url}@{vcs['commit_id']}")
    if not url.startswith("file:"):
        return shlex.quote(f"{DISTRIBUTION}{extra} @ {redact(url)}")
    path = Path(url2pathname(urlsplit(url).path))
    if "dir_info" in record:
        return _of_folder(path, record["dir_info"].get("editable", False), extra)
    return shlex.quote(f"{path if path.is_file() else path.name}{extra}")


def _of_folder(clone: Path, editable: bool, extra: str) -> str:
    if not (clone / "pyproject.toml").is_file():
        return f"{shlex.quote('.' + extra)} in a clone of ffd"
    return f"{'-e ' if editable else ''}{shlex.quote(str(clone) + extra)}"

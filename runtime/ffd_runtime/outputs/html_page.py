"""HTML pages from jinja2 templates: one file each, without scripts or external references."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..core.errors import OutputError
from ..core.text import printable
from ..image.decode import Image
from .target import require_file_name

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

PAGE_SUFFIXES = (".html", ".htm")
TEMPLATES = Path(__file__).parent / "templates"
# Longer texts are shortened in the middle.
MAX_TEXT_CHARACTERS = 600


def render_page(template: Path, **values: object) -> str:
    """Render a template that extends `base.html`; it may import other templates of its folder.

    All texts are escaped, made printable and shortened; `Markup` is inserted unchanged.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _environment(template.parent).get_template(template.name)
    return page.render(style=trusted(style), style_sha256=digest, **values)


def trusted(html: str) -> Markup:
    """Mark a text as HTML that needs no escaping. Never use it for texts from outside."""
    from markupsafe import Markup

    return Markup(html)  # noqa: S704 (documented)


def encode_image(suffix: str, image: Image, options: Sequence[int] = ()) -> bytes:
    """Encode uint8 [H, W, C], BGR or BGRA, in the format of a suffix such as `.jpg`."""
    done, data = cv2.imencode(suffix, image, options)
    assert done, suffix
    return np.asarray(data, np.uint8).tobytes()


def data_uri(kind: str, data: bytes) -> Markup:
    """Return an image file as the value of a `src` attribute; `kind` follows `image/`."""
    return trusted(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def require_page_path(path: Path, option: str) -> None:
    """Raise an OutputError, before the work, if a page cannot be written."""
    require_file_name(option, path, PAGE_SUFFIXES)
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"cannot write {path}: no such folder, or no permission to write there")


@cache
def _environment(folder: Path) -> Environment:
    # The import takes longer than the rest of a small run.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        finalize=_prepare_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _prepare_text(value: object) -> object:
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = printable(value)
    if len(text) > MAX_TEXT_CHARACTERS:
        half = MAX_TEXT_CHARACTERS // 2
        text = f"{text[:half]} … {text[-half:]}"
    return text

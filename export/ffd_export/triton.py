"""A model repository for NVIDIA's Triton Inference Server.

Triton's documentation describes the layout ("Model Repository") and the fields of `config.pbtxt`
("Model Configuration", `model_config.proto`). This module writes the file from a template, so that
an export does not need Triton's schema.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ffd_runtime.core.errors import OutputError
from ffd_runtime.core.text import printable
from ffd_runtime.model.backends.onnxruntime import cuda_options
from ffd_runtime.model.card import CARD_KEY, ModelCard

# Triton accepts any folder name, but the name is part of the addresses that clients request.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
VERSION = "1"
LABELS = "labels.txt"
# Default file name of a backend's models, in the folder of a version.
MODEL_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}


def require_servable(folder: Path, name: str) -> None:
    """Check that Triton would serve a model that is written to a repository.

    Args:
        folder: of the repository.
        name: of the model.

    Raises:
        OutputError: the name is invalid for Triton, or the repository has a later version of the
            model, which Triton would serve instead.
    """
    if not NAME.fullmatch(name):
        raise OutputError(
            f"--triton: {name!r} is an invalid name for a model in Triton: use letters, digits, "
            "'_', '-' and '.', and start with a letter, a digit or '_'"
        )
    versions = [int(path.name) for path in (folder / name).glob("*") if path.name.isdecimal()]
    if versions and max(versions) > int(VERSION):
        raise OutputError(
            f"--triton {folder}: {folder / name} has version {max(versions)} already, and "
            f"{max(versions)} would be served instead of this export: remove it first"
        )


def triton_files(
    folder: Path,
    name: str,
    content: bytes,
    card: ModelCard,
    *,
    platform: str,
    heatmap: tuple[int, int],
    max_batch: int,
) -> dict[Path, bytes]:
    """Return the files of one model in a model repository: content by path.

    Args:
        folder: of the repository; all files are in `folder / name`.
        name: of the model in requests.
        content: an ONNX or a TensorRT engine.
        card: of the model. Clients read it from the parameter `ffd.card`.
        platform: `onnxruntime` for an ONNX, `tensorrt` for an engine.
        heatmap: height and width of the `heatmap` output, in cells.
        max_batch: largest batch, at least 1; for an engine, at most its profile's.
    """
    values = {
        "name": name,
        "card": card,
        "platform": platform,
        "heatmap": heatmap,
        "max_batch": max_batch,
    }
    templates = _environment()
    home = folder / name
    return {
        home / "config.pbtxt": templates.get_template("config.pbtxt").render(values).encode(),
        home / LABELS: "".join(f"{label}\n" for label in card.classes).encode(),
        home / "README.md": templates.get_template("model_readme.md").render(values).encode(),
        home / VERSION / MODEL_FILES[platform]: content,
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=False,  # noqa: S701 (neither template is HTML)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quote": quote, "code_span": _code_span}
    environment.globals |= {"labels": LABELS, "key": CARD_KEY, "cuda_options": cuda_options}
    return environment


def quote(text: str) -> str:
    r"""Write a string literal of protobuf's text format, in ASCII.

    Raises:
        ValueError: the text has a lone surrogate.

    Example:
        >>> print(quote('say "é1"'))
        "say \"\303\2511\""
    """
    from google.protobuf.text_encoding import CEscape

    return f'"{CEscape(text.encode(), as_utf8=False)}"'


def _code_span(text: str) -> str:
    """Format any text as a code span of Markdown (CommonMark 6.1: its fence is the longest)."""
    shown = printable(text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {shown} {fence}" if longest else f"{fence}{shown}{fence}"

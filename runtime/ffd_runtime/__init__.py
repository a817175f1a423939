"""Tell faces made by StyleGAN-family generators from photographs.

    >>> from ffd_runtime import Classifier
    >>> classifier = Classifier.open()            # the embedded model, best device
    >>> classifier.classify("portrait.jpg").label  # doctest: +SKIP
    'groundtruth'

Importing this package loads nothing heavy: OpenCV and onnxruntime come with the first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.classifier import Classifier
    from .core.errors import FfdError, InputError
    from .core.results import Result
    from .model.card import ModelCard, PreprocessSpec

__version__ = "0.1.0"

# onnxruntime's own packages (1.31's, for Linux) report to their maker by default and leave an
# identifier in the home folder; only this, before they are imported, keeps them from it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Classifier",
    "FfdError",
    "InputError",
    "ModelCard",
    "PreprocessSpec",
    "Result",
    "__version__",
]

_HOMES = {
    "Classifier": "core.classifier",
    "FfdError": "core.errors",
    "InputError": "core.errors",
    "ModelCard": "model.card",
    "PreprocessSpec": "model.card",
    "Result": "core.results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

"""Classify faces as generated or photograph.

    >>> from ffd_runtime import Classifier
    >>> classifier = Classifier.open()            # the embedded model, best device
    >>> classifier.classify("portrait.jpg").label  # doctest: +SKIP
    'groundtruth'

Importing this package loads no other: OpenCV and onnxruntime are imported with the first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.classifier import Classifier
    from .core.errors import FfdError, InputError
    from .core.results import Result, Track
    from .image.decode import decode, read_file
    from .image.draw import draw_verdict, overlay_heatmap
    from .image.face_model import find_face_model
    from .image.faces import FaceDetector
    from .image.preprocess import preprocess
    from .model.card import ModelCard, PreprocessSpec
    from .outputs import open_file_sink
    from .video.feed import Feed
    from .video.frame_classifier import FrameClassifier
    from .video.stream_address import to_streams
    from .video.stream_pipeline import StreamPipeline
    from .video.stream_policy import StreamPolicy

__version__ = "0.1.0"

# onnxruntime's own packages (1.31's, for Linux) report to their maker by default and leave an
# identifier in the home folder; only this, before they are imported, keeps them from it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Classifier",
    "FaceDetector",
    "Feed",
    "FfdError",
    "FrameClassifier",
    "InputError",
    "ModelCard",
    "PreprocessSpec",
    "Result",
    "StreamPipeline",
    "StreamPolicy",
    "Track",
    "__version__",
    "decode",
    "draw_verdict",
    "find_face_model",
    "open_file_sink",
    "overlay_heatmap",
    "preprocess",
    "read_file",
    "to_streams",
]

_HOMES = {
    "Classifier": "core.classifier",
    "FaceDetector": "image.faces",
    "Feed": "video.feed",
    "FfdError": "core.errors",
    "FrameClassifier": "video.frame_classifier",
    "InputError": "core.errors",
    "ModelCard": "model.card",
    "PreprocessSpec": "model.card",
    "Result": "core.results",
    "StreamPipeline": "video.stream_pipeline",
    "StreamPolicy": "video.stream_policy",
    "Track": "core.results",
    "decode": "image.decode",
    "draw_verdict": "image.draw",
    "find_face_model": "image.face_model",
    "open_file_sink": "outputs",
    "overlay_heatmap": "image.draw",
    "preprocess": "image.preprocess",
    "read_file": "image.decode",
    "to_streams": "video.stream_address",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

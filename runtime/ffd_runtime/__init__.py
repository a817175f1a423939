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
    from .core.classifier import Classifier as Classifier
    from .core.errors import BackendError as BackendError
    from .core.errors import DeviceError as DeviceError
    from .core.errors import FfdError as FfdError
    from .core.errors import InputError as InputError
    from .core.errors import ModelError as ModelError
    from .core.errors import OutputError as OutputError
    from .core.results import Result as Result
    from .core.results import Track as Track
    from .image.decode import decode as decode
    from .image.decode import read_file as read_file
    from .image.draw import draw_verdict as draw_verdict
    from .image.draw import overlay_heatmap as overlay_heatmap
    from .image.face_model import find_face_model as find_face_model
    from .image.faces import FaceDetector as FaceDetector
    from .image.preprocess import preprocess as preprocess
    from .model.card import ModelCard as ModelCard
    from .model.card import PreprocessSpec as PreprocessSpec
    from .outputs import open_file_sink as open_file_sink
    from .video.feed import Feed as Feed
    from .video.frame_classifier import FrameClassifier as FrameClassifier
    from .video.stream_address import to_streams as to_streams
    from .video.stream_pipeline import StreamPipeline as StreamPipeline
    from .video.stream_policy import StreamPolicy as StreamPolicy

__version__ = "0.1.0"

# The packages of onnxruntime (such as 1.31 for Linux) send telemetry by default, and store an
# identifier in the home folder. Only this variable, set before the import, prevents it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "BackendError": "core.errors",
    "Classifier": "core.classifier",
    "DeviceError": "core.errors",
    "FaceDetector": "image.faces",
    "Feed": "video.feed",
    "FfdError": "core.errors",
    "FrameClassifier": "video.frame_classifier",
    "InputError": "core.errors",
    "ModelCard": "model.card",
    "ModelError": "core.errors",
    "OutputError": "core.errors",
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


__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

"""The Python API: open a model once, and classify arrays, files and streams."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from ..image.decode import MAX_PIXELS, Image, decode_with_header, read_file, to_bgr
from ..image.preprocess import preprocess
from ..inputs import Item
from ..inputs.files import Search
from ..model.backends import Backend, Outputs, open_backend
from ..model.card import ModelCard
from ..model.within_memory import WithinMemory
from .cores import count_cores
from .errors import InputError
from .pipeline import ANIMATION, Prepared, classify_items, infer_prepared, prepare_faces
from .results import Result

if TYPE_CHECKING:
    from ..image.faces import FaceDetector
    from ..video.stream_policy import StreamPolicy


class Classifier:
    """Classifies images as generated or photograph. Several threads may call its methods.

    Args:
        backend: a loaded model; `Classifier.open` loads one, and describes the other arguments.

    Example:
        >>> from ffd_runtime import Classifier
        >>> with Classifier.open() as classifier:
        ...     classifier.card.classes
        ('generated', 'groundtruth')
    """

    def __init__(
        self,
        backend: Backend,
        *,
        batch: int = 16,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        detector: FaceDetector | None = None,
    ) -> None:
        limits = {"batch": batch, "workers": workers, "max_pixels": max_pixels}
        for name, value in limits.items():
            whole = isinstance(value, int | np.integer) and value >= 1
            if not (whole or (name == "workers" and value is None)):
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not (detector is None or hasattr(detector, "detect")):
            raise TypeError(f"detector must be a FaceDetector, not {detector!r}")
        # Shared by all methods, which keeps the batch size that fits the device.
        self.backend: Backend = WithinMemory.of(backend)
        self.batch = batch
        self.workers = workers or count_cores()
        self.max_pixels = max_pixels
        self.detector = detector

    @classmethod
    def open(
        cls,
        model: str | Path | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        batch: int = 16,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        detector: FaceDetector | Literal["auto"] | None = None,
    ) -> Self:
        """Load a model.

        Args:
            model: an ONNX file or engine of `ffd-export`; None for the embedded model.
            backend: `auto`, `onnxruntime`, `openvino` or `tensorrt`.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            batch: images in a batch.
            workers: threads that decode and preprocess; None for one for each core.
            max_pixels: limit of width times height; larger images fail.
            detector: finds the faces to classify; `auto` for the YuNet model, which is downloaded
                once; None to classify whole images.

        Raises:
            ModelError: the file is absent or was not written by ffd-export.
            BackendError: the requested backend or device does not start.
        """
        if detector == "auto":
            from ..image.face_model import find_face_model
            from ..image.faces import FaceDetector

            detector = FaceDetector(find_face_model())
        opened = open_backend(model, backend, device)
        return cls(opened, batch=batch, workers=workers, max_pixels=max_pixels, detector=detector)

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.backend.card

    @property
    def description(self) -> str:
        """Model, backend and device in use, on one line."""
        return f"{self.card.name} ({self.card.architecture}, {self.card.precision}), " + (
            self.backend.description
        )

    def classify(self, image: str | os.PathLike[str] | npt.NDArray[Any]) -> Result:
        """Classify one whole image; the detector is not used.

        Args:
            image: a path, or an array of OpenCV: uint8 [height, width, 3], BGR.

        Returns:
            The verdict; `source` is the path, or `<array>`.

        Raises:
            InputError: the file cannot be read or decoded.
            ValueError: the array is not an image.
        """
        spec = self.card.preprocess
        source, pixels, reason = self._load(image, spec.decode_side)
        prepared = Prepared(source, preprocess(pixels, spec), reason=reason)
        result = next(infer_prepared([prepared], self.backend))
        if result.error:
            raise InputError(result.error.code, result.error.message)
        return result

    async def classify_async(self, image: str | os.PathLike[str] | npt.NDArray[Any]) -> Result:
        """Classify one whole image in a thread, as `classify` does."""
        import asyncio

        return await asyncio.to_thread(self.classify, image)

    def classify_faces(self, image: str | os.PathLike[str] | npt.NDArray[Any]) -> list[Result]:
        """Classify each face that the detector finds in an image, given as for `classify`.

        Returns:
            One result per face, the largest first, at most 64; empty without a face.

        Raises:
            InputError: the file cannot be read or decoded.
            ValueError: the array is not an image, or the classifier has no detector.
        """
        if self.detector is None:
            raise ValueError("no detector: use Classifier.open(detector='auto')")
        source, pixels, reason = self._load(image, at_least=0)
        whole = Prepared(source, pixels, reason=reason)
        views = prepare_faces(whole, self.detector.detect(pixels), self.card.preprocess)
        return list(infer_prepared(views, self.backend))

    def classify_many(
        self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
    ) -> Iterator[Result]:
        """Classify many files lazily, in order: with a detector each face, else whole images.

        Args:
            paths: a file, folder or glob, or several; another thread iterates over them. A file
                that cannot be read gives an error row.
        """
        if isinstance(paths, str | os.PathLike):
            paths = [paths]
        # Not `find_files`, for which - is standard input.
        find = Search().find
        return self.classify_items(item for path in paths for item in find(os.fsdecode(path)))

    def stream(self, *sources: str | int, policy: StreamPolicy | None = None) -> Iterator[Result]:
        """Classify streams: with a detector each face, else whole frames.

        Args:
            sources: numbers of cameras, addresses such as `rtsp://...`, and video files.
            policy: how to read the streams; None for the defaults.

        Yields:
            One row per face or frame; a row with an error each time a stream breaks. A live stream
            is reconnected without end: leave the loop, or close the generator, to stop.
        """
        from ..video.feed import Feed
        from ..video.frame_classifier import FrameClassifier
        from ..video.stream_address import to_streams
        from ..video.stream_pipeline import StreamPipeline

        frame_classifier = FrameClassifier(self.backend, self.detector)
        with Feed(to_streams([str(source) for source in sources]), policy) as feed:
            yield from StreamPipeline(feed, frame_classifier).results(self.workers)

    def classify_files(self, *sources: str | os.PathLike[str]) -> Iterator[Result]:
        """Classify files, folders and globs as `classify_many` does."""
        return self.classify_many(sources)

    def classify_items(
        self, items: Iterable[Item], *, keep_encoded: bool = False
    ) -> Generator[Result, None, None]:
        """Yield a row for every item, or for every face in it, in order.

        Closing the generator ends its threads. With `keep_encoded`, rows carry the bytes of their
        files.
        """
        return classify_items(
            items,
            self.backend,
            batch=self.batch,
            workers=self.workers,
            max_pixels=self.max_pixels,
            keep_encoded=keep_encoded,
            detector=self.detector,
        )

    def _load(
        self, image: str | os.PathLike[str] | npt.NDArray[Any], at_least: int
    ) -> tuple[str, Image, str | None]:
        """Return the name of an image, its pixels, and a reason to be unsure."""
        if isinstance(image, np.ndarray):
            return "<array>", to_bgr(image), None
        source = os.fsdecode(image)
        pixels, header = decode_with_header(read_file(source), self.max_pixels, at_least)
        return source, pixels, ANIMATION if header.animated else None

    def predict(self, images: npt.NDArray[np.uint8]) -> Outputs:
        """Run only the network on preprocessed images: uint8 [N, size, size, 3], RGB."""
        return self.backend.infer(images)

    def close(self) -> None:
        """Free the model."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

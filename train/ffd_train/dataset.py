"""The PyTorch data set: preprocessed and augmented images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ffd_runtime.core.errors import DataError, InputError
from ffd_runtime.image.decode import Image, decode
from ffd_runtime.image.preprocess import preprocess
from ffd_runtime.model.card import PreprocessSpec

from .augmentation import AugmentationPipeline
from .face_data import GENERATED, PHOTOGRAPH, FaceData, Sample


class UnreadableSampleError(DataError):
    """An image was readable when training began and is not any more.

    PyTorch rebuilds a worker's error from its text with the traceback around it; the message stays
    one line.

    Args:
        text: `PATH: reason`, or a worker's text that contains it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().rpartition(f"{type(self).__name__}: ")[2])


@dataclass(frozen=True)
class TrainingView:
    """How training images differ from the images that the runtime passes to the network.

    Attributes:
        pipeline: augmentation pipeline; None for no augmentation.
        crop: side of a random crop of the preprocessed image, in pixels; None for no crop.
        sizes: range that the preprocessed image's side is drawn from, in pixels, both ends
            included and at least `crop`; None for the spec's side.
        seed: seed of the run.
        epoch: epoch, counted over all stages; with the seed and the draw it determines every
            random choice.
    """

    pipeline: AugmentationPipeline | None = None
    crop: int | None = None
    sizes: tuple[int, int] | None = None
    seed: int = 0
    epoch: int = 0


@dataclass(eq=False)
class FaceDataset(Dataset[tuple[Tensor, int]]):
    """Samples as the network takes them.

    An item is a uint8 tensor [size, size, 3], RGB, and its label. Without a view the tensor is
    equal, byte for byte, to what the runtime feeds. The label is the sample's, or generated if the
    pipeline turns a photograph into a pseudo-fake. The key is the sample's index, or the position
    of the draw and the index where training draws a sample more than once.

    Args:
        data: a scanned data set.
        samples: samples of it.
        spec: preprocessing.
        view: augmentation and crops for training.
    """

    data: FaceData
    samples: Sequence[Sample]
    spec: PreprocessSpec
    view: TrainingView = TrainingView()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        draw, index = key if isinstance(key, tuple) else (key, key)
        view, spec = self.view, self.spec
        rng = np.random.default_rng((view.seed, view.epoch, draw))
        image, label = self._augment(self.samples[index], rng)
        if view.sizes:
            spec = replace(spec, size=int(rng.integers(view.sizes[0], view.sizes[1] + 1)))
        pixels = preprocess(image, spec)
        if view.crop:
            top, left = rng.integers(0, spec.size - view.crop + 1, size=2)
            pixels = pixels[top : top + view.crop, left : left + view.crop]
        return torch.from_numpy(np.ascontiguousarray(pixels)), label

    def _augment(self, sample: Sample, rng: np.random.Generator) -> tuple[Image, int]:
        pipeline, label = self.view.pipeline, sample.label
        # Augmentation and resizing must see the same pixels whatever the file format.
        is_training = pipeline or self.view.sizes
        at_least = 0 if is_training else self.spec.decode_side
        try:
            image = decode(self.data.read(sample), at_least=at_least)
        except InputError as error:
            raise UnreadableSampleError(
                f"{self.data.root / sample.path}: {error.message}"
            ) from None
        if pipeline:
            if label == PHOTOGRAPH and (fake := pipeline.fake(image, rng)) is not None:
                image, label = fake, GENERATED
            image = pipeline(image, rng)
        return image, label

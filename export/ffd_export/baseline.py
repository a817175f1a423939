"""The results of an FP32 model on images, which other models are compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.core.results import Result
from ffd_runtime.model.backends import Backend, open_backend
from ffd_runtime.model.card import ModelCard

from .fp16_rounding import emulate_fp16
from .onnx_file import to_bytes
from .parity import Parity, classify, compare
from .reporter import Advance
from .sample_images import SampleImages

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Baseline:
    """An FP32 model's card, and its result for each of some images."""

    card: ModelCard
    images: SampleImages
    results: list[Result]

    def compare(self, model: ModelProto, precision: str = "fp32") -> Parity:
        """Classify the images on the CPU with a model in memory, and compare the results."""
        card = self.card.replace(precision=precision)
        return self.compare_results(classify_candidate(model, card, self.images))

    def compare_results(self, results: Sequence[Result]) -> Parity:
        """Compare the results of another model."""
        return compare(self.results, results, self.images, self.card)

    def select(self, indices: Sequence[int]) -> Baseline:
        """Return the baseline of the images of some indices."""
        results = [self.results[i] for i in indices]
        return Baseline(self.card, self.images.select(indices), results)

    def measure_sensitivity(
        self, layers: Iterable[str], convert: Callable[[str], ModelProto], advance: Advance
    ) -> dict[str, float]:
        """Measure the mean |Δp| of each layer if `convert` converts only this layer.

        Returns:
            Mean |Δp| by layer, the largest first.
        """
        found = {}
        for layer in layers:
            found[layer] = self.compare(convert(layer)).mean
            advance(1)
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))


@contextmanager
def open_candidate(content: bytes) -> Iterator[Backend]:
    """Open an ONNX in memory with the runtime's backend, on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        path.write_bytes(content)
        with closing(open_backend(path, "onnxruntime", "cpu")) as backend:
            yield backend


def classify_candidate(model: ModelProto, card: ModelCard, images: SampleImages) -> list[Result]:
    """Classify images on the CPU with a model in memory, with the rounding of a GPU."""
    with open_candidate(to_bytes(emulate_fp16(model), card)) as backend:
        return classify(backend, images)

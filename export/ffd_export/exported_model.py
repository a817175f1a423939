"""The ONNX that an export produces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ffd_runtime.model.card import Metric, ModelCard

from .export_options import ExportOptions
from .layers import LayerTypes, layer_types
from .onnx_file import to_bytes
from .parity import Parity
from .source_model import SourceModel

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class ExportedModel:
    """A converted model, or an ONNX that is used unchanged.

    Attributes:
        options: how it was converted; None if it is the source, unchanged.
        facts: how it was converted, for the card.
        parity: how far its results are from the source's; None if it is not verified.
    """

    source: SourceModel
    options: ExportOptions | None
    model: ModelProto
    card: ModelCard
    layers: LayerTypes
    facts: Mapping[str, Metric]
    parity: Parity | None = None

    @classmethod
    def unchanged(cls, source: SourceModel) -> ExportedModel:
        """Return an ONNX that only an engine or a repository is made from."""
        return cls(source, None, source.model, source.card, layer_types(source.model), {})

    @property
    def path(self) -> Path:
        """The ONNX file."""
        path = self.source.path
        if self.options is None:
            return path
        return (self.options.output or path.parent) / (path.stem + self.options.suffix)

    @cached_property
    def content(self) -> bytes:
        """The bytes of the ONNX file."""
        if self.options is None and self.source.content is not None:
            return self.source.content
        return to_bytes(self.model, self.card)

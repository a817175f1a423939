"""The model card: what a run needs to know about a model, validated.

The card is stored in the file that it describes: in the metadata of a `.safetensors` checkpoint and
in `metadata_props["ffd.card"]` of an ONNX.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import CardError
from ..core.file_hash import is_sha256
from ..core.results import Label

SCHEMA = 1
CARD_KEY = "ffd.card"
CLASSES = ("generated", "groundtruth")
PRECISIONS = ("fp32", "fp16", "int8")

Metric = float | int | str | None


@dataclass(frozen=True)
class PreprocessSpec:
    """How a decoded image becomes the network's input; see `ffd_runtime.image.preprocess`.

    Attributes:
        size: side of the square input, in pixels.
        face_scale: factor by which the box of a face is enlarged.
        target_mean: mean of L that images are normalised to, in 8-bit LAB (0 to 255).
        target_deviation: standard deviation of L that images are normalised to, same scale.
        max_gain: limit of the contrast gain, which keeps flat images from becoming noise.
        clahe_clip: clip limit of `cv2.createCLAHE`.
        clahe_tiles: tiles in each direction of `cv2.createCLAHE`.
        reduced_decode: whether large JPEGs are decoded at a fraction of their size, with at least
            twice `size` left of the shorter side; False in cards without this field.
    """

    size: int = 299
    face_scale: float = 1.3
    target_mean: float = 128.0
    target_deviation: float = 56.0
    max_gain: float = 3.0
    clahe_clip: float = 2.0
    clahe_tiles: int = 8
    reduced_decode: bool = field(default=True, metadata={"absent": False})

    @property
    def decode_side(self) -> int:
        """Minimum of the shorter side after a reduced decode, in pixels; 0 for a full decode."""
        return 2 * self.size if self.reduced_decode else 0

    def __post_init__(self) -> None:
        _require_number("preprocess.size", self.size, 16, 4096, whole=True)
        _require_number("preprocess.face_scale", self.face_scale, 1.0, 4.0)
        _require_number("preprocess.target_mean", self.target_mean, 0.0, 255.0)
        _require_number("preprocess.target_deviation", self.target_deviation, 1.0, 128.0)
        _require_number("preprocess.max_gain", self.max_gain, 1.0, 100.0)
        _require_number("preprocess.clahe_clip", self.clahe_clip, 0.1, 100.0)
        _require_number("preprocess.clahe_tiles", self.clahe_tiles, 1, 64, whole=True)
        if not isinstance(self.reduced_decode, bool):
            raise CardError("model card: preprocess.reduced_decode must be true or false")


@dataclass(frozen=True)
class Provenance:
    """Where a model came from.

    Attributes:
        version: version of ffd that wrote the file.
        checkpoint_sha256: of the checkpoint that was exported.
        manifest_sha256: of the training manifest (path, label, split and sha256 of every image).
        weights: initial weights: `none`, `imagenet`, or the name and the sha256 of a file.
    """

    version: str
    checkpoint_sha256: str | None = None
    manifest_sha256: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        _require_text("provenance.version", self.version)
        for name in ("checkpoint_sha256", "manifest_sha256"):
            value = getattr(self, name)
            if value is not None and not is_sha256(value):
                raise CardError(f"model card: provenance.{name} must be a sha256 in hex or null")
        if self.weights is not None:
            _require_text("provenance.weights", self.weights)


@dataclass(frozen=True)
class ModelCard:
    """The contract between training, export and runtime.

    Attributes:
        name: of the model, for people.
        architecture: network, as `ffd-train --network` names it.
        preprocess: preparation of an image for the graph.
        classes: order of the graph's `probability` output; `generated` is the first.
        temperature: divisor of the logits, inside the graph.
        threshold: P(generated) from which an image is called generated if `unsure` is not allowed.
        unsure: `(low, high)`: a score in `[low, high)` is `unsure`. With a low of 0, no score is
            `groundtruth`; with a high of 1, no score is `generated`.
        precision: `fp32`, `fp16` or `int8`.
        metrics: measurements by name (`val`, `parity`, ...), each a flat mapping.
        provenance: where the model came from.
    """

    name: str
    architecture: str
    provenance: Provenance
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    classes: tuple[str, ...] = CLASSES
    temperature: float = 1.0
    threshold: float = 0.5
    unsure: tuple[float, float] = (0.5, 0.5)
    precision: str = "fp32"
    metrics: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _require_schema(self.schema)
        _require_text("name", self.name)
        _require_text("architecture", self.architecture)
        if tuple(self.classes) != CLASSES:
            raise CardError(f"model card: classes must be {list(CLASSES)}, not {self.classes!r}")
        _require_number("temperature", self.temperature, 1e-3, 1e3)
        _require_number("threshold", self.threshold, 0.0, 1.0)
        if not isinstance(self.unsure, tuple) or len(self.unsure) != 2:
            raise CardError("model card: unsure must be two numbers, [low, high]")
        _require_number("unsure[0]", self.unsure[0], 0.0, 1.0)
        _require_number("unsure[1]", self.unsure[1], 0.0, 1.0)
        if not self.unsure[0] <= self.threshold <= self.unsure[1]:
            raise CardError("model card: unsure must be low <= threshold <= high")
        if self.precision not in PRECISIONS:
            raise CardError(f"model card: precision must be one of {', '.join(PRECISIONS)}")
        _require_metrics(self.metrics)

    def verdict(self, score: float) -> Label:
        """Return the label for a score.

        Args:
            score: P(generated), 0 to 1.

        Returns:
            `generated`, `groundtruth`, or `unsure` inside the band.

        Example:
            >>> card = ModelCard("m", "resnext50_32x4d", Provenance("0"), unsure=(0.4, 0.7))
            >>> [card.verdict(score) for score in (0.1, 0.5, 0.9)]
            ['groundtruth', 'unsure', 'generated']
        """
        low, high = self.unsure
        if score >= high and high < 1:
            return "generated"
        return "groundtruth" if score < low else "unsure"

    def replace(self, **changes: Any) -> ModelCard:
        """Return a validated copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self, indent: int | None = None) -> str:
        """Return the card as JSON, with keys in the order of the fields and `schema` first."""
        document = {"schema": self.schema, **dataclasses.asdict(self)}
        return json.dumps(document, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Read and validate a card.

        Raises:
            CardError: the text is not JSON, or a field is absent, unknown or out of range.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CardError(f"model card is not valid JSON: {error}") from None
        if not isinstance(document, dict):
            raise CardError("model card is not a JSON object")
        _require_schema(document.get("schema"))
        values = _fields(cls, "", document)
        values["preprocess"] = PreprocessSpec(
            **_fields(PreprocessSpec, "preprocess.", values.get("preprocess"))
        )
        values["provenance"] = Provenance(
            **_fields(Provenance, "provenance.", values.get("provenance"))
        )
        for name in ("classes", "unsure"):
            if not isinstance(values[name], list):
                raise CardError(f"model card: {name} must be a list")
            values[name] = tuple(values[name])
        return cls(**values)


def _fields(owner: type[Any], prefix: str, document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise CardError(f"model card: {prefix.rstrip('.')} must be an object")
    names = {item.name for item in dataclasses.fields(owner)}
    for name in sorted(document.keys() - names):
        raise CardError(f"model card: unknown field {prefix}{name}")
    for item in dataclasses.fields(owner):
        if "absent" in item.metadata:
            document = {item.name: item.metadata["absent"], **document}
    for name in sorted(names - document.keys()):
        raise CardError(f"model card: field {prefix}{name} is missing")
    return dict(document)


def _require_schema(schema: object) -> None:
    if schema != SCHEMA or isinstance(schema, bool):
        raise CardError(
            f"model card has schema {schema!r}, but this version of ffd reads {SCHEMA}: "
            "export the model again, or install the version of ffd that wrote it"
        )


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise CardError(f"model card: {name} must be a non-empty string, not {value!r}")


def _require_number(name: str, value: object, low: float, high: float, whole: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not number or (whole and not isinstance(value, int)):
        kind = "whole number" if whole else "number"
        raise CardError(f"model card: {name} must be a {kind} from {low:g} to {high:g}")


def _require_metrics(metrics: object) -> None:
    if not isinstance(metrics, Mapping):
        raise CardError("model card: metrics must be an object of objects")
    for name, group in metrics.items():
        if not isinstance(name, str) or not isinstance(group, Mapping):
            raise CardError(f"model card: metrics.{name} must be an object")
        for key, value in group.items():
            finite = not isinstance(value, float) or math.isfinite(value)
            if not isinstance(value, int | float | str | None) or not finite:
                raise CardError(f"model card: metrics.{name}.{key} must be a number or a string")

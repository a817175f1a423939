"""The embedded model: one network as two files, FP32, and INT8 for CPUs.

onnxruntime runs INT8 faster on a CPU and slower on a GPU. The INT8 file replaces the FP32 one on a
CPU only if its model card shows that it classifies as well; `python -m tools.embed` writes both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ...core.errors import CardError
from ..card import CARD_KEY, ModelCard
from ..devices import count_gpus, parse_device
from .onnx_metadata import read_metadata

EMBEDDED = Path(__file__).parent.parent / "embedded.onnx"
EMBEDDED_INT8 = EMBEDDED.with_name("embedded.int8.onnx")

# Largest loss against FP32 with which the INT8 model is used by default.
MAX_ACCURACY_LOSS = 0.003
MAX_ROC_AUC_LOSS = 0.002
# Tolerance for floating-point errors: a loss that equals its limit is accepted.
EPSILON = 1e-9


def find_embedded(device: str = "auto") -> Path:
    """Return the file of the embedded model that a device runs: `auto` means a GPU if there is one.

    Raises:
        DeviceError: the device is unknown.
    """
    kind, _ = parse_device(device)
    if kind == "cuda" or (kind == "auto" and count_gpus()):
        return EMBEDDED
    return _choose_for_cpu(EMBEDDED, EMBEDDED_INT8)


def find_embedded_by(card: ModelCard) -> Path:
    """Return the file of the embedded model that a loaded card belongs to."""
    return EMBEDDED_INT8 if card.precision == "int8" else EMBEDDED


def explain_rejection(int8: ModelCard, fp32: ModelCard) -> str | None:
    """Return why an INT8 model must not replace its FP32 model by default; None if it may.

    Args:
        int8: its card; `metrics.parity` holds accuracy and ROC-AUC of both models on the same
            labelled images, as `ffd-export --verify` measures them.
        fp32: card of the FP32 model.

    Example:
        >>> from ffd_runtime.model.card import Provenance
        >>> fp32 = ModelCard("m", "tf_efficientnet_lite0", Provenance("0"))
        >>> explain_rejection(fp32.replace(precision="int8"), fp32)
        'its card has no metrics.parity.accuracy'
    """
    if int8.precision != "int8":
        return f"its precision is {int8.precision}, not int8"
    if int8.replace(precision="fp32", metrics={}) != fp32.replace(metrics={}):
        return "it was made from another model than the FP32 file"
    parity = int8.metrics.get("parity", {})
    for name, limit in (("accuracy", MAX_ACCURACY_LOSS), ("roc_auc", MAX_ROC_AUC_LOSS)):
        values = []
        for key in (name, f"{name}_reference"):
            value = parity.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"its card has no metrics.parity.{key}"
            values.append(value)
        loss = values[1] - values[0]
        if not loss <= limit + EPSILON:
            return f"{name} {values[0]:.4f} is {loss:.4f} below FP32, limit {limit:g}"
    return None


@cache
def _choose_for_cpu(fp32: Path, int8: Path) -> Path:
    """Return the file that a CPU runs; only the metadata of the two are read."""
    try:
        cards = [ModelCard.from_json(read_metadata(path)[CARD_KEY]) for path in (int8, fp32)]
    except (KeyError, CardError):
        return fp32
    return fp32 if explain_rejection(*cards) else int8

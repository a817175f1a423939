"""Checkpoints: safetensors files with the model card in the metadata."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from ffd_runtime.core.atomic_file import write_output
from ffd_runtime.core.errors import CardError, ModelError
from ffd_runtime.model.card import CARD_KEY, ModelCard

from .networks import FaceNet, build


def save_checkpoint(path: Path, net: FaceNet, card: ModelCard) -> None:
    """Write a checkpoint atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()
    }
    write_output(path, save(tensors, metadata={CARD_KEY: card.to_json()}))


def load_card(path: Path) -> ModelCard:
    """Read the card of a checkpoint.

    Raises:
        ModelError: the file does not exist, is a pickle, or is not a safetensors file.
        CardError: the card is missing, or this version cannot read it.
    """
    if not path.is_file():
        raise ModelError(f"checkpoint {path}: no such file")
    with path.open("rb") as file:
        head = file.read(9)
    # torch.save writes a zip since PyTorch 1.6, and a bare pickle begins with 0x80. A safetensors
    # file begins with the length of its JSON header, which may be the same bytes, and "{".
    if head[8:] != b"{" and head.startswith((b"PK\x03\x04", b"\x80")):
        raise ModelError(
            f"checkpoint {path} is a pickle, which can run any code when it is loaded: convert its "
            "state dict with safetensors.torch.save_file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"checkpoint {path} is not a safetensors file: {error}") from None
    if CARD_KEY not in metadata:
        raise CardError(f"checkpoint {path} has no model card: it was not written by ffd-train")
    return ModelCard.from_json(metadata[CARD_KEY])


def load_checkpoint(path: Path) -> tuple[FaceNet, ModelCard]:
    """Load a network in evaluation mode on the CPU, and its card.

    Raises:
        ModelError, CardError: as for `load_card`, or the tensors do not fit the architecture.
    """
    card = load_card(path)
    net = build(card.architecture)
    try:
        net.load_state_dict(load_file(path))
    except RuntimeError:
        raise ModelError(
            f"the tensors of checkpoint {path} do not fit its card's architecture, "
            f"{card.architecture}"
        ) from None
    return net.eval(), card

"""Stages of training: what trains, for how long, at what learning rate."""

from __future__ import annotations

from dataclasses import dataclass

# Parts of every network, from input to output.
PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
TRAINABLE = (*PARTS[1:], "all")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        part: first part to train, such as `layer4`; the parts before it are frozen. `all` trains
            the whole network.
        epochs: number of epochs, at least 1.
        lr: learning rate, or its peak if the schedule changes it.

    Example:
        >>> Stage.parse("layer4:2:1e-3")
        Stage(part='layer4', epochs=2, lr=0.001)
    """

    part: str
    epochs: int
    lr: float

    def __post_init__(self) -> None:
        if self.part not in TRAINABLE:
            raise ValueError(f"{self.part!r} is not a part: use one of {', '.join(TRAINABLE)}")
        if self.epochs < 1:
            raise ValueError("EPOCHS must be at least 1")
        if not 0 < self.lr < 100:
            raise ValueError("LR must be between 0 and 100")

    @classmethod
    def parse(cls, text: str) -> Stage:
        """Parse `PART:EPOCHS:LR`.

        Raises:
            ValueError: the text has a different form, or a value is out of range.
        """
        fields = text.split(":")
        if len(fields) != 3:
            raise ValueError(f"{text!r} is not PART:EPOCHS:LR, such as layer4:2:1e-3")
        part, epochs, lr = fields
        try:
            numbers = int(epochs), float(lr)
        except ValueError:
            raise ValueError(f"{text!r}: EPOCHS must be an integer and LR a number") from None
        return cls(part, *numbers)

    def __str__(self) -> str:
        return f"{self.part}:{self.epochs}:{self.lr!r}"


# The article's schedule: the head, then layer4 too, then all parts at a tenth of the rate.
ARTICLE = (Stage("head", 1, 1e-3), Stage("layer4", 2, 1e-3), Stage("all", 2, 1e-4))

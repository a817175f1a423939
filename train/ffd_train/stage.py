"""Stages of training: what trains, for how long, at what learning rate."""

from __future__ import annotations

from dataclasses import dataclass

# Parts of every network, from its input to its output.
PARTS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
TRAINABLE = (*PARTS[1:], "all")


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        part: `head`, `layer4` (and everything after it), ... or `all`.
        epochs: at least 1.
        lr: learning rate, or its peak where the schedule moves it.

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
            raise ValueError("a stage has at least one epoch")
        if not 0 < self.lr < 100:
            raise ValueError("a learning rate lies between 0 and 100")

    @classmethod
    def parse(cls, text: str) -> Stage:
        """Read `PART:EPOCHS:LR`.

        Raises:
            ValueError: the text has another form, or a value is out of range.
        """
        fields = text.split(":")
        if len(fields) != 3:
            raise ValueError(f"{text!r} is not PART:EPOCHS:LR, such as layer4:2:1e-3")
        part, epochs, lr = fields
        try:
            numbers = int(epochs), float(lr)
        except ValueError:
            raise ValueError(f"{text!r}: EPOCHS is a whole number, LR a number") from None
        return cls(part, *numbers)

    def __str__(self) -> str:
        return f"{self.part}:{self.epochs}:{self.lr!r}"


# The article's schedule: head, then the last stage with it, then everything, ten times slower.
ARTICLE = (Stage("head", 1, 1e-3), Stage("layer4", 2, 1e-3), Stage("all", 2, 1e-4))

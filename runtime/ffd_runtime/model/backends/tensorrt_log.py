"""What TensorRT says while it works, kept so that an error can quote it."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from ...core.text import printable

log = logging.getLogger(__name__)

# Enough for the messages of one failure; they come in bursts, the cause first.
KEPT = 20


def remembering_logger(trt: Any) -> Any:
    """A logger for one of TensorRT's modules that remembers warnings and errors.

    Its `quote()` gives the errors as a text to end a message with, empty where there were none.

    Args:
        trt: the module `tensorrt`, `tensorrt_lean` or `tensorrt_rtx`.
    """

    class Remembering(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=KEPT)

        def log(self, severity: Any, message: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self._errors.append(message)
                log.debug("TensorRT: %s", message)
            elif severity == kinds.WARNING:
                log.debug("TensorRT warns: %s", message)

        def quote(self) -> str:
            """Such as `; TensorRT said: ...`; said once, it is forgotten."""
            said = [printable(" ".join(message.split())) for message in dict.fromkeys(self._errors)]
            self._errors.clear()
            return f"; TensorRT said: {' | '.join(said[:3])}" if said else ""

    return Remembering()

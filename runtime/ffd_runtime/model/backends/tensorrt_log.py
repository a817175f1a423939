"""A logger for TensorRT that keeps its messages, so that an error can quote them."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from ...core.text import printable

log = logging.getLogger(__name__)

# Enough for one failure, which logs several messages, the cause first.
MAX_MESSAGES = 20


def remembering_logger(trt: Any) -> Any:
    """Create a logger for a TensorRT module that remembers errors; see its `quote()`."""

    class Remembering(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=MAX_MESSAGES)

        def log(self, severity: Any, message: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.INTERNAL_ERROR, kinds.ERROR):
                self._errors.append(message)
                log.debug("TensorRT: %s", message)
            elif severity == kinds.WARNING:
                # An engine of another GPU with the same compute capability may be slow or fail.
                is_other_gpu = "different models of devices" in message
                level = logging.WARNING if is_other_gpu else logging.DEBUG
                log.log(level, "TensorRT warns: %s", printable(" ".join(message.split())))

        def quote(self) -> str:
            """Return `; TensorRT said: ...`, and forget the errors."""
            said = [printable(" ".join(message.split())) for message in dict.fromkeys(self._errors)]
            self._errors.clear()
            return f"; TensorRT said: {' | '.join(said[:3])}" if said else ""

    return Remembering()

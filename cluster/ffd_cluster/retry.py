"""Retry calls while an object store is unreachable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from ffd_runtime.core.errors import StorageError

from .store_errors import UNREACHABLE

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_PAUSES_S = (5.0, 10.0, 20.0, 40.0, 80.0)


def retry_unreachable(call: Callable[[], T]) -> T:
    """Call a function, and call it again after a pause while the store is unreachable.

    Raises:
        StorageError: the store was unreachable for minutes, or refuses.
    """
    for pause in RETRY_PAUSES_S:
        try:
            return call()
        except StorageError as error:
            if error.code != UNREACHABLE:
                raise
            log.warning("%s; retrying in %.0f s", error, pause)
            time.sleep(pause)
    return call()

"""Locks on files, which end with the process."""

from __future__ import annotations

import errno

from .errors import OutputError


def lock_file(descriptor: int, refusal: str) -> bool:
    """Lock an open file until it and its duplicates are closed, where the system has such locks.

    Returns:
        Whether the system has them.

    Raises:
        OutputError: another process has locked it; the message is `refusal`.
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks; the run continues without one.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise OutputError(refusal) from None
    return True

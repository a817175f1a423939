"""Run native code in another thread, so that Ctrl-C is not lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import TypeVar

POLL_SECONDS = 0.1

T = TypeVar("T")


def run_interruptible(
    work: Callable[[], T],
    name: str,
    *,
    cancel: Callable[[], object] = lambda: None,
    discard: Callable[[T], object] = lambda _: None,
) -> T:
    """Call `work` in a thread and return its result.

    In the main thread, Ctrl-C could raise KeyboardInterrupt inside a callback of native code, such
    as a logger, and native code discards exceptions of callbacks.

    Args:
        work: may raise any exception, which is raised here.
        name: of the thread.
        cancel: called when Ctrl-C is pressed, to end `work` early.
        discard: called with a result that is not returned because Ctrl-C was pressed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the thread has ended.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = Thread(target=run, name=name, daemon=True)
    try:
        thread.start()
        while not wait([future], POLL_SECONDS).done:
            pass
    except KeyboardInterrupt:
        cancel()
        if thread.ident is not None:
            wait([future])
            if not future.exception():
                discard(future.result())
        raise
    finally:
        # Python 3.11 marks a thread as ended if joining it is interrupted, so join only at its end.
        if future.done():
            thread.join()
    return future.result()

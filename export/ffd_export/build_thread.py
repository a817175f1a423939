"""Run TensorRT's builder so that Ctrl-C cancels it, and report its progress."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from ffd_runtime.core.errors import ModelError

POLL_SECONDS = 0.1


class BuildProgress(Protocol):
    """Receives the phases of a build from the builder's thread. Phases nest."""

    def begin(self, phase: str, steps: int) -> None:
        """Begin a phase with a number of steps."""

    def step(self, phase: str, done: int) -> None:
        """Set the number of finished steps of a phase."""

    def end(self, phase: str) -> None:
        """End a phase."""


def build_in_thread(
    trt: Any, builder: Any, network: Any, config: Any, progress: BuildProgress | None
) -> Any:
    """Build a serialised network in another thread, so that Ctrl-C reaches Python meanwhile.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        builder: its `Builder`.
        network: the parsed network.
        config: the builder's configuration; its progress monitor is replaced.
        progress: receives the phases.

    Returns:
        TensorRT's `IHostMemory`, or None if the build failed.

    Raises:
        ModelError: the builder raised an exception.
        KeyboardInterrupt: Ctrl-C was pressed; the build is cancelled and its thread has ended.
    """
    monitor = _make_monitor(trt, progress)
    config.progress_monitor = monitor
    built: list[Any] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            built.append(builder.build_serialized_network(network, config))
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    # Python 3.11 marks a thread as ended if Thread.join is interrupted, so wait for an event.
    ended = threading.Event()
    thread = threading.Thread(target=work, name="ffd-build")
    try:
        thread.start()
        while not ended.wait(POLL_SECONDS):
            pass
    except KeyboardInterrupt:
        monitor.cancelled = True
        if thread.ident is not None:
            ended.wait()
        raise
    if failures:
        raise ModelError(f"TensorRT failed: {failures[0]}") from failures[0]
    return built[0]


def _make_monitor(trt: Any, progress: BuildProgress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if progress:
                progress.begin(name, steps)

        def step_complete(self, name: str, step: int) -> bool:
            if progress:
                progress.step(name, step + 1)
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            if progress:
                progress.end(name)

    return Monitor()

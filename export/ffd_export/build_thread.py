"""Run TensorRT in another thread, so that Ctrl-C cancels a build, and report its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ffd_runtime.core.interruptible import run_interruptible

T = TypeVar("T")


class BuildProgress(Protocol):
    """Receives the phases of a build from the builder's thread. Phases nest."""

    def begin(self, phase: str, steps: int) -> None:
        """Begin a phase with a number of steps."""

    def step(self, phase: str, done: int) -> None:
        """Set the number of finished steps of a phase."""

    def end(self, phase: str) -> None:
        """End a phase."""


def run_cancellable(trt: Any, work: Callable[[Any], T], progress: BuildProgress | None = None) -> T:
    """Call `work` in another thread and return its result; see `run_interruptible`.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        work: receives an `IProgressMonitor` for the builder's configuration.
        progress: receives the phases of the build.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the build is cancelled and its thread has ended.
    """
    monitor = _make_monitor(trt, progress)
    return run_interruptible(lambda: work(monitor), "ffd-build", cancel=monitor.cancel)


def _make_monitor(trt: Any, progress: BuildProgress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

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

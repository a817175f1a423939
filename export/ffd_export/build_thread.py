"""Run TensorRT in another thread, so that Ctrl-C cancels a build, and report its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ffd_runtime.core.interruptible import run_interruptible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")


def run_cancellable(trt: Any, work: Callable[[Any], T], bar: Progress | None = None) -> T:
    """Call `work` in another thread and return its result; see `run_interruptible`.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`.
        work: receives an `IProgressMonitor` for the builder's configuration.
        bar: shows the phases of the build, which nest.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the build is cancelled and its thread has ended.
    """
    monitor = _make_monitor(trt, bar)
    return run_interruptible(lambda: work(monitor), "ffd-build", cancel=monitor.cancel)


def _make_monitor(trt: Any, bar: Progress | None) -> Any:
    tasks: dict[str, TaskID] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if bar:
                tasks[name] = bar.add_task(name, total=steps)

        def step_complete(self, name: str, step: int) -> bool:
            if bar and name in tasks:
                bar.update(tasks[name], completed=step + 1)
            return not self.cancelled

        def phase_finish(self, name: str) -> None:
            if bar and name in tasks:
                bar.remove_task(tasks.pop(name))

    return Monitor()

"""Show the phases of a TensorRT build, and cancel it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def make_monitor(trt: Any, bar: Progress | None) -> Any:
    """Return an `IProgressMonitor` that shows the phases in `bar`; its `cancel` ends the build."""
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

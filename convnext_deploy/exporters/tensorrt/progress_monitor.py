"""Show the progress of a TensorRT build, and end the build when someone presses Ctrl-C."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from convnext_deploy.system.progress import Task

STEPS = 100
"""Total of the task that a monitor advances."""


@dataclass
class _Phase:
    parent: str | None
    total: int
    done: int = 0


def create_monitor(trt: ModuleType, task: Task) -> Any:
    """Return a TensorRT progress monitor that advances `task`, which has `STEPS` steps, as phases inside phases are done.

    TensorRT may call it from several threads. Whatever is raised in it is kept in `error` and cancels the build, for the bindings
    would print it and go on; `cancel()` does so from outside.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # the class is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.error: BaseException | None = None
            self._phases: dict[str, _Phase] = {}
            self._shown = 0
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = _Phase(parent_phase, max(1, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name].done = step + 1
                self._show(phase_name)
                return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def cancel(self, error: BaseException) -> None:
            self.error = self.error or error

        def finish(self) -> None:
            """Advance the task to its end."""
            task.advance(STEPS - self._shown)
            self._shown = STEPS

        def _show(self, phase_name: str) -> None:
            share = sum(self._share(name) for name, phase in self._phases.items() if phase.parent not in self._phases)
            steps = min(int(STEPS * share), STEPS - 1) - self._shown
            if steps <= 0 or self.error is not None:
                return
            try:
                task.advance(steps, phase_name.lower())
            except BaseException as error:  # the bindings let nothing through, not even KeyboardInterrupt
                self.error = error
            self._shown += steps

        def _share(self, name: str) -> float:
            """Return the part of a phase that is done; a phase inside it is part of the step under way."""
            phase = self._phases[name]
            inside = sum(self._share(child) for child, other in self._phases.items() if other.parent == name != child)
            return min((phase.done + min(inside, 1.0)) / phase.total, 1.0)

    return Monitor()


def build_serialized(builder: Any, network: Any, config: Any, monitor: Any) -> Any:
    """Return the plan in TensorRT's memory, or None if there is none.

    The build runs in a thread, because Ctrl-C reaches Python only where Python is running, and TensorRT's steps are long.

    Raises: whatever the monitor was cancelled with.
    """
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1, "tensorrt-build") as pool:
        plan = pool.submit(builder.build_serialized_network, network, config)
        try:
            result = plan.result()
        except BaseException as error:
            monitor.cancel(error)  # leaving the block waits for the build to end
            raise
    if monitor.error is not None:
        raise monitor.error
    return result

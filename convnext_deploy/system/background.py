"""One piece of work at a time in a thread, so that what is written to a disk keeps nobody waiting."""

import threading
from collections.abc import Callable


class Background:
    """Runs functions one after another in a thread; what they raise is raised by the next `run` or `finish`.

    The thread is none of those that the interpreter drops at its end: what was begun is written.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self, work: Callable[[], None]) -> None:
        """Begin some work, once that before it is done. Raises: Exception: of that before it."""
        self.finish()
        self._thread = threading.Thread(target=self._do, args=(work,), name="background")
        self._thread.start()

    def finish(self) -> None:
        """Wait for what was begun. Raises: Exception: of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised where somebody can answer it
            self._error = error

"""One task at a time in a low-priority thread."""

import contextlib
import os
import threading
from collections.abc import Callable

# Added to the thread's niceness: on a busy core the loop gets about ten times its share.
_NICENESS = 10


class Background:
    """Runs a task in its own thread; an error of the task is raised by `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a task failed and its error was not yet raised by `wait`."""
        return self._error is not None

    def start(self, work: Callable[[], None]) -> None:
        """Start a task; the previous one must have been waited for."""
        assert self._thread is None, "one task at a time"
        # A daemon: a thread that hangs in a collective must not delay the exit of the process.
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the task; raises its error once. seconds: None waits without a limit. False if the task still runs after them."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def _run(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            # In Linux this is the niceness of one thread, and of the threads that it starts.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            work()
        except BaseException as error:  # re-raised by wait()
            self._error = error

"""One piece of work at a time in a thread that gives way to the training loop."""

import contextlib
import os
import threading
from collections.abc import Callable

# Added to the thread's niceness: on a busy core the loop gets about ten times its share.
_NICENESS = 10


class Background:
    """Runs work in a thread of its own; what it raises comes out of `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether work has failed and nobody has asked for it yet."""
        return self._error is not None

    def start(self, work: Callable[[], None]) -> None:
        """Begin; what was started before must have been waited for."""
        assert self._thread is None, "one piece of work at a time"
        # A daemon: a thread that hangs in a collective must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, args=(work,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for what was started; raises its error once. False when it has not ended within so many seconds."""
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
            # In Linux this is the niceness of one thread, and of those that it starts.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            work()
        except BaseException as error:  # whatever it is, it belongs to who waits
            self._error = error

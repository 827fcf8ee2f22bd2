"""Child processes that end with their parent, even when the parent is killed with SIGKILL."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def signal_at_parents_end(number: signal.Signals) -> Callable[[], None]:
    """A preexec_fn: the kernel sends this signal to the child when the thread that starts it ends.

    So the child must be started by a thread that outlives it, such as the main thread. Linux only; elsewhere it does nothing.
    """
    parent = os.getpid()
    return lambda: request_signal(number, parent)


def request_signal(number: signal.Signals, parent: int) -> None:
    """As signal_at_parents_end, called by the child itself. parent: process id of the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        # A parent that ended before the call above sends no signal.
        if os.getppid() != parent:
            os._exit(128 + number)

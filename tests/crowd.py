"""Others that want the processor, too."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests import tied


@contextmanager
def crowd(core: int, processes: int) -> Iterator[None]:
    """So many processes that keep one core busy."""
    command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"]
    # In sessions of their own: some kernels share a core among sessions first, and one session would be one competitor.
    busy = [tied.popen(command, start_new_session=True) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()

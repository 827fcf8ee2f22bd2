"""Processes that end with their parent, and parents of orphans. Linux only; elsewhere nothing happens."""

import ctypes
import os
import sys

from dpo_operator.api.exitcodes import ExitCode

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def end_with_parent(parent: int, number: int) -> None:
    """Have this process, a new child, get a signal when its parent ends. parent: its process id, taken before the fork."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(ExitCode.SIGTERM)


def become_reaper() -> None:
    """Make this process adopt orphans of its children, as PID 1 would, so that they are reaped and do not stay zombies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)

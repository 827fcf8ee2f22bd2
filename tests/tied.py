"""Processes that are killed when the process that started them ends, however it ends.

Tests and benchmarks start theirs here, so that an interrupted or killed run leaves none. Linux only; elsewhere they are as
subprocess makes them.
"""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo_operator.cli.parent import signal_at_parents_end

Argv = Sequence[str | Path]


def popen(argv: Argv, *, number: signal.Signals = signal.SIGKILL, **options: Any) -> "subprocess.Popen[Any]":
    """As subprocess.Popen. number: the signal. Call it from a thread that outlives the process."""
    return subprocess.Popen(argv, preexec_fn=signal_at_parents_end(number), **options)


def run(argv: Argv, *, number: signal.Signals = signal.SIGKILL, **options: Any) -> "subprocess.CompletedProcess[Any]":
    """As subprocess.run. number: the signal."""
    return subprocess.run(argv, preexec_fn=signal_at_parents_end(number), **options)

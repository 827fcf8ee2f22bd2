"""Virtual time: an event loop whose sleeps take none.

Install it before the operator's modules are imported: they keep `time.monotonic` in defaults of their arguments.
"""

import asyncio
import selectors
import sys
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_now = 1000.0


def monotonic() -> float:
    """Virtual seconds."""
    return _now


def install() -> None:
    """Replace time.monotonic for this process."""
    assert not any(name.startswith("dpo_operator") for name in sys.modules), "the operator is imported already"
    time.monotonic = monotonic


class _Selector(selectors.SelectSelector):
    """Where a real loop would wait, the clock advances."""

    def select(self, timeout: float | None = None) -> list[Any]:
        global _now
        found = super().select(0)
        if not found and timeout:
            # A timer is due a hair before its time by the loop's own rule; rounding must not make it wait for ever.
            _now += max(timeout, 1e-6)
        assert found or timeout is not None, "everything waits, and for nothing"
        return found


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_Selector())) as runner:
        return runner.run(scenario)

"""Requests to stop, and how a phase ends that was asked to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class Stopped(BaseException):
    """SIGTERM or SIGINT arrived in a phase that has no state to save. Not an Exception, so that no handler eats it."""


@dataclass
class StopRequest:
    """Set by SIGTERM and SIGINT; the training loop asks for it between steps, saves and returns."""

    signal_name: str | None = None

    def is_set(self) -> bool:
        """Whether this process was asked to stop."""
        return self.signal_name is not None


class StopWhen(StopRequest):
    """A stop request that is also set by a condition of the run itself."""

    def __init__(self, request: StopRequest, condition: Callable[[], bool]) -> None:
        super().__init__()
        self._request, self._condition = request, condition

    def is_set(self) -> bool:
        """Whether this process was asked to stop, or the condition holds."""
        return self._request.is_set() or self._condition()


@dataclass(frozen=True)
class Outcome:
    """How train ended without an error.

    status: Succeeded, or Stopped when a signal ended it after its state was saved.
    """

    status: Literal["Succeeded", "Stopped"]
    message: str = ""

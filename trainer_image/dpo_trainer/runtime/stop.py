"""Stop requests, and how the train phase ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


class Stopped(BaseException):
    """SIGTERM or SIGINT in a phase that has no state to save. A BaseException, so that `except Exception` does not catch it."""


@dataclass
class StopRequest:
    """Set by SIGTERM and SIGINT. The training loop polls it between steps, then saves and returns."""

    signal_name: str | None = None

    def is_set(self) -> bool:
        """Whether a stop signal arrived."""
        return self.signal_name is not None


class StopWhen(StopRequest):
    """A stop request that is also set by a condition of the run itself."""

    def __init__(self, request: StopRequest, condition: Callable[[], bool]) -> None:
        super().__init__()
        self._request, self._condition = request, condition

    def is_set(self) -> bool:
        """Whether a stop signal arrived or the condition holds."""
        return self._request.is_set() or self._condition()


@dataclass(frozen=True)
class Outcome:
    """How the train phase ended without an error.

    status: Stopped means that a signal ended the phase after its state was saved.
    """

    status: Literal["Succeeded", "Stopped"]
    message: str = ""

"""The time of day by the API server's clock, which all replicas of the operator share.

The times in a status outlive the process that wrote them. Were they taken from each machine's own clock, a wrong one would
end jobs before their deadline, or keep them waiting.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Answers tell whole seconds, and take a moment to arrive.
SLACK_SECONDS = 2.0
# Of several API servers one may be wrong: another time is believed when every answer tells it for so long.
DOUBT_SECONDS = 60.0


class ServerClock:
    """Follows the Date of the API server's answers; before the first, this machine's clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._offset: float | None = None
        self._doubted_since: float | None = None

    def heard(self, date: str) -> None:
        """Note the Date header of an answer that came just now; one that is no date is passed over."""
        try:
            told = parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            return
        now = self._clock()
        offset = told - now
        if self._offset is None:
            self._offset = offset
        elif abs(offset - self._offset) <= SLACK_SECONDS:
            # Of what is told within a second, the latest is nearest to the truth.
            self._offset = max(self._offset, offset)
            self._doubted_since = None
        elif self._doubted_since is None:
            self._doubted_since = now
        elif now - self._doubted_since >= DOUBT_SECONDS:
            self._offset, self._doubted_since = offset, None

    def now(self) -> datetime:
        """UTC."""
        if self._offset is None:
            return datetime.now(UTC)
        return datetime.fromtimestamp(self._offset + self._clock(), UTC)

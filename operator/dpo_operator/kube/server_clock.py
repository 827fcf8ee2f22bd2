"""The time of day by the API server's clock, which all replicas of the operator share.

Times in a status outlive the process that wrote them. With each machine's own clock, a wrong one would end jobs before
their deadline or delay them.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# A Date header has whole seconds and arrives late.
SLACK_SECONDS = 2.0
# One of several API servers may be wrong, so a jump is accepted only after all responses have shown it for this long.
DOUBT_SECONDS = 60.0


class ServerClock:
    """Follows the Date of the API server's responses; before the first, this machine's clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._offset: float | None = None
        self._doubted_since: float | None = None

    def observe(self, date: str) -> None:
        """Note the Date header of a response that came just now. Text that is not a date is ignored."""
        try:
            server = parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            return
        now = self._clock()
        offset = server - now
        if self._offset is None:
            self._offset = offset
        elif abs(offset - self._offset) <= SLACK_SECONDS:
            # Dates are truncated to whole seconds, so the largest offset is the most accurate.
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

"""kopf configuration: watch time-outs, no writes by kopf, no diffs."""

import logging
import traceback
from collections.abc import Iterator
from typing import Any

import kopf

from dpo_operator.api import names
from dpo_operator.api.text import shown

# A watch without any data, even bookmarks (one a minute), counts as dead.
SILENT_WATCH_SECONDS = 70.0
# Objects in an answer of kopf's first list, and how long kopf keeps an object after its last event.
LIST_CHUNK, IDLE_SECONDS = 500, 0.5
# Longest line of a log, characters.
MAX_LOG_LINE = 4096
# Every watch is renewed by the server after this time, so that none stays on a broken connection unnoticed.
WATCH_SECONDS = 300


class OneLineEach(logging.Filter):
    """Log records as people may read them: one line each, and a traceback line by line, because errors quote what tenants wrote."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true."""
        record.msg, record.args = shown(record.getMessage(), MAX_LOG_LINE), ()
        if record.exc_info and record.exc_info[1] is not None:
            lines = "".join(traceback.format_exception(record.exc_info[1])).splitlines()
            # Indented, so that no line of it looks like a record.
            record.exc_text = "\n".join(f"  {shown(line, MAX_LOG_LINE)}" for line in lines)
        return True


class Backoffs:
    """Seconds between kopf's retries of a request: infinite, because outages and missing RBAC can be fixed."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1.0, 2.0)
        while True:
            yield 4.0


class NoDiffs(kopf.DiffBaseStorage):
    """No diffs: for each event kopf would copy the whole object twice to find changes that no handler here uses."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None

    def store(self, *, body: Any, patch: Any, essence: Any) -> None:
        pass


class NoProgress(kopf.ProgressStorage):
    """No progress: event handlers have none."""

    def fetch(self, *, key: Any, body: Any) -> Any:
        return None

    def store(self, *, key: Any, record: Any, body: Any, patch: Any) -> None:
        pass

    def purge(self, *, key: Any, body: Any, patch: Any) -> None:
        pass

    def touch(self, *, body: Any, patch: Any, value: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


def configure(settings: kopf.OperatorSettings) -> None:
    """Apply these settings before kopf starts its watches."""
    settings.posting.enabled = False
    # No lists and watches of namespaces and CRDs: those rights are not needed.
    settings.scanning.disabled = True
    settings.watching.inactivity_timeout = SILENT_WATCH_SECONDS
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.connect_timeout = 10
    # Thousands of objects are neither read at once nor kept for longer than they are handled.
    settings.watching.chunk_size = LIST_CHUNK
    settings.queueing.idle_timeout = IDLE_SECONDS
    settings.watching.label_selectors["batch", "v1", "jobs"] = names.LABEL_JOB
    settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_JOB
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = Backoffs()
    settings.persistence.diffbase_storage = NoDiffs()
    settings.persistence.progress_storage = NoProgress()

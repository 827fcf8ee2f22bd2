"""Health of the watches: compares what they delivered with what lists show.

A watch can die without a sign: its connection is open and nothing arrives, or its task hangs. The process then looks
healthy but reacts only to its own periodic pass.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

Clock = Callable[[], float]


@dataclass(frozen=True)
class Stream:
    """Watch of a resource by its plural, in one namespace or in all."""

    resource: str
    namespace: str | None

    @classmethod
    def of(cls, path: str) -> "Stream":
        """The stream that a URL path belongs to."""
        parts = path.strip("/").split("/")
        at = parts.index("namespaces") if "namespaces" in parts[:-1] else None
        return cls(parts[-1], None if at is None else parts[at + 1])

    def __str__(self) -> str:
        return self.resource + (f" in {self.namespace}" if self.namespace else "")


class Watches:
    """Activity and deliveries of all watches.

    silent_seconds: a watch without any data for this long, even bookmarks, is dead. behind_seconds: a watch that has not
    delivered a listed version for this long is stuck.
    """

    def __init__(
        self, streams: Iterable[Stream], silent_seconds: float, behind_seconds: float, clock: Clock = time.monotonic
    ) -> None:
        self._clock = clock
        self._silent = silent_seconds
        self._behind = behind_seconds
        now = clock()
        self._active_at = dict.fromkeys(streams, now)
        self._refused: set[Stream] = set()
        # Newest version that a stream delivered; the API server delivers a resource's versions in order.
        self._delivered: dict[Stream, int] = {}
        # A listed version that the stream has not reached: resourceVersion, first listed at, last listed at.
        self._missing: dict[Stream, tuple[int, float, float]] = {}
        # Last successful list of the same objects, to tell a dead watch from an unreachable server.
        self._listed_at: dict[Stream, float] = {}

    def on_activity(self, url: URL, status: int) -> None:
        """The API server answered a list or a watch, or a watch received data."""
        stream = Stream.of(url.path)
        if stream not in self._active_at:
            return
        self._active_at[stream] = self._clock()
        if status == 200:
            self._refused.discard(stream)
        else:
            self._refused.add(stream)

    def delivered(self, stream: Stream, version: str) -> None:
        """A watch delivered an object, also a deleted one."""
        if version.isdecimal():
            newest = self._delivered[stream] = max(self._delivered.get(stream, 0), int(version))
            if stream in self._missing and newest >= self._missing[stream][0]:
                del self._missing[stream]

    def on_list(self, stream: Stream, versions: Iterable[str]) -> None:
        """A list has returned objects of the stream. versions: their resourceVersions."""
        now = self._listed_at[stream] = self._clock()
        newest = max((int(v) for v in versions if v.isdecimal()), default=0)
        if newest <= self._delivered.get(stream, 0):
            return
        version, first, last = self._missing.get(stream, (newest, now, now))
        if now - last > self._behind:
            # The missing version is no longer listed; the object may have been deleted without an event.
            version, first = newest, now
        self._missing[stream] = (version, first, now)

    def ages(self) -> dict[str, float]:
        """Seconds since the last activity of each resource's watches; the largest of them."""
        now = self._clock()
        ages: dict[str, float] = {}
        for stream, at in self._active_at.copy().items():
            ages[stream.resource] = max(ages.get(stream.resource, 0.0), now - at)
        return ages

    def unhealthy_reason(self) -> str:
        """Why the process should be restarted; empty while the watches are healthy."""
        now = self._clock()
        for stream, at in self._active_at.items():
            if stream in self._refused:
                continue
            if now - at > self._silent and self._listed_at.get(stream, float("-inf")) > at + self._silent:
                return f"the watch of {stream} has been silent for {now - at:.0f} s while the API server answers"
        for stream, (version, first, last) in self._missing.items():
            if last - first >= self._behind and stream not in self._refused:
                return f"the watch of {stream} has not delivered version {version} in {last - first:.0f} s, which reads show"
        return ""


def tracking_response(on_activity: Callable[[URL, int], None]) -> type[aiohttp.ClientResponse]:
    """Response class that reports every chunk of a watch. kopf's handlers do not suffice, because they get no bookmarks."""

    class TrackingResponse(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            on_activity(self.url, self.status)
            if self.url.query.get("watch") == "true":
                # aiohttp declares a StreamReader; kopf reads only with iter_chunked.
                tracked = _TrackedStream(self.content, lambda: on_activity(self.url, self.status))
                self.content = tracked  # type: ignore[assignment]
            return self

    return TrackingResponse


class _TrackedStream:
    """A stream that reports every chunk that is read from it."""

    def __init__(self, stream: aiohttp.StreamReader, on_activity: Callable[[], None]) -> None:
        self._stream = stream
        self._on_activity = on_activity

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._stream.iter_chunked(size):
            self._on_activity()
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

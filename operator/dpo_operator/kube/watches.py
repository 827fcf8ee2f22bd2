"""Whether the watches still deliver: what they were heard to say, against what fresh reads show.

A watch can die without a sign: its connection is open and nothing comes, or its task hangs. Then the process looks well
and reacts to nothing but its own periodic pass.
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
    """What is known about the watches.

    silent_seconds: a watch that says nothing for so long, not even a bookmark, is dead. behind_seconds: one that did not
    deliver in that time what reads have shown all along is deaf.
    """

    def __init__(
        self, streams: Iterable[Stream], silent_seconds: float, behind_seconds: float, clock: Clock = time.monotonic
    ) -> None:
        self._clock = clock
        self._silent = silent_seconds
        self._behind = behind_seconds
        now = clock()
        self._heard = dict.fromkeys(streams, now)
        self._refused: set[Stream] = set()
        # Newest version that a stream delivered; the API server delivers a resource's versions in order.
        self._delivered: dict[Stream, int] = {}
        # Version that a read showed and the stream has not reached, when first and when last.
        self._missing: dict[Stream, tuple[int, float, float]] = {}
        # When a read of the same objects was last answered: a server that is away is not a dead watch.
        self._answered: dict[Stream, float] = {}

    def heard(self, url: URL, status: int) -> None:
        """The API server answered a list or a watch, or a watch said something."""
        stream = Stream.of(url.path)
        if stream not in self._heard:
            return
        self._heard[stream] = self._clock()
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

    def shown(self, stream: Stream, versions: Iterable[str]) -> None:
        """A read showed objects of the stream."""
        now = self._answered[stream] = self._clock()
        newest = max((int(v) for v in versions if v.isdecimal()), default=0)
        if newest <= self._delivered.get(stream, 0):
            return
        version, first, last = self._missing.get(stream, (newest, now, now))
        if now - last > self._behind:
            # What was missing has long not been seen; it may have been deleted without an event.
            version, first = newest, now
        self._missing[stream] = (version, first, now)

    def ages(self) -> dict[str, float]:
        """Seconds since each resource's watches were heard, the most silent one's."""
        now = self._clock()
        ages: dict[str, float] = {}
        for stream, at in self._heard.copy().items():
            ages[stream.resource] = max(ages.get(stream.resource, 0.0), now - at)
        return ages

    def complaint(self) -> str:
        """Why the process should be started anew; empty when all is well."""
        now = self._clock()
        for stream, at in self._heard.items():
            if stream in self._refused:
                continue
            if now - at > self._silent and self._answered.get(stream, float("-inf")) > at + self._silent:
                return f"the watch of {stream} has been silent for {now - at:.0f} s while the API server answers"
        for stream, (version, first, last) in self._missing.items():
            if last - first >= self._behind and stream not in self._refused:
                return f"the watch of {stream} has not delivered version {version} in {last - first:.0f} s, which reads show"
        return ""


def hearing(heard: Callable[[URL, int], None]) -> type[aiohttp.ClientResponse]:
    """A class of answers that tells of each piece of a body that arrives: kopf shows its handlers no bookmarks."""

    class Hearing(aiohttp.ClientResponse):
        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            heard(self.url, self.status)
            if self.url.query.get("watch") == "true":
                self.content = _Ear(self.content, lambda: heard(self.url, self.status))  # type: ignore[assignment]
            return self

    return Hearing


class _Ear:
    """A stream that tells when something was read from it."""

    def __init__(self, stream: aiohttp.StreamReader, heard: Callable[[], None]) -> None:
        self._stream = stream
        self._heard = heard

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for chunk in self._stream.iter_chunked(size):
            self._heard()
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

"""A client of OCI registries, by the OCI distribution specification 1.1: blobs in chunks, and manifests.

What is there already is not sent again. An upload that was cut off resumes from what the registry has of it, also in another process that knows
its location. Each digest is compared by the registry.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from dpo_operator.api.access import PUSH_CREDENTIALS_FIELD
from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError, first_line, invalid_configuration
from dpo_trainer.sources.registry_answers import Answer, Unreadable, answer_to, new_client
from dpo_trainer.sources.registry_login import Authorization

log = logging.getLogger(__name__)

# Bytes of one request; a smaller blob is one request.
CHUNK = 64 << 20
_PIECE = 1 << 20
# Tries of a request, or of a blob without progress; seconds between them, doubled each time.
TRIES, _FIRST_WAIT, _MOST_WAIT = 6, 0.5, 15.0
# Longest that a registry may ask to wait, seconds.
_ASKED_WAIT = 60.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Blob:
    """Content for a registry. digest: sha256:hex. parts: bytes, and files with their sizes, one after another."""

    digest: str
    size: int
    parts: tuple[bytes | tuple[Path, int], ...]

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes from start up to end. Raises OSError, and EOFError for a file that became shorter."""
        end, at = self.size if end is None else end, 0
        for part in self.parts:
            size = len(part) if isinstance(part, bytes) else part[1]
            first, last = max(start - at, 0), min(end - at, size)
            at += size
            if first >= last:
                continue
            if isinstance(part, bytes):
                yield part[first:last]
                continue
            with part[0].open("rb") as file:
                file.seek(first)
                left = last - first
                while left:
                    piece = file.read(min(left, _PIECE))
                    if not piece:
                        raise EOFError(f"{part[0].name} ended early")
                    left -= len(piece)
                    yield piece


class NoAnswer(Exception):
    """The registry can't be reached, breaks off, or is not able to answer now. wait: seconds that it asks to wait."""

    def __init__(self, words: str, wait: float = 0.0) -> None:
        super().__init__(words)
        self.wait = wait


@dataclass
class Registry:
    """A repository of a registry. host: with its port. label: the address, for messages. plain: without TLS."""

    host: str
    repository: str
    label: str
    plain: bool = False
    sleep: Callable[[float], None] = time.sleep
    _client: httpx.Client = field(init=False, repr=False)
    _authorization: Authorization = field(init=False, repr=False)
    # Location of the upload at work.
    _last: str = field(init=False, default="", repr=False)

    def __post_init__(self) -> None:
        self._client = new_client()
        self._authorization = Authorization(
            self._client, self.host, f"repository:{self.repository}:pull,push", self.label
        )

    @property
    def url(self) -> str:
        """Of the repository."""
        host = "registry-1.docker.io" if self.host == "docker.io" else self.host
        return f"{'http' if self.plain else 'https'}://{host}/v2/{self.repository}"

    def manifest(self, reference: str, types: tuple[str, ...]) -> bytes | None:
        """A manifest by its tag or digest; None without one. Raises TrainerError."""
        answer = self._asked("GET", f"{self.url}/manifests/{reference}", headers={"Accept": ", ".join(types)})
        if answer.status == 404:
            return None
        self._require(answer, 200)
        return answer.content

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> None:
        """Write a manifest, whose blobs must be there. Raises TrainerError."""
        headers = {"Content-Type": media_type}
        answer = self._asked("PUT", f"{self.url}/manifests/{reference}", lambda: content, headers)
        self._require(answer, 201)

    def has(self, digest: str) -> bool:
        """Whether the repository has a blob. Raises TrainerError."""
        answer = self._asked("HEAD", f"{self.url}/blobs/{digest}")
        # Some registries send readers on to where they keep their blobs.
        if answer.status in (301, 302, 303, 307, 308):
            return True
        if answer.status != 404:
            self._require(answer, 200)
        return answer.status == 200

    def upload(self, blob: Blob, location: str | None, note: Callable[[str], None]) -> None:
        """Upload a blob, unless it is there.

        location: of an upload that was begun earlier. note: called with the location from which the upload can resume.
        Raises TrainerError, and what Blob.pieces raises.
        """
        if self.has(blob.digest):
            return
        began = self._offset(location, blob.size) if location is not None else None
        failed = 0
        while True:
            place, offset = began or self._begin(note)
            try:
                self._send(blob, place, offset, note)
                return
            except NoAnswer as error:
                failed += 1
                if failed >= TRIES:
                    raise self._unavailable(error) from error
                self._wait(failed, error.wait)
            # The whole of it may have arrived, and its answer was lost.
            if self.has(blob.digest):
                return
            began = self._offset(self._last, blob.size)
            if began is not None and began[1] > offset:
                failed = 0

    def _begin(self, note: Callable[[str], None]) -> tuple[str, int]:
        answer = self._asked("POST", f"{self.url}/blobs/uploads/", lambda: b"")
        self._require(answer, 202)
        place = self._location(answer)
        note(place)
        return place, 0

    def _send(self, blob: Blob, place: str, offset: int, note: Callable[[str], None]) -> None:
        """Send what is missing, and complete the upload. Raises NoAnswer, TrainerError."""
        self._last = place
        while blob.size - offset > CHUNK or (offset and offset < blob.size):
            end = min(offset + CHUNK, blob.size)
            answer = self._once(
                "PATCH", place, partial(blob.pieces, offset, end),
                {"Content-Type": "application/octet-stream", "Content-Length": str(end - offset), "Content-Range": f"{offset}-{end - 1}"},
            )  # fmt: skip
            if answer.status in (404, 416):
                raise NoAnswer("the upload is not where it was")
            self._require(answer, 202)
            self._last = place = self._location(answer)
            note(place)
            offset = end
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size - offset)}
        joint = "&" if urlsplit(place).query else "?"
        answer = self._once("PUT", f"{place}{joint}digest={blob.digest}", partial(blob.pieces, offset), headers)
        if answer.status in (404, 416):
            raise NoAnswer("the upload is not where it was")
        if answer.code == "DIGEST_INVALID":
            raise TrainerError(
                ExitCode.BAD_EXPORT,
                f"{self.label}: a file of the export is not the one that was verified; export again",
            )
        self._require(answer, 201)

    def _offset(self, location: str, size: int) -> tuple[str, int] | None:
        """Where the upload of a blob of so many bytes resumes, and how many are there; None when the registry does not know it any more."""
        try:
            answer = self._asked("GET", location)
        except TrainerError:
            return None
        found = re.fullmatch(r"(?:bytes=)?0-(\d{1,18})", answer.headers.get("range", ""))
        if answer.status != 204 or found is None:
            return None
        # Of an empty upload some say 0-0; that it is one byte never happens here.
        last = int(found[1])
        if last >= size:
            return None
        place = self._location(answer) if "location" in answer.headers else location
        return place, last + 1 if last else 0

    def _location(self, answer: Answer) -> str:
        place = str(httpx.URL(self.url).join(answer.headers.get("location", "")))
        if urlsplit(place).scheme not in ("https", "http" if self.plain else "https"):
            raise self._odd(answer, "it names a place without TLS for uploads")
        return place

    def _asked(
        self,
        method: str,
        url: str,
        content: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to a request that may be repeated. Raises TrainerError."""
        for number in range(1, TRIES + 1):
            try:
                return self._once(method, url, content, headers)
            except NoAnswer as error:
                if number == TRIES:
                    raise self._unavailable(error) from error
                log.warning("%s: %s, retrying (%d)", self.label, error, number)
                self._wait(number, error.wait)
        raise AssertionError

    def _once(
        self,
        method: str,
        url: str,
        content: Callable[[], Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer to one request. Raises NoAnswer, TrainerError."""
        for _ in range(2):
            own = self._authorization.headers(url)
            answer = self._exchange(method, url, content, {**(headers or {}), **own})
            challenge = answer.headers.get("www-authenticate", "")
            # Without or with an old token: once more with a new one.
            if answer.status == 401 and self._may_know(url) and self._authorize(challenge):
                continue
            break
        if answer.status in _TRANSIENT:
            asked = answer.headers.get("retry-after", "")
            raise NoAnswer(f"HTTP {answer.status}", min(float(asked), _ASKED_WAIT) if asked.isdecimal() else 0.0)
        if answer.status in (401, 403):
            raise self._refused(answer)
        return answer

    def _authorize(self, challenge: str) -> bool:
        try:
            return self._authorization.renew(challenge)
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    def _exchange(self, method: str, url: str, content: Callable[[], Any] | None, headers: Mapping[str, str]) -> Answer:
        try:
            return answer_to(self._client, method, url, content=content and content(), headers=headers)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise invalid_configuration(f"{self.label}: {first_line(error)}") from error
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> Exception:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return TrainerError(
                ExitCode.SOURCE_UNAVAILABLE,
                f"{self.label}: {self.host} has a certificate that is not trusted; name the authority's in spec.access.caBundleRef",
            )
        return NoAnswer(str(error) if isinstance(error, Unreadable) else type(error).__name__)

    def _may_know(self, url: str) -> bool:
        """Whether a place may see the password: the registry itself."""
        return urlsplit(url)[:2] == urlsplit(self.url)[:2]

    def _wait(self, number: int, asked: float) -> None:
        self.sleep(max(asked, min(_MOST_WAIT, _FIRST_WAIT * 2 ** (number - 1))))

    def _require(self, answer: Answer, status: int) -> None:
        if answer.status != status:
            raise self._odd(answer)

    def _odd(self, answer: Answer, why: str = "") -> TrainerError:
        said = f" ({answer.code})" if answer.code else ""
        missing = answer.status == 404 or answer.code in ("NAME_UNKNOWN", "NAME_INVALID")
        advice = why or (
            "there is no such repository, and it can't be made; correct the address"
            if missing
            else "it takes no such upload; see the registry's documentation"
        )
        code = ExitCode.INPUT_NOT_FOUND if missing else ExitCode.INVALID_CONFIGURATION
        return TrainerError(code, f"{self.label}: {self.host} answered with HTTP {answer.status}{said}: {advice}")

    def _refused(self, answer: Answer) -> TrainerError:
        said = f", {answer.code}" if answer.code else ""
        who = self._authorization.described
        return TrainerError(
            ExitCode.ACCESS_DENIED,
            f"{self.label}: access was refused (HTTP {answer.status}{said}) {who}; the Secret of {PUSH_CREDENTIALS_FIELD} must have a user and password "
            f"for {self.host} that may push there, in the form of kubernetes.io/dockerconfigjson (for dpo run: docker login)",
        )

    def _unavailable(self, error: NoAnswer) -> TrainerError:
        return TrainerError(
            ExitCode.SOURCE_UNAVAILABLE,
            f"{self.label}: {self.host} gave no answer ({error}) after {TRIES} tries; check the address, and that the pod may reach it (the chart's values "
            "network.open and network.openNamespaces); a registry without TLS needs spec.export.push.plainHttp",
        )

    def close(self) -> None:
        """Close the connections."""
        with suppress(Exception):
            self._client.close()

"""One request to an endpoint over HTTP, bounded in time and size, and what its answer means."""

import asyncio
import json
import math
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.iterative import Endpoint
from dpo_operator.api.text import shown
from dpo_trainer.runtime.errors import TrainerError, first_line, invalid_configuration
from dpo_trainer.runtime.termination import redact

# Bytes of an answer. The longest verdict has 16,384 tokens.
MAX_BYTES = 1 << 20
# Seconds that a server may ask to wait for.
MAX_WAIT = 600.0
# Characters of a server's words in messages.
_WORDS = 300
_FIELD = "spec.iterative.judge.endpoint"
_RETRIED = frozenset({408, 409, 425, 429})
_MOST_TOKENS = 10**9


@dataclass(frozen=True)
class Said:
    """A completion. tokens: as the server counts them, None where it does not. cut: it reached max_tokens."""

    text: str
    tokens: int | None
    cut: bool


@dataclass(frozen=True)
class Refused:
    """The server takes no such request, as one that is longer than its context. words: its own."""

    words: str


@dataclass(frozen=True)
class Failed:
    """No answer now. wait: seconds that the server asks to wait. costs: whether a completion may have been made."""

    words: str
    wait: float = 0.0
    costs: bool = True


class Transport:
    """Sends requests. Make it in the loop that uses it.

    key: None without one. Proxy and certificates are those of the process's environment, see Access.apply.
    Raises TrainerError INVALID_CONFIGURATION for a key that fits into no header.
    """

    def __init__(self, settings: Endpoint, key: str | None) -> None:
        self._settings, self._key = settings, key
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "dpo-operator"}
        if key is not None:
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise invalid_configuration(
                    f"{_FIELD}.apiKeySecretRef: expected a key of printable ASCII characters without spaces, found others; correct the Secret"
                )
            headers["Authorization"] = f"Bearer {key}"
        self._url = f"{settings.url.rstrip('/')}/chat/completions"
        # No redirects: they would carry the key, and tenants' texts, to another place.
        self._client = httpx.AsyncClient(
            headers=headers,
            timeout=None,  # noqa: S113 Bounded as a whole: a server that sends a byte a second never runs into a time-out of its reads.
            follow_redirects=False,
            limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
        )

    async def send(self, body: bytes) -> Said | Refused | Failed:
        """Send one request.

        Raises TrainerError for what no other try would change: ACCESS_DENIED, INPUT_NOT_FOUND, INVALID_CONFIGURATION.
        """
        try:
            async with (
                asyncio.timeout(self._settings.timeout_seconds),
                self._client.stream("POST", self._url, content=body) as response,
            ):
                content = await self._read(response)
        except TimeoutError:
            return Failed(f"no answer within {self._settings.timeout_seconds} s")
        except httpx.ConnectError as error:
            if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
                raise invalid_configuration(
                    f"{self._url}: the server's certificate is not trusted ({self._shown(first_line(error))}); name its authority in "
                    "spec.access.caBundleRef"
                ) from error
            return Failed(self._shown(f"no connection: {first_line(error) or type(error).__name__}"), costs=False)
        except (httpx.TransportError, httpx.DecodingError) as error:
            return Failed(self._shown(f"the connection failed: {first_line(error) or type(error).__name__}"))
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise invalid_configuration(f"{_FIELD}.url: {self._url}: {self._shown(first_line(error))}") from error
        if content is None:
            return Failed(f"an answer of more than {MAX_BYTES >> 20} MiB")
        return self._meaning(response.status_code, response.headers, content)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    @staticmethod
    async def _read(response: httpx.Response) -> bytes | None:
        """The body; None when it is too long. As it was sent: a compressed one could unpack to any size."""
        content = b""
        async for part in response.aiter_raw():
            content += part
            if len(content) > MAX_BYTES:
                return None
        return content

    def _meaning(self, status: int, headers: httpx.Headers, content: bytes) -> Said | Refused | Failed:
        if status == 200:
            return _completion(content) or Failed("an answer that is no chat completion")
        words = self._shown(f"HTTP {status}: {_words(content)}")
        if status in _RETRIED or status >= 500:
            return Failed(words, wait=_retry_after(headers), costs=status == 504)
        if status in (401, 402, 403):
            raise TrainerError(
                ExitCode.ACCESS_DENIED,
                f"{self._url} refused the judge's key: {words}; correct the Secret of {_FIELD}.apiKeySecretRef (without a cluster: the file "
                "that DPO_JUDGE_KEY_FILE names)",
            )
        if status in (404, 405, 410):
            raise TrainerError(
                ExitCode.INPUT_NOT_FOUND,
                f"{self._url}: {words}; correct {_FIELD}.url, which ends before /chat/completions, or {_FIELD}.model",
            )
        if status < 400:
            place = self._shown(headers.get("location", "nowhere"))
            raise invalid_configuration(
                f"{self._url}: HTTP {status} to {place}; redirects are not followed, so name the right place in {_FIELD}.url"
            )
        return Refused(words)

    def _shown(self, text: str) -> str:
        """A server's words in a message: without the key, short, and in one line."""
        return shown(redact(text, [self._key] if self._key else []), _WORDS)


def _completion(content: bytes) -> Said | None:
    """The first choice of a chat completion; None when there is none."""
    try:
        body = json.loads(content)
        choice = body["choices"][0]
        text, cut = choice["message"].get("content"), choice.get("finish_reason") == "length"
        usage = body.get("usage")
        tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    known = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 < tokens <= _MOST_TOKENS
    # Without content there are reasons alone, or a call of a tool: a text that is no verdict.
    return Said(text if isinstance(text, str) else "", tokens if known else None, cut)


def _words(content: bytes) -> str:
    """What a server says about an error: its message, where it has OpenAI's form."""
    text = content[:4096].decode("utf-8", "replace").strip()
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        found: Any = json.loads(content)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = str(found["message"])
    return text or "no reason given"


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds that the server asks to wait, 0 when it does not."""
    text = headers.get("retry-after", "").strip()
    seconds = 0.0
    try:
        seconds = float(text)
    except ValueError:
        with suppress(ValueError, TypeError, OverflowError):
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
    return min(max(seconds, 0.0), MAX_WAIT) if math.isfinite(seconds) else 0.0


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__

"""Answers of a registry and of its token service. Both are hosts that a tenant names, so an answer is read up to a bound, and never decompressed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

# Bytes of an answer that are read: a manifest has at most 4 MiB.
MOST_BYTES = 4 << 20
_CODE = re.compile(r'"code"\s*:\s*"([A-Z_]{1,40})"')


@dataclass(frozen=True)
class Answer:
    """A registry's answer. content: of at most 4 MiB."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def code(self) -> str:
        """The registry's word for an error, such as DENIED; empty without one."""
        found = _CODE.search(self.content.decode(errors="replace"))
        return found[1] if found else ""


class Unreadable(httpx.TransportError):
    """An answer that is not read: too long, or compressed though that was not asked for."""


def new_client() -> httpx.Client:
    """A client for registries. Proxy and certificates are those of the process's environment. No redirects: they would carry the password on."""
    # A compressed manifest would have another digest, and could be of any size.
    headers = {"Accept-Encoding": "identity"}
    return httpx.Client(timeout=httpx.Timeout(60.0), follow_redirects=False, headers=headers)


def answer_to(client: httpx.Client, method: str, url: str, **request: Any) -> Answer:
    """The answer to a request. request: as httpx.Client.stream takes it. Raises httpx.HTTPError, httpx.InvalidURL."""
    with client.stream(method, url, **request) as response:
        if method != "HEAD" and response.headers.get("content-encoding", "identity") != "identity":
            raise Unreadable("a compressed answer, which was not asked for")
        body = b""
        for part in response.iter_raw():
            body += part
            if len(body) > MOST_BYTES:
                raise Unreadable("an answer of more than 4 MiB")
        return Answer(response.status_code, response.headers, body)

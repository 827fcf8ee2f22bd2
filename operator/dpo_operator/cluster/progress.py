"""Reads rank 0's progress from its pod."""

import ipaddress

import aiohttp
from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.reports import Progress

TIMEOUT_SECONDS = 2.0
# A pod belongs to a tenant; what it sends is bounded, like all input.
MAX_BYTES = 65536


class ProgressReader:
    """HTTP client for /status of trainer pods."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def read(self, ip: str, port: int = names.METRICS_PORT) -> Progress | None:
        """The pod's answer, or None when there is none that can be understood."""
        try:
            address = ipaddress.ip_address(ip)
            host = f"[{address}]" if address.version == 6 else str(address)
            async with self._open().get(f"http://{host}:{port}/status", allow_redirects=False) as answer:
                if answer.status != 200:
                    return None
                return Progress.model_validate_json(await _bounded(answer.content))
        except (TimeoutError, aiohttp.ClientError, OSError, ValidationError, ValueError):
            return None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
            # Pods come and go; a connection that is kept for the next reading would only wait for a dead one.
            connector = aiohttp.TCPConnector(limit=64, force_close=True)
            self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False)
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


async def _bounded(stream: aiohttp.StreamReader) -> bytes:
    body = b""
    async for chunk in stream.iter_chunked(8192):
        body += chunk
        if len(body) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
    return body

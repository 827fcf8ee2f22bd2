"""Reads how far a trainer pod is, or what kind of silence it keeps."""

import errno
import ipaddress
from enum import Enum

import aiohttp
from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.reports import Progress

# For a connection, and again for the answer.
TIMEOUT_SECONDS = 2.0
# A pod belongs to a tenant; what it sends is bounded, like all input.
MAX_BYTES = 65536


class Silence(Enum):
    """Why a pod gave no answer.

    HUNG: its kernel takes the connection and its process does not answer: it is stopped or stuck. STRANGE: something answers that
    is no trainer, or nothing listens. UNREACHABLE: no sign of life at all, as behind a NetworkPolicy.
    """

    HUNG = "has not answered"
    STRANGE = "has given no answer that can be understood"
    UNREACHABLE = "could not be reached"


class ProgressReader:
    """HTTP client for /status of trainer pods."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def read(self, ip: str, port: int = names.METRICS_PORT) -> Progress | Silence:
        """The pod's answer."""
        try:
            address = ipaddress.ip_address(ip)
            host = f"[{address}]" if address.version == 6 else str(address)
            async with self._open().get(f"http://{host}:{port}/status", allow_redirects=False) as answer:
                if answer.status != 200:
                    return Silence.STRANGE
                return Progress.model_validate_json(await _bounded(answer.content))
        except aiohttp.ConnectionTimeoutError:
            return Silence.UNREACHABLE
        except TimeoutError:
            return Silence.HUNG
        except aiohttp.ClientConnectorError as error:
            return Silence.STRANGE if error.os_error.errno == errno.ECONNREFUSED else Silence.UNREACHABLE
        except (aiohttp.ClientError, OSError, ValidationError, ValueError):
            return Silence.STRANGE

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=2 * TIMEOUT_SECONDS, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS
            )
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

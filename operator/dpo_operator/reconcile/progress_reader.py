"""Reads /status of a trainer pod, or classifies why it gave no answer."""

import errno
import ipaddress
from enum import Enum

import aiohttp
from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.reports import Progress

# For connecting, and again for the response.
TIMEOUT_SECONDS = 2.0
# A pod belongs to a tenant; what it sends is bounded, like all input.
MAX_BYTES = 65536


class Silence(Enum):
    """Why a pod gave no answer.

    HUNG: connected, but no response in time: the process is stopped or stuck. NOT_A_TRAINER: connection refused, or an
    invalid response. UNREACHABLE: no response at all, as behind a NetworkPolicy.
    """

    HUNG = "has not answered"
    NOT_A_TRAINER = "gave no valid answer"
    UNREACHABLE = "could not be reached"


class ProgressReader:
    """HTTP client for /status of trainer pods."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def read(self, ip: str, port: int = names.METRICS_PORT) -> Progress | Silence:
        """The pod's progress, or why there is none."""
        try:
            address = ipaddress.ip_address(ip)
            host = f"[{address}]" if address.version == 6 else str(address)
            async with self._open().get(f"http://{host}:{port}/status", allow_redirects=False) as answer:
                if answer.status != 200:
                    return Silence.NOT_A_TRAINER
                return Progress.model_validate_json(await _bounded(answer.content))
        except aiohttp.ConnectionTimeoutError:
            return Silence.UNREACHABLE
        except TimeoutError:
            return Silence.HUNG
        except aiohttp.ClientConnectorError as error:
            return Silence.NOT_A_TRAINER if error.os_error.errno == errno.ECONNREFUSED else Silence.UNREACHABLE
        except (aiohttp.ClientError, OSError, ValidationError, ValueError):
            return Silence.NOT_A_TRAINER

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=2 * TIMEOUT_SECONDS, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS
            )
            # No keep-alive: a kept connection would hang when its pod is gone.
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

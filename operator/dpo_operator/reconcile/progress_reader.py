"""Reads /status of a trainer pod, or classifies why it gave no answer."""

import asyncio
import ipaddress
from enum import Enum

from dpo_operator.api import names
from dpo_operator.api.reports import Progress

# For connecting, and again for the whole response.
TIMEOUT_SECONDS = 2.0
# How long a pass waits for an answer; a later one is what the next pass gets, so that no pod holds up a worker.
PATIENCE_SECONDS = 0.5
# Unclaimed answers are kept for this time.
KEPT_SECONDS = 60.0
# A pod belongs to a tenant; all that it sends over a connection is bounded, like all input: status line, headers and body together.
MAX_BYTES = 65536


class Silence(Enum):
    """Why a pod gave no answer.

    HUNG: connected, but no response in time: the process is stopped or stuck. NOT_A_TRAINER: connection refused, or an
    invalid response. UNREACHABLE: no response at all, as behind a NetworkPolicy. SLOW: no answer yet.
    """

    HUNG = "has not answered"
    NOT_A_TRAINER = "gave no valid answer"
    UNREACHABLE = "could not be reached"
    SLOW = "is slow to answer"


Answer = Progress | Silence


class ProgressReader:
    """Client for /status of trainer pods: one request of HTTP/1.0 per connection, which no server may answer in pieces or stages.

    patience: seconds that a read waits at most.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._reading: dict[tuple[str, int], asyncio.Task[Answer]] = {}

    async def read(self, ip: str, port: int = names.METRICS_PORT) -> Answer:
        """The pod's progress, or why there is none. After SLOW the next read of the same pod has the answer."""
        pod = ip, port
        task = self._reading.pop(pod, None) or asyncio.create_task(_ask(ip, port))
        done, _ = await asyncio.wait({task}, timeout=self._patience)
        if done:
            return task.result()
        self._reading[pod] = task
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, pod, task)
        return Silence.SLOW

    def _forget(self, pod: tuple[str, int], task: asyncio.Task[Answer]) -> None:
        if self._reading.get(pod) is task:
            del self._reading[pod]

    async def close(self) -> None:
        """Close all connections."""
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(ip: str, port: int) -> Answer:
    try:
        address = ipaddress.ip_address(ip)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(str(address), port, limit=MAX_BYTES)
    except ConnectionRefusedError:
        return Silence.NOT_A_TRAINER
    except (OSError, TimeoutError):
        return Silence.UNREACHABLE
    except ValueError:
        return Silence.NOT_A_TRAINER
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            writer.write(f"GET /status HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
            return Progress.model_validate_json(_body(await _all_of(reader)))
    except TimeoutError:
        return Silence.HUNG
    except (OSError, ValueError):
        return Silence.NOT_A_TRAINER
    finally:
        # Not closed in order: the peer may never take part in it.
        writer.transport.abort()


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    """All that is sent until the connection ends or a response with a length is complete. Raises ValueError for more than MAX_BYTES."""
    found = bytearray()
    while chunk := await reader.read(MAX_BYTES + 1 - len(found)):
        found += chunk
        if len(found) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        if _is_complete(found):
            break
        # Small pieces are gathered, so that many of them cost no more than a few.
        await asyncio.sleep(0.01)
    return bytes(found)


def _is_complete(found: bytearray) -> bool:
    head, end, body = bytes(found).partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n")[1:] if end else ():
        name, _, value = line.partition(b":")
        if name == b"content-length" and value.strip().isdigit():
            return len(body) >= int(value.strip()[:9])
    return False


def _body(response: bytes) -> bytes:
    """Body of a response with status 200. Raises ValueError for any other, such as interim ones and redirects."""
    head, _, body = response.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or not status[0].startswith(b"HTTP/1.") or status[1] != b"200":
        raise ValueError("no HTTP response with status 200")
    return body

"""The HTTP server of /metrics: one thread, whatever clients do.

Any pod that reaches the port may connect, so connections are bounded in number, time and bytes, and scrapes share renderings.
"""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CONTENT_TYPE_LATEST

# From the connection to the end of its request, and for sending the answer.
REQUEST_SECONDS, ANSWER_SECONDS = 5.0, 30.0
MAX_REQUEST_BYTES = 16384
# Connections at a time, and of those from one address.
MAX_CONNECTIONS, MAX_OF_ADDRESS = 32, 4
# Scrapes within this time get the same rendering.
SHARED_SECONDS = 1.0


class MetricsServer:
    """Serves metrics from a daemon thread until it is closed."""

    def __init__(self, render: Callable[[], bytes], port: int) -> None:
        """render: all series as text. port: 0 takes any free one. Raises OSError when it is taken."""
        self._make_text = render
        self._rendered = (float("-inf"), b"")
        self._from: Counter[str] = Counter()
        self._stop = asyncio.Event()
        self._socket = _listen(port)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and drop all connections."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._socket, limit=MAX_REQUEST_BYTES)
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        if self._from.total() >= MAX_CONNECTIONS or self._from[peer] >= MAX_OF_ADDRESS:
            writer.transport.abort()
            return
        self._from[peer] += 1
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.transport.abort()
            self._from[peer] -= 1
            if not self._from[peer]:
                del self._from[peer]

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"")
        if path not in (b"/metrics", b"/"):
            return _response("404 Not Found", "text/plain", b"There is /metrics.\n")
        body = self._render()
        whole = _response("200 OK", CONTENT_TYPE_LATEST, body)
        return whole if method == b"GET" else whole[: len(whole) - len(body)]

    def _render(self) -> bytes:
        at, text = self._rendered
        if time.monotonic() - at > SHARED_SECONDS:
            text = self._make_text()
            self._rendered = time.monotonic(), text
        return text


def _listen(port: int) -> socket.socket:
    """All addresses, also of IPv6 where there is any."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=MAX_CONNECTIONS)
    return socket.create_server(("0.0.0.0", port), backlog=MAX_CONNECTIONS)  # noqa: S104 - Prometheus comes from outside


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body

"""The HTTP server of a trainer pod: /metrics for Prometheus, /status for the operator, /healthz for people."""

import http.server
import os
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

ENV_BIND_ADDRESS = "DPO_BIND_ADDRESS"


def bind_address() -> str:
    """Address to listen on: DPO_BIND_ADDRESS, all addresses in a pod, else loopback alone."""
    named = os.environ.get(ENV_BIND_ADDRESS)
    if named:
        return named
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        return "127.0.0.1"
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104 - Prometheus and the operator come from outside


class TelemetryServer:
    """Serves in daemon threads until closed. Only GET is answered; there is nothing to change from outside."""

    def __init__(self, registry: CollectorRegistry, status: Callable[[], str], *, port: int, address: str) -> None:
        """port: 0 takes any free one. status: gives the JSON body of /status.

        Raises OSError when the address is unavailable.
        """
        self._server = _Server((address, port), _handler(registry, status))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="telemetry", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    # The kernel accepts connections while the process is stopped; the operator detects that as a hang.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.server_address[0] == "::":
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # HTTPServer would look the host's name up, which can take seconds where DNS is slow.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error, but for a client that did not wait for its answer, as on a machine that is busy."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(registry: CollectorRegistry, status: Callable[[], str]) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10  # seconds; a client that says nothing must not hold a thread
        server_version = "dpo-trainer"
        sys_version = ""

        def do_GET(self) -> None:
            match self.path.split("?")[0]:
                case "/metrics":
                    self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry))
                case "/status":
                    self._answer(HTTPStatus.OK, "application/json", status().encode())
                case "/healthz":
                    self._answer(HTTPStatus.OK, "text/plain; charset=utf-8", b"ok\n")
                case _:
                    body = b"There is /metrics, /status and /healthz.\n"
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", body)

        def _refuse(self) -> None:
            self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", b"Only GET.\n")

        do_POST = do_PUT = do_PATCH = do_DELETE = _refuse

        def _answer(self, code: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            if code is HTTPStatus.METHOD_NOT_ALLOWED:
                self.send_header("Allow", "GET")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a line for each scrape would bury the training log."""

    return Handler

"""A proxy between an operator and a real API server that makes faults on demand.

It ends the client's TLS with a certificate of the rig's own authority and talks to the server as the administrator.
Everything that is not told otherwise passes unchanged.
"""

import http.client
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cluster.rig.control_plane import ControlPlane

Json = dict[str, Any]
# The events that are sent instead of one.
Edit = Callable[[Json], list[Json]]
GONE = {
    "type": "ERROR",
    "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"},
}


@dataclass(frozen=True)
class Call:
    """A request that came. resource: plural, with its subresource. status: 0 where no answer was given."""

    method: str
    path: str
    resource: str
    watch: bool
    at: float
    status: int = 0

    @classmethod
    def of(cls, method: str, target: str) -> "Call":
        url = urlsplit(target)
        parts = url.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        parts = parts[2:] if parts[:1] == ["namespaces"] and len(parts) > 2 else parts
        resource = "/".join([*parts[:1], *parts[2:3]])
        return cls(method, target, resource, "true" in parse_qs(url.query).get("watch", ()), time.monotonic())

    @property
    def writes(self) -> bool:
        return self.method not in ("GET", "HEAD")

    @property
    def named(self) -> dict[str, str]:
        """Kind and name of the object, as a Status has them; no name for a list."""
        plural = self.resource.partition("/")[0]
        return {"kind": plural, "name": urlsplit(self.path).path.partition(f"/{plural}/")[2].partition("/")[0]}


@dataclass
class Fault:
    """What is done to the next `times` calls that fit.

    code 0: forwarded, and its answer thrown away. text: of the answer; without one, a Status.
    """

    fits: Callable[[Call], bool]
    code: int
    times: int
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""
    happened: int = 0


class Proxy:
    """The proxy and its faults."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.calls: list[Call] = []
        self.edits: dict[str, Edit] = {}
        # Lists of these resources are answered with what they were when this was set.
        self.replayed: dict[str, dict[str, bytes]] = {}
        self._lists: dict[str, dict[str, bytes]] = {}
        self._faults: list[Fault] = []
        self._held: set[str] = set()
        self._silenced: set[Call] = set()
        self._watches: list[tuple[Call, socket.socket]] = []
        # Asked first about each request; true when it has dealt with it.
        self.meddler: Callable[[_Handler, Call, bytes | None], bool] = lambda handler, call, body: False
        # What becomes of the events of each open watch, after `edits`.
        self.alter: dict[Call, Edit] = {}
        # Objects that were made, by resource and name.
        self.created: Counter[str] = Counter()
        self._lock = threading.Lock()
        pair = plane.authority.issue("proxy", "proxy", hosts=["IP:127.0.0.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        address = f"https://127.0.0.1:{self._server.server_port}"
        admin = plane.authority.pair("admin")
        self.kubeconfig = plane.authority.write_kubeconfig(folder / "proxy.conf", address, admin)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.cut()
        self._server.shutdown()
        self._server.server_close()

    def upstream(self) -> http.client.HTTPSConnection:
        pki = self.plane.authority
        context = ssl.create_default_context(cafile=str(pki.own.certificate))
        admin = pki.pair("admin")
        context.load_cert_chain(admin.certificate, admin.key)
        here = self.plane.endpoints
        return http.client.HTTPSConnection(here.address, here.apiserver, context=context, timeout=400)

    def fail(self, fits: Callable[[Call], bool], code: int, times: int = 1, *, text: str = "", **headers: str) -> Fault:
        """Answer the next calls that fit with an error, or, for code 0, carry them out and drop the answer."""
        fault = Fault(fits, code, times, headers, text)
        self._faults.append(fault)
        return fault

    def fault_for(self, call: Call) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.happened < fault.times and fault.fits(call):
                    fault.happened += 1
                    return fault
        return None

    def hold(self, *resources: str) -> None:
        """From now on no watch of these says anything; its connection stays open."""
        self._held |= set(resources)
        with self._lock:
            self._silenced |= {call for call, _ in self._watches if call.resource in resources}

    def release(self) -> None:
        """Watches that are opened from now on work; the silent ones stay silent."""
        self._held.clear()

    def is_held(self, call: Call) -> bool:
        return call.resource in self._held or call in self._silenced

    def open_watches(self) -> list[Call]:
        with self._lock:
            return [call for call, _ in self._watches]

    def silence(self, *calls: Call) -> None:
        """These watches say nothing any more; others do."""
        with self._lock:
            self._silenced |= set(calls)

    def cut(self, *resources: str) -> None:
        """Close open watches, of all resources when none is named."""
        with self._lock:
            for call, client in self._watches:
                if not resources or call.resource in resources:
                    with suppress(OSError):
                        client.shutdown(socket.SHUT_RDWR)

    def replay(self, *resources: str) -> None:
        """Answer lists of these as they were last answered, whatever happens meanwhile."""
        for resource in resources:
            self.replayed[resource] = dict(self._lists.get(resource, {}))

    def writes(self, since: int = 0) -> list[Call]:
        """Writes other than leases, from the call of that number on."""
        return [call for call in self.calls[since:] if call.writes and call.resource != "leases"]

    def note(self, call: Call, status: int) -> None:
        self.calls.append(Call(call.method, call.path, call.resource, call.watch, call.at, status))

    @contextmanager
    def watching(self, call: Call, client: socket.socket) -> Iterator[None]:
        with self._lock:
            self._watches.append((call, client))
        try:
            yield
        finally:
            with self._lock:
                self._watches.remove((call, client))


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with suppress(OSError, http.client.HTTPException):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        call = Call.of(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        if self.proxy.meddler(self, call, body):
            return
        fault = self.proxy.fault_for(call)
        if fault is not None and fault.code:
            self._refuse(call, fault)
        elif call.watch:
            self._watch(call)
        else:
            self._forward(call, body, drop=fault is not None)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _refuse(self, call: Call, fault: Fault) -> None:
        self.proxy.note(call, fault.code)
        reasons = {404: "NotFound", 409: "Conflict", 410: "Expired", 429: "TooManyRequests"}
        reason = reasons.get(fault.code, "InternalError")
        status = {"kind": "Status", "apiVersion": "v1", "code": fault.code, "reason": reason, "message": "injected"}
        if fault.code == 404:
            status["details"] = call.named
        self.answer(fault.code, fault.text.encode() or json.dumps(status).encode(), fault.headers)

    def _forward(self, call: Call, body: bytes | None, *, drop: bool) -> None:
        is_list = call.method == "GET" and call.resource in self.proxy.replayed
        if is_list and (old := self.proxy.replayed[call.resource].get(call.path)):
            self.proxy.note(call, 200)
            self.answer(200, old)
            return
        found = self.fetch(call, body)
        self.proxy.note(call, 0 if drop or found is None else found[0])
        if drop or found is None:
            self.close_connection = True
            return
        if call.method == "GET" and found[0] == 200:
            self.proxy._lists.setdefault(call.resource, {})[call.path] = found[1]
        self.answer(*found)

    def fetch(self, call: Call, body: bytes | None) -> tuple[int, bytes] | None:
        """What the server answers; None when it does not."""
        # A connection of its own: after a restart of the server a kept one would be an error of this proxy.
        connection = self.proxy.upstream()
        try:
            headers = {
                "Accept": "application/json",
                "Content-Type": self.headers.get("Content-Type", "application/json"),
            }
            connection.request(call.method, call.path, body, headers)
            answer = connection.getresponse()
            status, text = answer.status, answer.read()
        except OSError:
            return None
        finally:
            connection.close()
        if call.method == "POST" and status == 201:
            self.proxy.created[f"{call.resource}/{json.loads(text)['metadata']['name']}"] += 1
        return status, text

    def answer(self, status: int, text: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        """Answer the client. cut: with half of the text only, and close the connection."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in (headers or {}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text[: len(text) // 2] if cut else text)
        self.close_connection = self.close_connection or cut

    def _watch(self, call: Call) -> None:
        upstream = self.proxy.upstream()
        try:
            upstream.request("GET", call.path, headers={"Accept": "application/json"})
            answer = upstream.getresponse()
        except OSError:
            self.proxy.note(call, 0)
            self.close_connection = True
            return
        self.proxy.note(call, answer.status)
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with self.proxy.watching(call, self.connection):
            stalled = self.proxy.is_held(call)
            while line := answer.readline():
                stalled = stalled or self.proxy.is_held(call)
                if stalled:
                    continue
                for event in self._edited(call, line):
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        upstream.close()

    def _edited(self, call: Call, line: bytes) -> list[bytes]:
        edits = [edit for edit in (self.proxy.edits.get(call.resource), self.proxy.alter.get(call)) if edit is not None]
        if not edits:
            return [line]
        events = [json.loads(line)]
        for edit in edits:
            events = [each for event in events for each in edit(event)]
        return [json.dumps(event).encode() + b"\n" for event in events]

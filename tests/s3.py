"""A real object store that speaks S3 (versitygw) on the loopback interface, and a proxy before it that makes faults."""

import http.client
import http.server
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import obstore
from obstore.store import S3Store

from tests import tied
from tests.cluster.rig.binaries import binary
from tests.ports import free_port

KEY = "AKIACANARY0000000001"
# Searched for in everything that a job leaves.
SECRET = "canary-c6f1d7a2e94b4b0f8a1c/never+shown"


@dataclass(frozen=True)
class Server:
    """The store. folder: where buckets are folders and objects files."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self, name: str) -> S3Store:
        """A client of a bucket, which is made when it is missing."""
        (self.folder / name).mkdir(exist_ok=True)
        return S3Store(
            name,
            endpoint=self.url,
            region="us-east-1",
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )


@contextmanager
def serving(folder: Path, *options: str | Path) -> Iterator[Server]:
    """A store with its objects in a folder, whose file system must keep extended attributes. options: of versitygw."""
    objects = folder / "objects"
    objects.mkdir()
    port = free_port()
    environment = {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
    with (folder / "log").open("wb") as log:
        process = tied.popen(
            [binary("versitygw"), "--port", f"127.0.0.1:{port}", *options, "posix", objects],
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        until = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield Server(port, objects)
    finally:
        process.terminate()
        process.wait()


@dataclass
class Request:
    """A request on its way. number: of its kind (method and path), from 1."""

    method: str
    path: str
    number: int


@dataclass(frozen=True)
class Answer:
    """What the proxy answers in the store's place."""

    status: int
    body: bytes = b""


class Behind(Protocol):
    """What a proxy stands before."""

    @property
    def port(self) -> int: ...


# What the proxy does with a request: None passes it on; "cut" breaks the connection in the middle of the answer.
Fault = Callable[[Request], "Answer | str | None"]


def error(status: int, code: str) -> Answer:
    """An error as S3 writes it."""
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>m</Message><Token-0>{SECRET}</Token-0></Error>'
    return Answer(status, text.encode())


@dataclass
class Proxy:
    """The proxy. seen: requests, in their order."""

    port: int
    seen: list[Request] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def before(server: Behind, fault: Fault) -> Iterator[Proxy]:
    """A proxy before the store, or another server."""
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            with lock:
                # A client with a proxy names the whole URL.
                path = self.path if self.path.startswith("/") else "/" + self.path.split("/", 3)[3]
                kind = (self.command, path.partition("?")[0])
                number = sum((seen.method, seen.path) == kind for seen in proxy.seen) + 1
                request = Request(*kind, number)
                proxy.seen.append(request)
            made = fault(request)
            if isinstance(made, Answer):
                self.answer(made.status, [("Content-Type", "application/xml")], made.body)
                return
            there = http.client.HTTPConnection("127.0.0.1", server.port)
            there.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                there.putheader(name, value)
            there.endheaders(body)
            answer = there.getresponse()
            content = answer.read()
            headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")]
            there.close()
            self.answer(answer.status, headers, content, cut=made == "cut")

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name, _ in headers):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[: len(body) // 2] if cut else body)
            if cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = handle_one

    class Listener(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that was killed is no error."""

    listener = Listener(("127.0.0.1", 0), Handler)
    proxy = Proxy(listener.server_port)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        listener.shutdown()
        listener.server_close()


def upload(bucket: S3Store, folder: Path, prefix: str) -> None:
    """Put a folder's files into a bucket."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            obstore.put(bucket, f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())

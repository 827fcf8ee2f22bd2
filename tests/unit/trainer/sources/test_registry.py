"""The client of registries: tokens of a registry's own service, whom a password is shown, and where uploads resume."""

import base64
import gzip
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.job import secrets
from dpo_trainer.runtime.registry_keys import login_of
from dpo_trainer.sources.registry import Blob, Registry

pytestmark = pytest.mark.unit

PASSWORD = "canary-of-a-registry"
Handle = Callable[[http.server.BaseHTTPRequestHandler], tuple[int, dict[str, str], bytes]]


@contextmanager
def server(handle: Handle) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Host of a server, and what was asked of it: method, path and authorization."""
    seen: list[tuple[str, str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            seen.append((self.command, self.path, self.headers.get("authorization", "")))
            status, headers, body = handle(self)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = answer

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.server_port}", seen
    finally:
        listener.shutdown()
        listener.server_close()


def logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, **entry: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {host: entry or {"username": "me", "password": PASSWORD}}}))
    monkeypatch.setenv(names.ENV_REGISTRY_CONFIG, str(path))


def a_blob(content: bytes = b"weights") -> Blob:
    return Blob(f"sha256:{sha256(content).hexdigest()}", len(content), (content[:3], content[3:]))


def test_tokens_come_from_the_registrys_own_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[str] = []

    def service(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        given.append(f"token-{len(given) + 1}")
        return 200, {}, json.dumps({"token": given[-1]}).encode()

    def registry(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        # The first token is too old after one request.
        used = sum(authorization == "Bearer token-1" for _, _, authorization in seen)
        if not given or request.headers.get("authorization") != f"Bearer {given[-1]}" or (len(given) == 1 and used > 1):
            return 401, {"WWW-Authenticate": f'Bearer realm="http://{realm}/token",service="r"'}, b""
        return 404, {}, b""

    with server(service) as (realm, asked), server(registry) as (host, seen):
        logged_in(monkeypatch, tmp_path, host)
        client = Registry(host, "team/model", "label", plain=True)
        assert not client.has("sha256:0")
        assert not client.has("sha256:1")
        client.close()
    basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    assert given == ["token-1", "token-2"]
    assert {authorization for _, _, authorization in asked} == {f"Basic {basic}"}
    assert "scope=repository%3Ateam%2Fmodel%3Apull%2Cpush" in asked[0][1]
    # The password itself is not shown to a registry that asks for a token.
    assert not [authorization for _, _, authorization in seen if authorization.startswith("Basic")]
    assert PASSWORD in secrets()


def test_a_token_service_without_tls_gets_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    challenge = {"WWW-Authenticate": 'Bearer realm="http://tokens.example/x",service="r"'}
    with server(lambda _: (401, challenge, b"")) as (host, _):
        logged_in(monkeypatch, tmp_path, host)
        with pytest.raises(TrainerError, match="has no TLS") as failure:
            Registry(host, "a/b", "label", plain=True).has("sha256:0")
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION


def test_another_server_that_takes_uploads_is_shown_no_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blob = a_blob()

    def registry(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        if not request.headers.get("authorization"):
            return 401, {"WWW-Authenticate": 'Basic realm="r"'}, b""
        return (404, {}, b"") if request.command == "HEAD" else (202, {"Location": f"http://{store}/upload?x=1"}, b"")

    with server(lambda _: (201, {}, b"")) as (store, stored), server(registry) as (host, _):
        logged_in(monkeypatch, tmp_path, host)
        Registry(host, "a/b", "label", plain=True).upload(blob, None, lambda _: None)
    assert stored == [("PUT", f"/upload?x=1&digest={blob.digest}", "")]


def test_an_upload_that_the_registry_forgot_begins_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def registry(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        match request.command:
            case "POST":
                return 202, {"Location": "/v2/a/b/blobs/uploads/2"}, b""
            case "PUT":
                return 201, {}, b""
        return 404, {}, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}'

    noted: list[str] = []
    monkeypatch.setenv(names.ENV_REGISTRY_CONFIG, str(tmp_path / "none"))
    with server(registry) as (host, seen):
        Registry(host, "a/b", "label", plain=True).upload(
            a_blob(), f"http://{host}/v2/a/b/blobs/uploads/1", noted.append
        )
    assert [path.partition("?")[0].rpartition("/")[2] for method, path, _ in seen if method == "PUT"] == ["2"]
    assert noted == [f"http://{host}/v2/a/b/blobs/uploads/2"]


def test_an_offset_beyond_the_blob_begins_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def registry(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        match request.command:
            case "GET":
                return 204, {"Range": "0-999"}, b""
            case "POST":
                return 202, {"Location": "/v2/a/b/blobs/uploads/2"}, b""
            case "PUT":
                return 201, {}, b""
        return 404, {}, b""

    monkeypatch.setenv(names.ENV_REGISTRY_CONFIG, str(tmp_path / "none"))
    with server(registry) as (host, seen):
        Registry(host, "a/b", "label", plain=True).upload(a_blob(), f"http://{host}/v2/a/b/blobs/uploads/1", len)
    assert [path.partition("?")[0].rpartition("/")[2] for method, path, _ in seen if method == "PUT"] == ["2"]


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        ({"Content-Encoding": "gzip"}, gzip.compress(b"{}"), "a compressed answer"),
        ({}, b" " * ((4 << 20) + 1), "more than 4 MiB"),
    ],
)
def test_compressed_and_endless_answers_are_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, headers: dict[str, str], body: bytes, words: str
) -> None:
    encodings: list[str | None] = []

    def service(request: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        encodings.append(request.headers.get("accept-encoding"))
        return 200, headers, body

    def registry(_: http.server.BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        return 401, {"WWW-Authenticate": f'Bearer realm="http://{realm}/token",service="r"'}, b""

    with server(service) as (realm, _), server(registry) as (host, _):
        for asked in (realm, host):
            logged_in(monkeypatch, tmp_path, asked)
            with pytest.raises(TrainerError, match=words) as failure:
                Registry(asked, "a/b", "label", plain=True, sleep=lambda _: None).manifest("v1", ("a",))
            assert failure.value.exit_code == ExitCode.SOURCE_UNAVAILABLE
    assert set(encodings) == {"identity"}


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"username": "u", "password": "p"}, ("u", "p", "")),
        ({"auth": base64.b64encode(b"u:p:q").decode()}, ("u", "p:q", "")),
        ({"identitytoken": "t"}, ("", "", "t")),
        ({"auth": "%%%"}, None),
        ({"username": "u"}, None),
    ],
)
def test_logins_are_read_as_docker_writes_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, entry: dict[str, str], found: tuple[str, str, str] | None
) -> None:
    logged_in(monkeypatch, tmp_path, "https://registry.example", **entry)
    login = login_of("registry.example")
    assert (login and (login.user, login.password, login.token)) == found
    assert login_of("other.example") is None


def test_pieces_cover_bytes_and_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"cdefg")
    blob = Blob("sha256:0", 9, (b"ab", (tmp_path / "file", 5), b"hi"))
    assert b"".join(blob.pieces()) == b"abcdefghi"
    assert [b"".join(blob.pieces(start, end)) for start, end in ((1, 4), (6, 8), (7, 9), (2, 2))] == [
        b"bcd",
        b"gh",
        b"hi",
        b"",
    ]
    (tmp_path / "file").write_bytes(b"c")
    with pytest.raises(EOFError, match="ended early"):
        b"".join(blob.pieces())

"""A small hub on loopback: the part of the hub's HTTP API that huggingface_hub and datasets use to read repositories, and to write them."""

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"


@dataclass
class Repo:
    """A repository. access: open, private (404 without the token), gated (403 for its files, with or without it), closed (403 for its
    list too) or down (503).

    sent: what is sent instead of the files that are listed.
    """

    files: dict[str, bytes]
    access: str = "open"
    sent: dict[str, bytes] | None = None


@dataclass
class Hub:
    """Repositories by "models/<id>" or "datasets/<id>", and the requests that came. slow: seconds that a file takes.

    blobs: large files that were uploaded, by SHA-256. commits: their messages. lost: the next commit lands without an answer, and a later
    one on the same parent is refused.
    """

    repos: dict[str, Repo]
    slow: float = 0.0
    url: str = ""
    requests: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    lost: bool = False
    moved: bool = False


def files_of(folder: Path) -> dict[str, bytes]:
    """Files of a folder as a repository's."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextmanager
def serving(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Serve repositories until the block ends."""
    hub = Hub(repos)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            """A large file, by its SHA-256."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"PUT {self.path}")
            assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
            hub.blobs[self.path.rpartition("/")[2]] = body
            self._send(200, b"", {})

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = unquote(urlparse(self.path).path).strip("/")
            hub.requests.append(f"{self.command} {path}")
            if path == "api/validate-yaml":
                self._json({"errors": [], "warnings": []})
                return
            if path == "api/repos/create":
                self._create(json.loads(body))
                return
            kind, name, rest, is_api = _parse(path.replace(".git/info/lfs", "/lfs"))
            repo = hub.repos.get(f"{kind}/{name}")
            if refusal := _refusal(repo, self.headers.get("Authorization"), is_api):
                self._send(refusal[0], b"", {"X-Error-Code": refusal[1], "X-Error-Message": refusal[1]})
            elif is_api:
                self._api(repo, f"{name}", rest, body)
            elif rest == "lfs/objects/batch":
                self._batch(json.loads(body))
            else:
                self._file(repo, rest)

        def _api(self, repo: Repo, name: str, rest: str, body: bytes) -> None:
            action, _, rest = rest.partition("/")
            revision, _, inner = rest.partition("/")
            if revision not in ("", "main", COMMIT):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif action in ("", "revision"):
                siblings = [
                    {"rfilename": path, "blobId": _blob(data), **_entry(path, data)}
                    for path, data in repo.files.items()
                ]
                self._json(
                    {
                        "id": name,
                        "sha": COMMIT,
                        "siblings": siblings,
                        "tags": [],
                        "downloads": 0,
                        "private": repo.access == "private",
                    }
                )
            elif action == "preupload":
                modes = [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for f in json.loads(body)["files"]
                ]
                self._json({"files": modes})
            elif action == "commit":
                self._commit(repo, name, body)
            elif action == "tree":
                self._tree(repo, f"{inner}/" if inner else "", "recursive=true" in self.path.lower())
            elif action == "paths-info":
                wanted = json.loads(body)["paths"] if body.startswith(b"{") else _form(body)
                self._json([_entry(path, repo.files[path]) for path in wanted if path in repo.files])
            else:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

        def _create(self, wanted: dict[str, str]) -> None:
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, b"", {})
                return
            name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
            url = {"url": f"{hub.url}/{name}"}
            if f"models/{name}" in hub.repos:
                self._send(409, json.dumps(url).encode(), {"Content-Type": "application/json"})
                return
            private = wanted.get("private") or wanted.get("visibility") == "private"
            hub.repos[f"models/{name}"] = Repo({".gitattributes": b""}, access="private" if private else "open")
            self._json(url)

        def _batch(self, wanted: dict[str, list[dict[str, object]]]) -> None:
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/blobs/{o['oid']}"}}}
                if o["oid"] not in hub.blobs
                else o
                for o in wanted["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})

        def _commit(self, repo: Repo, name: str, body: bytes) -> None:
            """All lines of a commit, or none."""
            if hub.moved:
                self._send(412, b"", {"X-Error-Message": "A commit has happened since."})
                return
            files = dict(repo.files)
            for line in map(json.loads, body.splitlines()):
                match line["key"], line["value"]:
                    case "header", value:
                        hub.commits.append(value["summary"])
                    case "file", value:
                        files[value["path"]] = base64.b64decode(value["content"])
                    case "lfsFile", value:
                        files[value["path"]] = hub.blobs[value["oid"]]
                    case "deletedFile", value:
                        del files[value["path"]]
            repo.files = files
            if hub.lost:
                hub.moved = True
                self._send(503, b"", {})
                return
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.url}/{name}/commit/{COMMIT}"})

        def _tree(self, repo: Repo, folder: str, recursive: bool) -> None:
            below = {path: data for path, data in repo.files.items() if path.startswith(folder)}
            if not below:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            folders = {
                folder + path.removeprefix(folder).split("/")[0] for path in below if "/" in path.removeprefix(folder)
            }
            here = [
                _entry(path, data) for path, data in below.items() if recursive or "/" not in path.removeprefix(folder)
            ]
            self._json([{"type": "directory", "path": name, "size": 0, "oid": "0"} for name in sorted(folders)] + here)

        def _file(self, repo: Repo, rest: str) -> None:
            _, _, rest = rest.partition("/")
            revision, _, path = rest.partition("/")
            if revision not in ("main", COMMIT):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            elif path not in repo.files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                data = (repo.sent or repo.files)[path]
                headers = {
                    "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                    "X-Repo-Commit": COMMIT,
                    "Accept-Ranges": "bytes",
                }
                if self.command == "GET":
                    time.sleep(hub.slow)
                self._send(200, data, headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):  # a client that was killed
                    self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _parse(path: str) -> tuple[str, str, str, bool]:
    """Kind, id and rest of a path such as api/models/org/name/revision/main or datasets/org/name/resolve/main/a.json."""
    is_api = path.startswith("api/")
    parts = path.removeprefix("api/").split("/")
    kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
    return kind, "/".join(parts[:2]), "/".join(parts[2:]), is_api


def _refusal(repo: Repo | None, authorization: str | None, is_api: bool) -> tuple[int, str] | None:
    known = authorization == f"Bearer {TOKEN}"
    if repo is None:
        return (404, "RepoNotFound") if known else (401, "RepoNotFound")
    if repo.access == "down":
        return 503, "Unavailable"
    if repo.access == "closed" or (repo.access == "gated" and not is_api):
        return 403, "GatedRepo"
    if repo.access == "private" and not known:
        return 401, "RepoNotFound"
    return None


def _entry(path: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    if path.endswith((".safetensors", ".parquet")):
        sha256 = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 134}
    return entry


def _blob(data: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _form(body: bytes) -> list[str]:
    from urllib.parse import parse_qs

    return parse_qs(body.decode()).get("paths", [])

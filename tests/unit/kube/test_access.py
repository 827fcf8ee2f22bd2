"""Credentials that change while the operator runs, with real TLS servers and a kubeconfig that is replaced."""

import asyncio
import ssl

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration

from dpo_operator.kube import access
from dpo_operator.kube.access import Access
from dpo_operator.kube.client import Client
from tests.cluster.rig.pki import Authority, KeyPair, kubeconfig

pytestmark = pytest.mark.unit


class Server:
    """Answers every GET with the credentials that came with it, under a certificate of this authority."""

    def __init__(self, pair: KeyPair, port: int = 0):
        self._pair, self.port = pair, port

    async def __aenter__(self):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._pair.certificate, self._pair.key)
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *error):
        await self._runner.cleanup()

    async def _answer(self, request):
        return web.json_response({"authorization": request.headers.get("Authorization", "")})


def authority(folder):
    """An authority, and a pair of a server on loopback that it has signed."""
    made = Authority.create(folder)
    return made, made.issue("server", "server", hosts=["IP:127.0.0.1"])


def test_a_rotated_authority_and_client_certificate_are_picked_up(tmp_path, monkeypatch):
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    monkeypatch.setattr(access, "RELOAD_SECONDS", 0.0)
    (first, old), (second, new) = authority(tmp_path / "first"), authority(tmp_path / "second")

    def settings(of, port):
        file.write_text(yaml.safe_dump(kubeconfig(f"https://127.0.0.1:{port}", of.own.certificate, of.issue("a", "a"))))

    async def scenario():
        async with Server(old) as server:
            settings(first, server.port)
            client = Client(await Access.load())
            assert await client.request("GET", "/version") == {"authorization": ""}
        async with client:
            async with Server(new, server.port):
                with pytest.raises(ConnectionError):
                    await client.request("GET", "/version")
                settings(second, server.port)
                assert await client.request("GET", "/version") == {"authorization": ""}
            # What was trusted stays trusted: servers behind a load balancer are rotated one by one.
            async with Server(old, server.port):
                assert await client.request("GET", "/version") == {"authorization": ""}

    asyncio.run(scenario())


def test_credentials_are_not_reloaded_at_each_failure(tmp_path, monkeypatch):
    file = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(file))
    (first, _), (_, stranger) = authority(tmp_path / "first"), authority(tmp_path / "second")

    async def scenario():
        async with Server(stranger) as server:
            address = f"https://127.0.0.1:{server.port}"
            file.write_text(yaml.safe_dump(kubeconfig(address, first.own.certificate, first.issue("a", "a"))))
            loaded = await Access.load()
            assert not await loaded.reload()
            async with Client(loaded) as client:
                with pytest.raises(ConnectionError):
                    await client.request("GET", "/version")

    asyncio.run(scenario())


class Proxy:
    """Notes what it is asked for, and connects nobody."""

    def __init__(self):
        self.heads: list[bytes] = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error):
        self._server.close()

    async def _connected(self, reader, writer):
        self.heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        writer.close()


@pytest.mark.parametrize(("none", "asked"), [("", 2), ("127.0.0.1", 0)])
def test_proxy_of_the_environment_is_found_once(monkeypatch, none, asked):
    async def scenario():
        async with Proxy() as proxy:
            for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
            monkeypatch.setenv("no_proxy", none)
            configuration = Configuration()
            configuration.host = "https://127.0.0.1:1"
            async with Client(Access(configuration)) as client:
                for _ in range(2):
                    with pytest.raises(OSError):
                        await client.request("GET", "/api")
                    monkeypatch.delenv("https_proxy", raising=False)
            assert len(proxy.heads) == asked
            assert all(head.startswith(b"CONNECT 127.0.0.1:1 ") for head in proxy.heads)
            assert all(b"Proxy-Authorization: Basic" in head for head in proxy.heads)

    asyncio.run(scenario())

"""Connection settings of the API server: address, TLS, and credentials that are refreshed when they were rotated.

Shared by the operator's own client and kopf's watches. The kubernetes library only loads the configuration and runs login
plugins; its generated API classes are not used, because they cost more CPU than everything else.
"""

import os
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.helpers import get_env_proxy_for_url
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.configuration import Configuration
from yarl import URL

from dpo_operator.api import names

CONNECTIONS = 64
IDLE_SECONDS = 60.0
# Minimum interval between reloads of rejected credentials.
RELOAD_SECONDS = 10.0

Send = Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]


class Access:
    """Address and credentials for the API server."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._reloaded = time.monotonic()
        self._contexts: list[ssl.SSLContext] = []

    @classmethod
    async def load(cls) -> "Access":
        """Use $KUBECONFIG when it's set, else the pod's service account, else ~/.kube/config."""
        configuration = Configuration()
        await _load(configuration)
        return cls(configuration)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self._configuration.host).rstrip("/")

    async def reload(self) -> bool:
        """Reload rejected credentials; False if they were reloaded less than RELOAD_SECONDS ago."""
        if time.monotonic() - self._reloaded < RELOAD_SECONDS:
            return False
        self._reloaded = time.monotonic()
        await _load(self._configuration)
        for context in self._contexts:
            self._renew(context)
        return True

    def open(self, **options: Any) -> aiohttp.ClientSession:
        """A new aiohttp session. options: more arguments of it."""
        connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=self._tls(), keepalive_timeout=IDLE_SECONDS)
        return aiohttp.ClientSession(
            connector=connector,
            # Shown as the manager of fields and in audit logs.
            headers={"Accept": "application/json", "User-Agent": names.PART_OF},
            middlewares=(self._authorize,),
            **self._proxy(),
            **options,
        )

    def _proxy(self) -> dict[str, Any]:
        """The proxy of the configuration, else that of the environment. aiohttp would look for it at each request, in another thread."""
        if self._configuration.proxy:
            return {"proxy": self._configuration.proxy}
        with suppress(LookupError):
            proxy, auth = get_env_proxy_for_url(URL(self.server))
            return {"proxy": proxy, "proxy_auth": auth}
        return {}

    async def _authorize(self, request: aiohttp.ClientRequest, send: Send) -> aiohttp.ClientResponse:
        # Per request, because service account tokens rotate while the pod runs.
        if token := await self._configuration.get_api_key_with_prefix("BearerToken"):
            request.headers["Authorization"] = str(token)
        try:
            return await send(request)
        except aiohttp.ClientSSLError:
            # Before anything of the request was sent. The cluster's authority may have been rotated.
            if not await self.reload():
                raise
            return await send(request)

    def _tls(self) -> ssl.SSLContext:
        settings = self._configuration
        context = ssl.create_default_context(cafile=settings.ssl_ca_cert, cadata=settings.ca_cert_data)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)
        if settings.disable_strict_ssl_verification:
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not settings.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self._contexts.append(context)
        return context

    def _renew(self, context: ssl.SSLContext) -> None:
        """Use the present certificates for new connections. An authority that was trusted before stays trusted."""
        settings = self._configuration
        if settings.ssl_ca_cert or settings.ca_cert_data:
            context.load_verify_locations(cafile=settings.ssl_ca_cert, cadata=settings.ca_cert_data)
        if settings.cert_file:
            context.load_cert_chain(settings.cert_file, settings.key_file)


async def _load(configuration: Configuration) -> None:
    default = Path.home() / ".kube" / "config"
    if path := os.environ.get("KUBECONFIG"):
        await kube_config.load_kube_config(config_file=path, client_configuration=configuration)  # type: ignore[no-untyped-call]
    elif "KUBERNETES_SERVICE_HOST" in os.environ:
        kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        await kube_config.load_kube_config(config_file=str(default), client_configuration=configuration)  # type: ignore[no-untyped-call]

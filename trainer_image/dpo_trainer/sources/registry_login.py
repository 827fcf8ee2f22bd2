"""How a request to a registry is authorized: by a user and password, or by a token that the registry's own service gives for them."""

import base64
import json
import re
from urllib.parse import urlsplit

import httpx

from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.registry_keys import login_of
from dpo_trainer.sources.registry_answers import answer_to

_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"')


class Authorization:
    """What is sent with requests to one registry. scope: what a token is asked for. label: for messages."""

    def __init__(self, client: httpx.Client, host: str, scope: str, label: str) -> None:
        self._client, self._host, self._scope, self._label = client, host, scope, label
        self._login = login_of(host)
        self._value = ""
        self._of = ""

    @property
    def described(self) -> str:
        """Who asked, for messages."""
        return "to a request without a password" if self._login is None else "to the user of the Secret"

    def headers(self, url: str) -> dict[str, str]:
        """Headers of a request to a URL; empty for another server than the one that asked for them."""
        return {"Authorization": self._value} if self._value and urlsplit(url).netloc == self._of else {}

    def renew(self, challenge: str) -> bool:
        """Get what the registry asks for in its header WWW-Authenticate; whether there is something new to try.

        Raises httpx.HTTPError; TrainerError INVALID_CONFIGURATION for a service that would get the password without TLS.
        """
        before, kind = self._value, challenge.partition(" ")[0].lower()
        parameters = dict(_PARAMETER.findall(challenge))
        self._of = self._host if self._host != "docker.io" else "registry-1.docker.io"
        if kind == "basic" and self._login is not None:
            self._value = self._basic()
        elif kind == "bearer" and "realm" in parameters:
            self._value = self._token(parameters)
        return self._value != before and bool(self._value)

    def _basic(self) -> str:
        assert self._login is not None
        both = f"{self._login.user}:{self._login.password}".encode()
        return f"Basic {base64.b64encode(both).decode()}"

    def _token(self, parameters: dict[str, str]) -> str:
        """A token of the registry's service; empty when it gives none."""
        realm, service = parameters["realm"], parameters.get("service", "")
        loopback = urlsplit(realm).hostname in ("localhost", "127.0.0.1", "::1")
        if self._login is not None and urlsplit(realm).scheme != "https" and not loopback:
            raise invalid_configuration(
                f"{self._label}: the registry's token service {realm} has no TLS, and would be sent the password; use a registry with TLS"
            )
        if self._login is not None and self._login.token:
            asked = {
                "grant_type": "refresh_token",
                "service": service,
                "scope": self._scope,
                "client_id": "dpo-operator",
            }
            answer = answer_to(self._client, "POST", realm, data=asked | {"refresh_token": self._login.token})
        else:
            headers = {"Authorization": self._basic()} if self._login is not None else {}
            parameters = {"service": service, "scope": self._scope}
            answer = answer_to(self._client, "GET", realm, params=parameters, headers=headers)
        if answer.status >= 500 or answer.status == 429:
            raise httpx.ReadError(f"HTTP {answer.status}")
        try:
            found = json.loads(answer.content)
            token = found.get("token") or found.get("access_token") if answer.status == 200 else ""
        except (ValueError, AttributeError, RecursionError):
            token = ""
        return f"Bearer {token}" if token else ""

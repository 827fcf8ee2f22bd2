"""Users and passwords of registries, from a file as `docker login` writes it and Secrets of type kubernetes.io/dockerconfigjson hold it."""

import base64
import binascii
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_operator.api import names

# What clients write for Docker's own registry.
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/")


@dataclass(frozen=True)
class Login:
    """user, password: for basic authentication. token: an identity token, which is given in their place."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def logins() -> dict[str, Login]:
    """Logins by the registry's host and port; empty without a file, or for one that is no such file."""
    try:
        document = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    entries = document.get("auths") if isinstance(document, dict) else None
    found = {host: _login(entry) for host, entry in (entries if isinstance(entries, dict) else {}).items()}
    return {host: login for host, login in found.items() if login is not None}


def login_of(host: str) -> Login | None:
    """The login of a registry. host: with its port, as in an address; None without one."""
    known = logins()
    same = _DOCKER_HUB if host in _DOCKER_HUB else (host, f"https://{host}", f"http://{host}", f"https://{host}/v1/")
    return next((known[name] for name in same if name in known), None)


def passwords() -> list[str]:
    """Texts that must not appear in messages."""
    return [text for login in logins().values() for text in (login.password, login.token) if text]


def _file() -> Path:
    """In a pod where the Secret is mounted; elsewhere the user's own."""
    if named := os.environ.get(names.ENV_REGISTRY_CONFIG):
        return Path(named)
    mounted = Path(names.REGISTRY_CONFIG)
    if mounted.is_file():
        return mounted
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def _login(entry: Any) -> Login | None:
    if not isinstance(entry, dict):
        return None
    user, password, token = (str(entry.get(key) or "") for key in ("username", "password", "identitytoken"))
    try:
        both = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode()
    except (binascii.Error, ValueError):
        both = ""
    if both and not password:
        user, _, password = both.partition(":")
    return Login(user, password, token) if token or (user and password) else None

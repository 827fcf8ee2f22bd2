"""Certificates and kubeconfig files, by the openssl command."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.rig.shell import run

DAYS = "30"
# openssl's own configuration would make every certificate an authority.
OPENSSL_CONFIG = "[req]\ndistinguished_name = dn\n[dn]\n"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder; every client and server certificate of one cluster is signed by it."""

    folder: Path

    @property
    def own(self) -> KeyPair:
        return self.pair("ca")

    @property
    def service_accounts(self) -> KeyPair:
        """Signs and verifies service account tokens."""
        return self.pair("service-accounts")

    def pair(self, name: str) -> KeyPair:
        return KeyPair(self.folder / f"{name}.crt", self.folder / f"{name}.key")

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """A new authority, with the key pair for service account tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        (folder / "openssl.cnf").write_text(OPENSSL_CONFIG)
        authority = cls(folder)
        for name in ("ca", "service-accounts"):
            authority.request(name, f"/CN=dpo-rig-{name}", ["basicConstraints=critical,CA:TRUE"])
        return authority

    def issue(self, name: str, user: str, *, groups: Sequence[str] = (), hosts: Sequence[str] = ()) -> KeyPair:
        """A certificate for a user of these groups, which is also a server's when it has hosts ("IP:…", "DNS:…")."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        extensions = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth,serverAuth"]
        if hosts:
            extensions.append("subjectAltName=" + ",".join(hosts))
        return self.request(name, subject, extensions, signer=self.own)

    def request(self, name: str, subject: str, extensions: Sequence[str], *, signer: KeyPair | None = None) -> KeyPair:
        pair = self.pair(name)
        signing = ("-CA", signer.certificate, "-CAkey", signer.key) if signer else ()
        added = [word for extension in extensions for word in ("-addext", extension)]
        config = self.folder / "openssl.cnf"
        output = ("-days", DAYS, "-keyout", pair.key, "-out", pair.certificate)
        run(["openssl", "req", "-x509", "-config", config, *NEW_KEY, *signing, "-subj", subject, *added, *output])
        return pair

    def write_kubeconfig(self, file: Path, server: str, client: KeyPair) -> Path:
        """A kubeconfig with everything embedded, so that it can be copied."""
        file.write_text(json.dumps(kubeconfig(server, self.own.certificate, client), indent=1))
        file.chmod(0o600)
        return file


def kubeconfig(server: str, authority: Path, client: KeyPair) -> dict[str, object]:
    def embedded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "rig", "cluster": {"server": server, "certificate-authority-data": embedded(authority)}}],
        "users": [
            {
                "name": "rig",
                "user": {
                    "client-certificate-data": embedded(client.certificate),
                    "client-key-data": embedded(client.key),
                },
            }
        ],
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "rig"}}],
        "current-context": "rig",
    }

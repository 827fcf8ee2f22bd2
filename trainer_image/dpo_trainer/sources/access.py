"""How this process reaches stores and hubs: keys from mounted files, endpoints, proxy and certificates from the job file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpo_operator.api import access as api
from dpo_operator.api import names
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration
from dpo_trainer.runtime.job import credentials, credentials_folder

_KNOWN = tuple(name for store in api.CREDENTIALS.values() for name in store)
# What each key is of no use without.
_NEEDS = {
    "AWS_ACCESS_KEY_ID": ("AWS_SECRET_ACCESS_KEY",),
    "AWS_SECRET_ACCESS_KEY": ("AWS_ACCESS_KEY_ID",),
    "AWS_SESSION_TOKEN": ("AWS_ACCESS_KEY_ID",),
    "AZURE_CLIENT_SECRET": ("AZURE_CLIENT_ID", "AZURE_TENANT_ID"),
}


@dataclass(frozen=True)
class Access:
    """Keys and settings.

    credentials: keys by their names. folder: where they are files. certificates: PEM that is trusted in addition to the public ones.
    identity: this pod has the identity of a ServiceAccount in a cloud. named: field of the job that names the Secret with the keys.
    """

    settings: api.Access = field(default=api.Access())
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path = Path(names.CREDENTIALS_DIR)
    certificates: str | None = field(default=None, repr=False)
    identity: bool = False
    named: str = api.CREDENTIALS_FIELD

    def has(self, scheme: str) -> bool:
        """Whether there is a key for a store. scheme: of api.CREDENTIALS."""
        return any(name in self.credentials for name in api.CREDENTIALS[scheme] if name not in api.PUBLIC_CREDENTIALS)

    def apply(self, folder: Path) -> None:
        """Set the variables that the hub's client reads when it is imported. folder: for the file of certificates."""
        variables: dict[str, str] = {}
        if (endpoint := self.settings.hub.endpoint) is not None:
            variables["HF_ENDPOINT"] = endpoint
        if (proxy := self.settings.proxy) is not None:
            values = {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url, "NO_PROXY": ",".join(proxy.exceptions)}
            variables |= values | {name.lower(): value for name, value in values.items()}
        if self.certificates is not None:
            # The variable replaces the public certificates, so the file has them too.
            import certifi

            bundle = folder / "ca.pem"
            folder.mkdir(parents=True, exist_ok=True)
            bundle.write_text(
                f"{Path(certifi.where()).read_text(encoding='utf-8')}\n{self.certificates}", encoding="utf-8"
            )
            variables["SSL_CERT_FILE"] = variables["REQUESTS_CA_BUNDLE"] = str(bundle)
        if self.certificates is not None or self.settings.hub.endpoint is not None:
            # Its second protocol goes to hosts of its own, past a mirror, and reads no file of certificates.
            variables["HF_HUB_DISABLE_XET"] = "1"
        os.environ.update(variables)


def from_environment(
    settings: api.Access,
    own: api.SecretRef | None = None,
    field_of_own: str = api.PUSH_CREDENTIALS_FIELD,
    folder: Path | None = None,
) -> Access:
    """Access of this process: the job's settings, and what is mounted.

    own: the Secret of a push or a mirror that has keys of its own, and the field that names it. folder: where the keys are; None for the usual one.
    Raises TrainerError: INVALID_CONFIGURATION for a Secret that has other keys than stores have, or half of a pair; INPUT_NOT_FOUND for
    certificates that are named and not there.
    """
    folder = folder or credentials_folder()
    found = credentials(folder)
    secret = own or settings.credentials_secret_ref
    named = api.CREDENTIALS_FIELD if own is None else field_of_own
    where = named + (f" ({secret.name})" if secret is not None else "")
    if others := sorted(found.keys() - set(_KNOWN)):
        raise invalid_configuration(
            f"{where}: expected keys among {', '.join(_KNOWN)}, found {', '.join(name[:64] for name in others[:6])}; rename or remove them"
        )
    for name, needed in _NEEDS.items():
        if name in found and (missing := [other for other in needed if other not in found]):
            raise invalid_configuration(f"{where}: has {name} and lacks {missing[0]}; add it")
    identity = os.environ.get(names.ENV_IDENTITY) == "1"
    return Access(settings, found, folder, _certificates(settings), identity, named)


def _certificates(settings: api.Access) -> str | None:
    """The certificates of the ConfigMap; of a file that DPO_CA_FILE names, where there is no cluster."""
    reference = settings.ca_bundle_ref
    if reference is None:
        return None
    path = Path(os.environ.get(names.ENV_CA_FILE, names.CA_FILE))
    label = f"spec.access.caBundleRef: {reference.key} of ConfigMap {reference.name}"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise input_not_found(
            f"{label} is not at {path} ({error.strerror}); without a cluster, name a file in {names.ENV_CA_FILE}"
        ) from error
    except UnicodeDecodeError as error:
        raise invalid_configuration(f"{label}: expected certificates as PEM, found other bytes") from error
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise invalid_configuration(f"{label}: expected certificates as PEM, found no BEGIN CERTIFICATE")
    return text

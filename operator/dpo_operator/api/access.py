"""How prepare, and an export that pushes, reach object stores and hubs: keys, endpoints, proxy and certificates. Ranks reach none."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints

from dpo_operator.api.base import ApiModel, DataKey, ObjectName

# No user and password: they belong in a Secret.
HttpUrl = Annotated[
    str, StringConstraints(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+(/[A-Za-z0-9._~/-]*)?$", min_length=1, max_length=512)
]
# The same with a host that is one, and a port from 1 to 65535.
_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
ServerUrl = Annotated[
    str,
    StringConstraints(
        pattern=rf"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:{_PORT})?(/[A-Za-z0-9._~/-]*)?$",
        min_length=1,
        max_length=512,
    ),
]

# Keys that a Secret with credentials may have, by what reads them. They are the names of the variables that each store's own tools read;
# GOOGLE_APPLICATION_CREDENTIALS holds the JSON itself.
CREDENTIALS: dict[str, tuple[str, ...]] = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_TENANT_ID", "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET",
    ),
    "hf": ("HF_TOKEN",),
}  # fmt: skip
# Of these, the ones that only name an account: messages may show them.
PUBLIC_CREDENTIALS = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_TENANT_ID", "AZURE_CLIENT_ID")
# Fields that name such a Secret.
CREDENTIALS_FIELD = "spec.access.credentialsSecretRef"
PUSH_CREDENTIALS_FIELD = "spec.export.push.credentialsSecretRef"
MIRROR_CREDENTIALS_FIELD = "spec.checkpoint.mirror.credentialsSecretRef"

HUB_URL = "hf://"
# Folder in an object store that is written to; a pattern without its anchors.
STORE_FOLDER = r"(s3|gs|az|abfs)://[A-Za-z0-9][A-Za-z0-9._-]*/[^\x00-\x20\x7f-\xa0]+"


# Repository of a registry with a tag; a pattern without its anchors.
REGISTRY_URL = "oci://"
_PART = "[a-z0-9]+([._-]+[a-z0-9]+)*"
REGISTRY_REPOSITORY = rf"oci://[A-Za-z0-9][A-Za-z0-9.-]*(:{_PORT})?(/{_PART})+:[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}"


class SecretRef(ApiModel):
    """A Secret of the job's namespace, with all its keys."""

    name: ObjectName = Field(description="Name of the Secret.")


class ConfigMapKeyRef(ApiModel):
    """A key of a ConfigMap in the job's namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: DataKey = Field(default="ca.crt", description="Key in the ConfigMap.")


class S3(ApiModel):
    """Where s3:// is."""

    endpoint: HttpUrl | None = Field(
        default=None, description="URL of MinIO, Ceph or another S3-compatible store. Default: Amazon's for the region."
    )
    region: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9-]+$",
        description="Region of the buckets. Default: us-east-1.",
    )


class Azure(ApiModel):
    """Where az:// is."""

    account: str | None = Field(
        default=None,
        min_length=3,
        max_length=24,
        pattern=r"^[a-z0-9]+$",
        description="Storage account. Default: AZURE_STORAGE_ACCOUNT_NAME in the credentials.",
    )
    endpoint: HttpUrl | None = Field(default=None, description="URL of the account. Default: Azure's own.")


class GoogleStorage(ApiModel):
    """Where gs:// is."""

    endpoint: HttpUrl | None = Field(default=None, description="URL of a store with the same API. Default: Google's.")


class Hub(ApiModel):
    """Where hub ids and hf:// are."""

    endpoint: HttpUrl | None = Field(
        default=None, description="URL of a mirror of the hub. Default: https://huggingface.co."
    )


class Proxy(ApiModel):
    """A proxy on the way to stores and hubs."""

    url: HttpUrl = Field(description="Its URL, for http and https.")
    exceptions: list[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.:/*-]+$", min_length=1, max_length=253)]
    ] = Field(default=[], max_length=64, description="Hosts, domains and addresses that are reached without the proxy.")


class Access(ApiModel):
    """How prepare and export.push reach object stores and hubs. Training pods get none of it."""

    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with the keys of object stores, named like the stores' environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
        "AWS_SESSION_TOKEN; GOOGLE_APPLICATION_CREDENTIALS, the JSON key itself; AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, "
        "AZURE_STORAGE_SAS_TOKEN, or AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET; HF_TOKEN. Other keys are refused. Default: "
        "the identity of pod.serviceAccountName, or none, for public buckets.",
    )
    s3: S3 = Field(default=S3(), description="s3://, Amazon S3 or a compatible store.")
    gs: GoogleStorage = Field(default=GoogleStorage(), description="gs://, Google Cloud Storage.")
    azure: Azure = Field(default=Azure(), description="az://, Azure Blob Storage.")
    hub: Hub = Field(default=Hub(), description="The hub.")
    proxy: Proxy | None = Field(default=None, description="Proxy for all of them. Default: none.")
    ca_bundle_ref: ConfigMapKeyRef | None = Field(
        default=None,
        description="ConfigMap with PEM certificates that are trusted in addition to the public ones.",
    )


def hub_repository(address: str) -> str | None:
    """Repository that hf://org/name names, org/name; None for an address elsewhere."""
    return address.removeprefix(HUB_URL) if address.startswith(HUB_URL) else None


def is_registry(address: str) -> bool:
    """Whether an address of a push is in an OCI registry."""
    return address.startswith(REGISTRY_URL)


def registry_parts(address: str) -> tuple[str, str, str]:
    """Host with its port, repository and tag of oci://host/repository:tag."""
    host, _, rest = address.removeprefix(REGISTRY_URL).partition("/")
    repository, _, tag = rest.rpartition(":")
    return host, repository, tag


def url_port(url: str) -> int | None:
    """Port that an http or https URL names or implies; None for one that is no port."""
    try:
        found = urlsplit(url)
        return found.port or (443 if found.scheme == "https" else 80)
    except ValueError:
        return None

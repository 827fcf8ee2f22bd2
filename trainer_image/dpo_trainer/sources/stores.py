"""Object stores: S3 and what speaks it, Google Cloud Storage, Azure Blob Storage."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.sources.access import Access
from dpo_trainer.sources.store_answers import changed, explain

# Schemes of URLs, and the store that each means.
SCHEMES = {"s3": "s3", "gs": "gs", "az": "az", "abfs": "az"}
_STORES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}

# One request: a part of 16 MiB, also over a slow line. A connection on which nothing comes is given up sooner.
REQUEST_SECONDS, READ_SECONDS, CONNECT_SECONDS = 300, 60, 10
# Tries of a request that got no answer or a 5xx, with waits from 0.25 s to 15 s between them, for two minutes at most.
RETRIES, RETRY_SECONDS = 6, 120
# Bytes of a part of an object that is written, and how many are on their way at once.
WRITTEN_AT_ONCE, WRITERS = 16 << 20, 4
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=0.25), timedelta(seconds=15)

# Variables by which a cloud, or a user of this machine, gives an identity without keys in the job.
_IDENTITY = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    "az": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY", "AZURE_CLIENT_SECRET", "AZURE_FEDERATED_TOKEN_FILE"),
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One object. etag: changes with its content; None where a store gives none."""

    key: str
    size: int
    etag: str | None


@dataclass(frozen=True)
class Store:
    """A bucket or container. kind: s3, gs or az. client: of the library obstore. endpoint: where the job names one.

    named: field of the job that names the Secret with the keys.
    """

    kind: str
    client: Any
    endpoint: str | None
    named: str

    def below(self, prefix: str, label: str) -> list[Stored]:
        """Objects in a folder and the folders below it; none when there is no such folder. Raises TrainerError."""
        import obstore

        try:
            found: Iterable[Any] = [meta for chunk in obstore.list(self.client, prefix or None) for meta in chunk]
        except Exception as error:
            raise self.explained(error, label) from None
        return [_stored(meta) for meta in found]

    def head(self, key: str, label: str) -> Stored | None:
        """One object; None when there is none. Raises TrainerError."""
        import obstore

        try:
            return _stored(obstore.head(self.client, key))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self.explained(error, label) from None

    def part(self, found: Stored, start: int, end: int, label: str) -> bytes:
        """Bytes from start up to end of an object, if it is still the one that was found.

        An answer that is cut off is continued from where it ended, RETRIES times. Raises TrainerError.
        """
        import obstore

        options: Any = {"range": (start, end)} | ({} if found.etag is None else {"if_match": found.etag})
        try:
            content = bytes(obstore.get(self.client, found.key, options=options).bytes())
        except Exception as error:
            raise self.explained(error, label) from None
        if len(content) != end - start:
            raise changed(label)
        return content

    def attributes(self, key: str, label: str) -> dict[str, str]:
        """What is noted beside an object. Raises TrainerError."""
        import obstore

        try:
            return {
                name: str(value)
                for name, value in obstore.get(self.client, key, options={"head": True}).attributes.items()
            }
        except Exception as error:
            raise self.explained(error, label) from None

    def put(self, key: str, pieces: Iterator[bytes], size: int, attributes: dict[str, str], label: str) -> None:
        """Write an object, which is there when all pieces were written. attributes: noted beside it.

        Raises TrainerError, and what the iterator raises.
        """
        import obstore

        failed: list[Exception] = []

        def kept() -> Iterator[bytes]:
            try:
                yield from pieces
            except Exception as error:
                failed.append(error)
                raise

        try:
            # A small object is one request; a larger one is made of parts.
            content: Any = kept() if size > WRITTEN_AT_ONCE else b"".join(kept())
            obstore.put(
                self.client,
                key,
                content,
                attributes=dict(attributes),
                chunk_size=WRITTEN_AT_ONCE,
                max_concurrency=WRITERS,
            )
        except Exception as error:
            if failed:
                raise failed[0] from None
            raise self.explained(error, label) from None

    def create(self, key: str, content: bytes, label: str) -> None:
        """Write a small object, unless there is one of this name already. Raises TrainerError."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self.client, key, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return
        except Exception as error:
            raise self.explained(error, label) from None

    def delete(self, key: str, label: str) -> None:
        """Delete an object, if it is there. Raises TrainerError."""
        import obstore

        try:
            obstore.delete(self.client, key)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self.explained(error, label) from None

    def explained(self, error: Exception, label: str) -> Exception:
        """The TrainerError for an error of obstore; the error itself when it means nothing to the user.

        Raise it from None: the library's error quotes the store's answer, and that may quote a session token.
        """
        where = self.endpoint or {"s3": "Amazon S3"}.get(self.kind, _STORES[self.kind])
        return explain(error, label, where=where, named=self.named, tries=RETRIES) or error


def split(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and key of a URL."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key.strip("/")


def open_store(url: str, access: Access, *, writes: bool = False) -> Store:
    """The store of a URL; nothing is asked of it yet. writes: objects are written too. Raises TrainerError INVALID_CONFIGURATION."""
    from obstore import store as obstore_store

    scheme, bucket, _ = split(url)
    kind = SCHEMES[scheme]
    make = {"s3": obstore_store.S3Store, "gs": obstore_store.GCSStore, "az": obstore_store.AzureStore}[kind]
    config, endpoint = _config(kind, access)
    if writes and kind == "s3":
        # The store compares what it got with the digest that was sent with it, part by part.
        config["checksum_algorithm"] = "SHA256"
    try:
        client = make(bucket, config=config, client_options=_client_options(access, endpoint), retry_config=_retries())
    except Exception as error:
        if _identified(kind, access):
            raise TrainerError(
                ExitCode.INVALID_CONFIGURATION,
                f"{scheme}://{bucket}: the credentials for {_STORES[kind]} can't be read; compare the keys of {access.named} with "
                "docs/sources.md",
            ) from None  # the library's message may quote the key
        raise TrainerError(
            ExitCode.INVALID_CONFIGURATION,
            f"{scheme}://{bucket}: {_first_line(error)}; see spec.access.{'azure.account' if kind == 'az' else kind}",
        ) from error
    return Store(kind, client, endpoint, access.named)


def _config(kind: str, access: Access) -> tuple[dict[str, Any], str | None]:
    """Settings of a store, and its endpoint where the job names one. What is not here comes from the process's variables."""
    settings, keys = access.settings, access.credentials
    found: dict[str, Any] = {}
    if kind == "s3":
        names = {
            "AWS_ACCESS_KEY_ID": "access_key_id",
            "AWS_SECRET_ACCESS_KEY": "secret_access_key",
            "AWS_SESSION_TOKEN": "session_token",
        }
        found = {"region": settings.s3.region, "endpoint": settings.s3.endpoint}
        endpoint = settings.s3.endpoint
    elif kind == "gs":
        names = {}
        if "GOOGLE_APPLICATION_CREDENTIALS" in keys:
            found["application_credentials"] = str(access.folder / "GOOGLE_APPLICATION_CREDENTIALS")
        endpoint = settings.gs.endpoint
        found["base_url"] = endpoint
    else:
        names = {
            "AZURE_STORAGE_ACCOUNT_NAME": "account_name", "AZURE_STORAGE_ACCOUNT_KEY": "account_key", "AZURE_STORAGE_SAS_TOKEN": "sas_key",
            "AZURE_TENANT_ID": "tenant_id", "AZURE_CLIENT_ID": "client_id", "AZURE_CLIENT_SECRET": "client_secret",
        }  # fmt: skip
        endpoint = settings.azure.endpoint
        found["endpoint"] = endpoint
    found |= {ours: keys[name] for name, ours in names.items() if name in keys}
    if kind == "az" and settings.azure.account is not None:
        found["account_name"] = settings.azure.account
    if not _identified(kind, access):
        # Otherwise the library would ask the node's metadata service for an identity, which is not the job's, and wait for it.
        found["skip_signature"] = True
    return {key: value for key, value in found.items() if value is not None}, endpoint


def _identified(kind: str, access: Access) -> bool:
    """Whether requests are signed: with keys, or with an identity of this process."""
    if access.has(kind) or access.identity or any(os.environ.get(name) for name in _IDENTITY[kind]):
        return True
    return kind == "gs" and (Path.home() / ".config/gcloud/application_default_credentials.json").is_file()


def _client_options(access: Access, endpoint: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "read_timeout": f"{READ_SECONDS}s",
        "timeout": f"{REQUEST_SECONDS}s",
        "user_agent": "dpo-operator",
    }
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    if (proxy := access.settings.proxy) is not None:
        options |= {"proxy_url": proxy.url, "proxy_excludes": ",".join(proxy.exceptions)}
    if access.certificates is not None:
        options["root_certificate"] = access.certificates
    return options


def _retries() -> dict[str, Any]:
    return {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {"init_backoff": _FIRST_WAIT, "max_backoff": _LONGEST_WAIT, "base": 2},
    }


def _stored(meta: Any) -> Stored:
    etag = meta.get("e_tag")
    # Azure's lists give a tag without the quotes that its other answers, and a condition of a request, have around it.
    if etag is not None and not etag.endswith('"'):
        etag = f'"{etag}"'
    return Stored(str(meta["path"]), int(meta["size"]), etag)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

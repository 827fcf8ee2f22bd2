"""Requests to the API server, JSON in and JSON out."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace, TracebackType
from typing import Any

import aiohttp

from dpo_operator.api import names
from dpo_operator.api.text import shown
from dpo_operator.kube.access import Access
from dpo_operator.kube.server_clock import ServerClock

Json = dict[str, Any]
REQUEST_SECONDS = 30.0
PAGE = 500
READS = frozenset({"GET", "HEAD"})
JSON_BODY = {"Content-Type": "application/json"}
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}

# Seconds during which this process may still write.
Fence = Callable[[], float]
# Called with the method, URL path and HTTP status of every response; status 0 without a response.
OnResponse = Callable[[str, str, int], None]


class FencedError(Exception):
    """A write that was not sent, because another process may be the leader by now."""


class ApiError(Exception):
    """An error response of the API server.

    code: HTTP status. reason: that of the metav1.Status, such as AlreadyExists. retry_after: Retry-After, seconds.
    is_gone: the object that was asked for does not exist. Any other 404, such as that of a load balancer, says nothing
    about it.
    """

    def __init__(
        self, code: int, reason: str, message: str, retry_after: float = 0.0, *, is_gone: bool = False
    ) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.retry_after = retry_after
        self.reason = reason
        self.message = message
        self.is_gone = is_gone

    @property
    def is_conflict(self) -> bool:
        """The object is not what the request expected, or exists already."""
        return self.code == 409

    @property
    def is_terminating(self) -> bool:
        """The namespace is terminating, so creations are refused and unnecessary."""
        return self.code == 403 and "because it is being terminated" in self.message

    @property
    def is_refusal(self) -> bool:
        """The request was rejected by validation, quota, policy or a webhook; the same request will be rejected again."""
        # A webhook that does not answer is reported as an error of the server.
        return self.code in (400, 403, 422) or "failed calling webhook" in self.message


@dataclass(frozen=True)
class Resource:
    """Where objects of a kind are in the API."""

    prefix: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path; namespace None: all namespaces."""
        parts = [self.prefix, f"namespaces/{namespace}" if namespace else None, self.plural, name, subresource]
        return "/" + "/".join(part for part in parts if part)


RESOURCES: dict[str, Resource] = {
    names.KIND: Resource(f"apis/{names.API_VERSION}", names.PLURAL),
    "Job": Resource("apis/batch/v1", "jobs"),
    "Pod": Resource("api/v1", "pods"),
    "Service": Resource("api/v1", "services"),
    "ConfigMap": Resource("api/v1", "configmaps"),
    "PersistentVolumeClaim": Resource("api/v1", "persistentvolumeclaims"),
    "Event": Resource("api/v1", "events"),
    "PodDisruptionBudget": Resource("apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": Resource("apis/networking.k8s.io/v1", "networkpolicies"),
    "Lease": Resource("apis/coordination.k8s.io/v1", "leases"),
}


def resource_of(manifest: Json) -> Resource:
    """API path of an object. PodGroups of several projects share their kind."""
    if manifest["kind"] == "PodGroup":
        return Resource(f"apis/{manifest['apiVersion']}", "podgroups")
    return RESOURCES[manifest["kind"]]


class Client:
    """A connection to one API server. Close it, or use it as a context manager.

    fence: seconds left for writing, checked before a write is queued and again just before it is sent. None: no limit.
    """

    def __init__(self, access: Access, *, fence: Fence | None = None, on_response: OnResponse | None = None) -> None:
        self._access = access
        self._fence = fence
        self._on_response = on_response
        self._server_clock = ServerClock()
        hooks = aiohttp.TraceConfig()
        # The last hooks before a request is written to a new or a reused connection.
        hooks.on_connection_create_end.append(self._check_fence)
        hooks.on_connection_reuseconn.append(self._check_fence)
        self._session = access.open(trace_configs=[hooks])

    @classmethod
    async def connect(cls) -> "Client":
        """A client without a fence, for the API server that Access.load finds."""
        return cls(await Access.load())

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def now(self) -> datetime:
        """The time of day by the API server's clock, UTC."""
        return self._server_clock.now()

    async def get(self, kind: str | Resource, namespace: str, name: str) -> Json | None:
        """One object, None when it does not exist. A quorum read, never from the watch cache."""
        try:
            resource = RESOURCES[kind] if isinstance(kind, str) else kind
            return await self.request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.is_gone:
                return None
            raise

    async def pages(
        self, kind: str, namespace: str | None, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[list[Json]]:
        """All objects of a kind, page by page. A quorum read, never from the watch cache."""
        token = ""
        while True:
            query = {"limit": str(PAGE), "labelSelector": label_selector, "continue": token}
            query["fieldSelector"] = field_selector
            path = RESOURCES[kind].path(namespace)
            page = await self.request("GET", path, query={k: v for k, v in query.items() if v})
            yield page.get("items") or []
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return

    async def list(
        self, kind: str, namespace: str | None, label_selector: str = "", field_selector: str = ""
    ) -> list[Json]:
        """All objects of a kind at once, for those that are few. A quorum read, never from the watch cache."""
        return [item async for page in self.pages(kind, namespace, label_selector, field_selector) for item in page]

    async def request(
        self, method: str, path: str, body: Json | None = None, query: dict[str, str] | None = None
    ) -> Json:
        """One request. Raises ApiError for a response other than 2xx, and OSError or TimeoutError without a response.

        A PATCH is a JSON merge patch.
        """
        began = time.monotonic()
        limit = min(REQUEST_SECONDS, self._may_send(method))
        # Without \u escapes, with which an object near the size limit would exceed it.
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode(errors="replace")
        status = 0
        try:
            # Time out with the fence: a later response may belong to a write made during another leader's term.
            async with (
                asyncio.timeout(limit),
                self._session.request(
                    method,
                    self._access.server + path,
                    data=data,
                    params=query,
                    headers=None if body is None else MERGE_PATCH if method == "PATCH" else JSON_BODY,
                    trace_request_ctx=method,
                ) as response,
            ):
                status, text = response.status, await response.read()
                retry_after = response.headers.get("Retry-After", "")
                self._server_clock.observe(response.headers.get("Date", ""))
        except aiohttp.ClientError as error:
            raise ConnectionError(f"{method} {path}: {str(error) or type(error).__name__}") from error
        except TimeoutError as error:
            raise TimeoutError(f"{method} {path}: no response within {time.monotonic() - began:.1f} s") from error
        finally:
            if self._on_response is not None:
                self._on_response(method, path, status)
        if 200 <= status < 300:
            try:
                parsed: Json = json.loads(text)
            except ValueError as error:
                raise ConnectionError(f"{method} {path}: the response is not JSON") from error
            return parsed
        if status == 401 and await self._access.reload():
            return await self.request(method, path, body, query)
        raise error_of(status, text, retry_after, path)

    def _may_send(self, method: str) -> float:
        """Seconds for a request. Raises FencedError when a write may not be sent at all."""
        if self._fence is None or method in READS:
            return REQUEST_SECONDS
        if (left := self._fence()) <= 0:
            raise FencedError("write refused: this process is not the leader")
        return left

    async def _check_fence(self, session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
        self._may_send(str(context.trace_request_ctx))


def error_of(code: int, text: bytes, retry_after: str, path: str) -> ApiError:
    """ApiError from a metav1.Status, or from the body of a proxy's response. path: of the request."""
    try:
        wait = min(60.0, max(0.0, float(retry_after)))
    except ValueError:
        wait = 0.0
    try:
        status = json.loads(text)
        reason, message = shown(str(status.get("reason") or "Unknown"), 64), shown(str(status.get("message") or ""))
        return ApiError(code, reason, message, wait, is_gone=code == 404 and _is_not_found(status, path))
    except (ValueError, AttributeError):
        return ApiError(code, "Unknown", shown(text[:500].decode(errors="replace")), wait)


def _is_not_found(status: Json, path: str) -> bool:
    """Whether the API server says that the object of this path does not exist."""
    if status.get("kind") != "Status" or status.get("reason") != "NotFound":
        return False
    details = status.get("details") or {}
    named = [part for part in path.split("/") if part][-3:]
    # A subresource follows the name.
    return [details.get("kind"), details.get("name")] in (named[:2], named[1:])

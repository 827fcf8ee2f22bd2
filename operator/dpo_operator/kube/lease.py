"""Leader election with a coordination.k8s.io Lease.

A holder may write while it has renewed the Lease recently enough by its own monotonic clock. Candidates wait until they
have observed no renewal for the full duration by their own clock. Clocks of different machines are never compared. A
process that was paused finds its fence expired before its next write.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dpo_operator.kube.client import RESOURCES, ApiError, Client

logger = logging.getLogger(__name__)

Json = dict[str, Any]
Clock = Callable[[], float]


class LeaseLostError(Exception):
    """Another process holds the Lease."""


class Lease:
    """One candidate. client: unfenced and used for nothing else, so that no other request delays a renewal."""

    def __init__(
        self, client: Client, namespace: str, name: str, identity: str, seconds: float, clock: Clock = time.monotonic
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._clock = clock
        # Safety margin: the holder stops writing a quarter of the duration before a successor may start.
        self._valid_seconds = 0.75 * seconds
        self._every = seconds / 6
        self._valid_until = float("-inf")
        self._held: Json | None = None
        self._observed: tuple[str, float] = ("", 0.0)

    def remaining(self) -> float:
        """Seconds during which this process may write; 0 or less: it may not."""
        return self._valid_until - self._clock()

    async def acquire(self) -> None:
        """Wait until this process holds the Lease."""
        while True:
            try:
                if await self._try():
                    logger.info("leading as %s", self._identity)
                    return
            except (ApiError, OSError, TimeoutError) as error:
                logger.warning("lease %s/%s: %s", self._namespace, self._name, str(error) or type(error).__name__)
            await asyncio.sleep(self._every / 2)

    async def keep(self) -> None:
        """Renew for ever. Raises LeaseLostError when another process has the Lease.

        During an outage of the API server no process can write. Afterwards this process continues if no other one took the
        Lease.
        """
        while True:
            await asyncio.sleep(self._every)
            try:
                if not await self._try():
                    raise LeaseLostError(f"another process holds the lease {self._namespace}/{self._name}")
            except (ApiError, OSError, TimeoutError) as error:
                logger.warning("lease %s/%s: %s", self._namespace, self._name, str(error) or type(error).__name__)

    async def release(self) -> None:
        """Let another process lead at once. Call it on shutdown, after the last write."""
        held, self._held, self._valid_until = self._held, None, float("-inf")
        if held is None:
            return
        held["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        with contextlib.suppress(ApiError, OSError, TimeoutError):
            await self._request("PUT", held)

    async def _try(self) -> bool:
        """Take or renew the Lease; False while another process has it."""
        asked = self._clock()
        if self._held is None:
            try:
                found = await self._request("GET")
            except ApiError as error:
                if not error.is_gone:
                    raise
                found = None
            if found is not None and not self._is_free(found, asked):
                return False
            wanted = self._claimed(found)
        else:
            wanted = self._claimed(self._held)
        asked = self._clock()
        try:
            self._held = await self._request("PUT" if wanted["metadata"].get("resourceVersion") else "POST", wanted)
        except ApiError as error:
            if error.is_conflict or error.is_gone:
                # Taken by another process, or changed by our own request whose response was lost. Read it to find out.
                was_held, self._held = self._held is not None, None
                return await self._try() if was_held else False
            raise
        # Count from the time of sending: others may observe the renewal at any time after it.
        self._valid_until = asked + self._valid_seconds
        return True

    def _is_free(self, found: Json, now: float) -> bool:
        spec = found.get("spec") or {}
        if spec.get("holderIdentity") in (None, "", self._identity):
            return True
        version = str(found["metadata"]["resourceVersion"])
        if version != self._observed[0]:
            self._observed = (version, now)
        return now - self._observed[1] >= float(spec.get("leaseDurationSeconds") or self._seconds)

    def _claimed(self, found: Json | None) -> Json:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = dict((found or {}).get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        # Informational; candidates only compare resourceVersions.
        spec |= {
            "holderIdentity": self._identity,
            "renewTime": now,
            "leaseDurationSeconds": max(1, round(self._seconds)),
        }
        metadata = found["metadata"] if found else {"name": self._name, "namespace": self._namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}

    async def _request(self, method: str, body: Json | None = None) -> Json:
        path = RESOURCES["Lease"].path(self._namespace, None if method == "POST" else self._name)
        # Not wait_for, which may swallow a cancellation that comes at the same moment as the response.
        async with asyncio.timeout(self._every):
            return await self._client.request(method, path, body=body)

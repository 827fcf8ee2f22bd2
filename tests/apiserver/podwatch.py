"""Every state that the pods of a namespace go through, as the API server tells it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands
from tests.cluster.rig.control_plane import ControlPlane


@dataclass
class PodWatch:
    """gangs: after each change, the DPOJobs with a training pod on a node, with how many; the time is monotonic.

    A gang whose training is over, because one of its pods succeeded, is not among them: its nodes become free one by one.
    """

    gangs: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    events: int = 0
    broken: str = ""
    _pods: dict[str, tuple[str, str, bool]] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)

    def most_at_once(self) -> int:
        """Most DPOJobs that had training pods on nodes at the same moment."""
        return max((len(gang) for _, gang in self.gangs), default=0)

    def ever(self) -> set[str]:
        """DPOJobs that ever had one."""
        return {job for _, gang in self.gangs for job in gang}

    def order(self) -> list[str]:
        """DPOJobs in the order in which a training pod of theirs first had a node."""
        return list(dict.fromkeys(job for _, gang in self.gangs for job in gang))

    def take(self, event: dict[str, Any]) -> None:
        pod = event["object"]
        labels = pod["metadata"].get("labels", {})
        if labels.get(names.LABEL_PHASE) != "train":
            return
        self.events += 1
        holds = bool(pod["spec"].get("nodeName")) and pod["status"].get("phase") in ("Pending", "Running")
        self._pods[pod["metadata"]["uid"]] = (
            labels[names.LABEL_JOB],
            labels["batch.kubernetes.io/job-name"],
            holds and event["type"] != "DELETED",
        )
        if pod["status"].get("phase") == "Succeeded":
            self._over.add(labels["batch.kubernetes.io/job-name"])
        gang: dict[str, int] = {}
        for job, of, holding in self._pods.values():
            if holding and of not in self._over:
                gang[job] = gang.get(job, 0) + 1
        self.gangs.append((time.monotonic(), gang))


@contextmanager
def watching(plane: ControlPlane, hands: Hands) -> Iterator[PodWatch]:
    """A watch from now on. Fails when it broke off: then something may have been missed."""
    seen, stopped = PodWatch(), threading.Event()
    requests = Requests(plane)
    version = requests.send("GET", hands.path("pods")).body["metadata"]["resourceVersion"]
    connection = requests._connection
    connection.request("GET", f"{hands.path('pods')}?watch=1&resourceVersion={version}&timeoutSeconds=600")
    response = connection.getresponse()
    # Nothing may happen for as long as a gang waits.
    connection.sock.settimeout(None)

    def follow() -> None:
        try:
            while line := response.readline():
                seen.take(json.loads(line))
            seen.broken = "ended"
        except (OSError, ValueError, http.client.HTTPException, AttributeError) as error:
            seen.broken = repr(error)

    thread = threading.Thread(target=follow, name="pod-watch", daemon=True)
    thread.start()
    try:
        yield seen
        assert not seen.broken, seen.broken
    finally:
        stopped.set()
        if connection.sock is not None:
            connection.sock.close()

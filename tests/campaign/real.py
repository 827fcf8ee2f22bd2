"""The real engine: the operator's own process behind a proxy to a real API server, whose controllers do their work.

Its kubelets are imitated. It takes some 20 s for each life, so it is for samples.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess
from tests.apiserver.proxy import GONE, Call, Json, Proxy, _Handler
from tests.apiserver.scripted import Kubelets, ending, kubelets
from tests.campaign.faults import DEATHS, WATCHES, Armed, Events, Plan, answer
from tests.campaign.invariants import Life
from tests.cluster.rig.control_plane import ControlPlane

LEASE_SECONDS = 6
# A silent watch is found after 70 s.
LONGEST_SECONDS, LONGEST_FOR_A_FAULT = 90.0, 120.0
UNHEALTHY_SECONDS = 30.0
CHILDREN = (
    "jobs",
    "pods",
    "services",
    "configmaps",
    "persistentvolumeclaims",
    "networkpolicies",
    "poddisruptionbudgets",
)


class Replica:
    """One operator behind its proxy, started again whenever it has ended or is unhealthy for long."""

    def __init__(self, plane: ControlPlane, namespace: str, name: str, folder: Path, settings: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.proxy = Proxy(plane, folder)
        self.operator = OperatorProcess(self.proxy.kubeconfig, namespace, folder / "operator.log", 2.0, settings)
        self._name = name
        self._kill = threading.Event()
        self._away_seconds = 1.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name=name)
        self._thread.start()

    def die(self, away_seconds: float) -> None:
        """SIGKILL; it is started again after so long."""
        self._away_seconds = away_seconds
        with suppress(AssertionError):
            self.operator.send(9)
        self._kill.set()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self.proxy.close()

    @property
    def healthy(self) -> bool:
        return self.operator.healthy

    def _look_after(self) -> None:
        unhealthy_since: float | None = None
        while not self._ended.is_set():
            if self._kill.is_set() or not self._runs():
                self._kill.clear()
                self.operator.kill()
                self._ended.wait(self._away_seconds)
                self._away_seconds, unhealthy_since = 1.0, None
                with suppress(AssertionError):
                    self.operator.start()
            elif self.operator.healthy:
                unhealthy_since = None
            else:
                unhealthy_since = unhealthy_since or time.monotonic()
                if time.monotonic() - unhealthy_since > UNHEALTHY_SECONDS:
                    self._kill.set()
            self._ended.wait(0.5)
        self.operator.kill()

    def _runs(self) -> bool:
        process = self.operator._process
        return process is not None and process.poll() is None


@dataclass
class Meddler:
    """Does what the plan says to the requests of all replicas."""

    armed: Armed
    replicas: list[Replica]
    outsider: Hands
    job: str
    _events: dict[Call, Events] = field(default_factory=dict)
    _answers: dict[str, list[bytes]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, replica: Replica) -> Any:
        """What the replica's proxy asks about each request."""
        return lambda handler, call, body: self._meddle(replica, handler, call, body)

    def _meddle(self, replica: Replica, handler: _Handler, call: Call, body: bytes | None) -> bool:
        with self._lock:
            known = self._answers.get(call.path, [])
            olds = [old for old in known if old != known[-1]]
            found = self.armed.next(
                call.method, watch=call.watch, lease=call.resource == "leases", remembered=bool(olds)
            )
        if found is None or found[1] in WATCHES:
            if found is not None:
                self._break_watches(found[1])
            if call.watch:
                return False
            return self._pass(handler, call, body)
        replica.proxy.note(call, 0)
        index, kind = found
        chance = self.armed.plan.chance(index)
        if kind in DEATHS:
            if kind == "death-after" and not call.watch:
                handler.fetch(call, body)
            replica.die(chance.choice((1.0, 15.0)))
            handler.close_connection = True
            return True
        match kind:
            case "drop":
                handler.close_connection = True
            case "lost":
                if not call.watch:
                    handler.fetch(call, body)
                handler.close_connection = True
            case "delay":
                time.sleep(chance.choice((2.0, 35.0)))
                self._pass(handler, call, body)
            case "late":
                self._pass(handler, call, body, wait=32.0)
            case "duplicate":
                handler.fetch(call, body)
                self._pass(handler, call, body)
            case "truncated":
                self._pass(handler, call, body, cut=True)
            case "old":
                handler.answer(200, chance.choice(olds))
            case "outsider":
                self._interfere(call, index)
                self._pass(handler, call, body)
            case _:
                status, headers, text = answer(kind, call.method, call.path.partition("?")[0])
                handler.answer(status, text, headers)
        return True

    def _pass(self, handler: _Handler, call: Call, body: bytes | None, *, cut: bool = False, wait: float = 0.0) -> bool:
        found = handler.fetch(call, body)
        handler.proxy.note(call, 0 if found is None else found[0])
        if found is None:
            handler.close_connection = True
            return True
        if call.method == "GET" and found[0] == 200:
            with self._lock:
                known = self._answers.setdefault(call.path, [])
                if not known or known[-1] != found[1]:
                    known.append(found[1])
        time.sleep(wait)
        handler.answer(*found, cut=cut)
        return True

    def _break_watches(self, kind: str) -> None:
        for replica in self.replicas:
            watches = replica.proxy.open_watches()
            if kind == "watch-silent":
                replica.proxy.silence(*watches)
            elif kind == "watch-cut":
                replica.proxy.cut()
            for call in watches:
                self._events.setdefault(call, Events()).fault(kind)
                replica.proxy.alter[call] = lambda event, call=call: self._altered(call, event)  # type: ignore[misc]

    def _altered(self, call: Call, event: Json) -> list[Json]:
        with self._lock:
            events = self._events[call]
            return [GONE] if events.gone else events.of(event)

    def _interfere(self, call: Call, index: int) -> None:
        resource, name = call.resource.partition("/")[0], call.named["name"]
        where = (resource, name) if name else (names.PLURAL, self.job)
        with suppress(AssertionError):
            self.outsider.patch(*where, {"metadata": {"annotations": {"example.org/touched": str(index)}}})


@dataclass
class Engine:
    """Lives on one API server, one after the other."""

    plane: ControlPlane
    folder: Path
    number: int = 0
    _groups: dict[int, list[Replica]] = field(default_factory=dict)

    def close(self) -> None:
        for group in self._groups.values():
            for replica in group:
                replica.close()

    def live(self, plan: Plan) -> tuple[Life, list[tuple[int, str]]]:
        """One life with these faults, and those that happened."""
        replicas, namespace = self._group(plan.replicas), f"lives-{plan.replicas}"
        wait_until("healthy operators", lambda: all(replica.healthy for replica in replicas), 120)
        self.number += 1
        job = f"life-{self.number}"
        hands = Hands(Requests(self.plane), namespace)
        armed = Armed(plan)
        meddler = Meddler(armed, replicas, Hands(Requests(self.plane), namespace), job)
        strangers = {kind: _stranger(hands, kind, job) for kind in ("configmaps", "persistentvolumeclaims")}
        for replica in replicas:
            replica.proxy.created.clear()
            replica.proxy.meddler = meddler.of(replica)
        began = time.monotonic()
        try:
            with kubelets(self.plane, namespace) as playing:
                life = self._lived(hands, job, plan, playing)
        finally:
            for replica in replicas:
                replica.proxy.meddler = lambda handler, call, body: False
                replica.proxy.alter.clear()
                replica.proxy.cut()
        life.twice = playing.violations
        for replica in replicas:
            life.made += {k: n for k, n in replica.proxy.created.items() if not k.startswith(("events/", "leases/"))}
        for kind, before in strangers.items():
            life.strangers[kind] = _essence(hands.get(kind, before["metadata"]["name"])) == _essence(before)
            hands.delete(kind, before["metadata"]["name"])
        life.requests, life.seconds = armed.requests, time.monotonic() - began
        return life, armed.happened

    def _lived(self, hands: Hands, job: str, plan: Plan, playing: Kubelets) -> Life:
        hands.apply(job)
        playing.play(job)
        limit = LONGEST_SECONDS + LONGEST_FOR_A_FAULT * len(plan.faults)
        life = Life({})
        try:
            wait_until("end", lambda: self._may_delete(hands, job, plan), limit)
        except AssertionError as error:
            life.overdue = str(error)
        time.sleep(3.0)
        end = ending(hands, job) if hands.status(job).get("state") else {}
        life.given = end.pop("given", {})
        life.ending = end if plan.life == "whole" else {}
        if own := _own(hands, job, "persistentvolumeclaims"):
            life.claims.append(own[0]["metadata"]["uid"])
        life.events = len(hands.events(job))
        hands.delete(names.PLURAL, job)
        retained = "persistentvolumeclaims"
        with suppress(AssertionError):
            wait_until("nothing", lambda: not any(_own(hands, job, k) for k in CHILDREN if k != retained), 60)
        # An operator that knows nothing of the deletion would make something again.
        time.sleep(5.0)
        life.left = [
            f"{k}/{o['metadata']['name'].removeprefix(job)}"
            for k in CHILDREN
            if k != retained
            for o in _own(hands, job, k)
        ]
        life.claims += [claim["metadata"]["uid"] for claim in _own(hands, job, retained)]
        return life

    def _may_delete(self, hands: Hands, job: str, plan: Plan) -> bool:
        if plan.life == "whole":
            return hands.status(job).get("state") in ("Complete", "Failed")
        pods = hands.children("pods", job)
        return any("-train-1-" in p["metadata"]["name"] and p["status"].get("phase") == "Running" for p in pods)

    def _group(self, replicas: int) -> list[Replica]:
        if replicas not in self._groups:
            namespace = f"lives-{replicas}"
            self.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            self.plane.wait_for_service_account(namespace)
            made = []
            for i in range(replicas):
                settings = {"POD_NAMESPACE": namespace, "POD_NAME": f"pod-{i}", "DPO_LEASE_SECONDS": str(LEASE_SECONDS)}
                folder = self.folder / f"{namespace}-{i}"
                made.append(Replica(self.plane, namespace, f"pod-{i}", folder, settings if replicas > 1 else {}))
            self._groups[replicas] = made
        return self._groups[replicas]


def _own(hands: Hands, job: str, kind: str) -> list[Json]:
    return [o for o in hands.children(kind, job) if not o["metadata"]["name"].endswith("-of-others")]


def _stranger(hands: Hands, kind: str, job: str) -> Json:
    """An object of somebody else with the job's label."""
    metadata = {"name": f"{job}-of-others", "labels": {names.LABEL_JOB: job}}
    raw: Json = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    if kind == "persistentvolumeclaims":
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        raw |= {"kind": "PersistentVolumeClaim", "spec": spec}
    made = hands.requests.send("POST", hands.path(kind), raw)
    assert made.accepted, made.message
    return hands.get(kind, metadata["name"]) or {}


def _essence(raw: Json | None) -> Json | None:
    """What nobody but its owner may change; Kubernetes' controllers write to the status."""
    keep = ("uid", "labels", "ownerReferences", "deletionTimestamp")
    return raw and {"metadata": {k: raw["metadata"].get(k) for k in keep}} | {k: raw.get(k) for k in ("spec", "data")}


@contextmanager
def engine(plane: ControlPlane, folder: Path) -> Iterator[Engine]:
    """An engine on an API server that has the CRD; its operators end with the block."""
    with ExitStack() as stack:
        made = Engine(plane, folder)
        stack.callback(made.close)
        yield made

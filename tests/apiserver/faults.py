"""What the fault tests share: a control plane of their own, which they may break, and the life without a fault."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_operator.generate import crd
from tests.apiserver.client import Requests, wait_until_served
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.apiserver.proxy import Call, Proxy
from tests.apiserver.scripted import Kubelets, ending, kubelets
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.processes import Process, wait_gone
from tests.cluster.rig.shell import wait_for

NAMESPACE = "fault-tests"
Json = dict[str, Any]


@dataclass
class Stage:
    """A control plane with one namespace, and what is needed to break it."""

    plane: ControlPlane
    folder: Path
    calm: Json = field(default_factory=dict)
    calm_writes: Counter[str] = field(default_factory=Counter)

    def hands(self) -> Hands:
        """A new connection: one does not outlive its server."""
        return Hands(Requests(self.plane), NAMESPACE)

    def process(self, name: str) -> Process:
        """A daemon of the control plane that runs."""
        return next(p for p in self.plane.processes() if p.name == name and p.alive)

    def kill(self, *names: str) -> None:
        """SIGKILL daemons."""
        doomed = [self.process(name) for name in names]
        for process in doomed:
            process.signal(signal.SIGKILL)
        assert not wait_gone(doomed, 10)

    def start_apiserver(self) -> None:
        """Start it on its old address, and return when it answers."""
        process = self.plane.start_apiserver()
        wait_for("the API server", lambda: self.plane.ready(process), timeout=60, every=0.1)

    def life(self, name: str, kubelets: Kubelets, **spec: Any) -> None:
        """Begin a life."""
        self.hands().apply(name, **spec)
        kubelets.play(name)

    def clear(self) -> None:
        """Delete all jobs."""
        hands = self.hands()
        for job in hands.all("dpojobs"):
            hands.delete("dpojobs", job["metadata"]["name"])

    def ends_calmly(self, name: str, seconds: float = 60) -> None:
        """Wait for the end of a life, which has to be that of one without a fault."""

        def over() -> bool:
            with suppress(OSError):
                return self.hands().status(name).get("state") in ("Complete", "Failed")
            return False

        wait_until(f"end of {name}", over, seconds)
        wait_until(f"calm end of {name}", lambda: ending(self.hands(), name) == self.calm or None, 10)

    def reaches(self, name: str, phase: str, attempt: int, seconds: float = 30) -> list[Json]:
        """Wait until all ranks of an attempt run."""

        def ranks() -> list[Json]:
            pods = self.hands().children("pods", name)
            own = [p for p in pods if p["metadata"]["name"].startswith(f"{name}-{phase}-{attempt}-")]
            alive = [p for p in own if p["status"].get("phase") == "Running"]
            return alive if len(alive) == (2 if phase == "train" else 1) else []

        return wait_until(f"{phase} {attempt} of {name}", ranks, seconds)


@contextmanager
def stage(name: str, folder: Path) -> Iterator[Stage]:
    """A control plane with the CRD and an empty namespace, and the figures of a life without a fault."""
    with fixture.control_plane(name) as plane:
        plane.apply(crd.crd(), {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        wait_until_served(plane, crd.NAME)
        made = Stage(plane, folder)
        with behind_a_proxy(made, "calm") as (proxy, _), kubelets(plane, NAMESPACE) as playing:
            made.life("calm", playing)
            wait_until("calm life", lambda: made.hands().status("calm").get("state") == "Complete", 60)
            made.calm = ending(made.hands(), "calm")
            made.calm_writes = writes_by_kind(proxy.writes())
            assert not playing.violations
        assert (made.calm["state"], made.calm["restarts"]) == ("Complete", (1, 1))
        yield made


@contextmanager
def behind_a_proxy(stage: Stage, name: str, **settings: str) -> Iterator[tuple[Proxy, OperatorProcess]]:
    """An operator whose requests all go through a proxy."""
    folder = stage.folder / name
    folder.mkdir(exist_ok=True)
    proxy = Proxy(stage.plane, folder)
    resync = float(settings.pop("resync", "2"))
    operator = OperatorProcess(proxy.kubeconfig, NAMESPACE, folder / "operator.log", resync, settings)
    try:
        with running(operator):
            yield proxy, operator
    finally:
        proxy.close()


def writes_by_kind(calls: list[Call]) -> Counter[str]:
    """Creations and deletions of children by resource; status writes and events depend on when things are seen."""
    return Counter(f"{c.method} {c.resource}" for c in calls if c.resource not in ("events", "dpojobs/status"))


def duplicated(event: Json) -> list[Json]:
    """An event twice."""
    return [event, json.loads(json.dumps(event))]

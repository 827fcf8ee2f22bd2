"""How long a gang waits for its nodes while another namespace wants every turn: real scheduler, nodes without machines."""

import itertools
import math
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from random import Random

from rich.console import Console
from rich.table import Table

from benchmarks.operator_rig import Bench, Measurement
from dpo_operator.api import names
from dpo_operator.planning.gangs import YIELD_SECONDS
from tests.apiserver import nodes
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import running

# The first in alphabetical order asks too much; the others have one gang after the other, each of the whole cluster.
GREEDY, HONEST = "a-greedy", ("team-b", "team-c")
NODES = 2
WHOLE = {"nodes": NODES, "gpusPerNode": 1}
# It holds all nodes for as long as it may: one pod of it never gets any.
TOO_LARGE = {
    "nodes": NODES + 1,
    "gpusPerNode": 1,
    "training": {"globalBatchSize": 12},
    "failurePolicy": {"gangTimeoutSeconds": 86_400},
}
GANGS = 12
# What it does with its turns, one after the other: keeps it while it may, or ends it by itself after some seconds.
ENDS = ((math.inf, ""), (50.0, "delete"), (50.0, "edit"), (15.0, "delete"))
STEP_SECONDS = 2.0
# Oftener, and it would lack gangs that are prepared.
TRICK_SECONDS = 8.0
LOOK_SECONDS = 0.25
# A gang that waits longer counts with this time, which misses the bar.
GIVE_UP_SECONDS = 300.0
# At most one turn of each other namespace.
BAR_SECONDS = YIELD_SECONDS * len(HONEST)


@dataclass
class Greedy:
    """A tenant that knows the rule: gangs of its own that fit nowhere, and whatever might give them the next turn.

    did: how often it did what.
    """

    hands: Hands
    random: Random = field(default_factory=lambda: Random(7))
    did: Counter[str] = field(default_factory=Counter)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until stopped."""
        tricks = itertools.cycle((self._edit, self._recreate))
        tricked = time.monotonic()
        ends = itertools.cycle(ENDS)
        holder, since, (patience, end) = "", 0.0, next(ends)
        while not self.stopped.wait(STEP_SECONDS):
            if (now_holds := self._holder()) != holder:
                holder, since, (patience, end) = now_holds, time.monotonic(), next(ends)
            gangs = [item["metadata"]["name"] for item in self.hands.all("dpojobs")]
            others = [name for name in gangs if name != holder]
            if holder in gangs and time.monotonic() - since > patience:
                self._delete(holder) if end == "delete" else self._edit(holder)
                patience = math.inf
            elif len(gangs) < GANGS:
                self._create(early(self.did["created"]))
            elif time.monotonic() - tricked > TRICK_SECONDS:
                tricked = time.monotonic()
                next(tricks)(self.random.choice(others))

    def _holder(self) -> str:
        """The gang of its own whose pods exist; empty without one."""
        path = f"{self.hands.path('pods')}?labelSelector={names.LABEL_PHASE}=train"
        pods = self.hands.requests.send("GET", path).body["items"]
        return min((str(pod["metadata"]["labels"][names.LABEL_JOB]) for pod in pods), default="")

    def _create(self, name: str) -> None:
        self.hands.apply(name, **TOO_LARGE)
        self.did["created"] += 1

    def _edit(self, name: str) -> None:
        """A gang that has never run restarts, as those do that had nodes."""
        size = self.random.choice((NODES + 1, NODES + 2))
        self.hands.patch("dpojobs", name, {"spec": {"nodes": size}})
        self.did["edited"] += 1

    def _recreate(self, name: str) -> None:
        self.hands.delete("dpojobs", name)
        self._create(name)
        self.did["of these in place of a deleted one"] += 1

    def _delete(self, name: str) -> None:
        """The gang that has the turn goes before it is over; a new one takes its place."""
        self.hands.delete("dpojobs", name)
        self.did["deleted in its turn"] += 1


def early(number: int) -> str:
    """A name that comes before all earlier ones."""
    return f"a-{999_999 - number:06}"


def waits(hands: Hands, until: float) -> list[float]:
    """One gang after the other until a time: how long each waited, from its first request to its last pod's node, seconds."""
    found: list[float] = []
    while time.monotonic() < until:
        name = f"gang-{len(found)}"
        hands.apply(name, **WHOLE)
        wait_until("prepared gang", lambda name=name: pause() or hands.get("jobs", f"{name}-train-1"), 300)
        found.append(wait_of(hands, name))
        if found[-1] >= GIVE_UP_SECONDS:
            break
        wait_until("end", lambda name=name: pause() or hands.status(name).get("state") == "Complete", 300)
    return found


def wait_of(hands: Hands, name: str) -> float:
    """Time from now until all pods of a gang have nodes, at most GIVE_UP_SECONDS."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < GIVE_UP_SECONDS:
        pods = hands.children("pods", name)
        train = [pod for pod in pods if pod["metadata"]["labels"][names.LABEL_PHASE] == "train"]
        if sum(1 for pod in train if pod["spec"].get("nodeName")) == NODES:
            return waited
        pause()
    return GIVE_UP_SECONDS


def pause() -> None:
    """Leave the machine to others between two looks."""
    time.sleep(LOOK_SECONDS)


def fair(bench: Bench, minutes: float) -> list[Measurement]:
    """Gangs of two namespaces beside a third that wants all turns."""
    hands, operator = bench.place(GREEDY, *HONEST)
    nodes.volumes(bench.plane, int(minutes * 60 / STEP_SECONDS) + 100)
    honest = [bench.hands(namespace) for namespace in HONEST]
    with (
        running(operator),
        nodes.kubelets(bench.plane, hands) as kubelets,
        nodes.kubelets(bench.plane, honest[0], beside=kubelets),
        nodes.kubelets(bench.plane, honest[1], beside=kubelets),
        ThreadPoolExecutor() as pool,
    ):
        for i in range(NODES):
            kubelets.add(f"gpu-{i}")
        greedy = Greedy(bench.hands(GREEDY))
        attack = pool.submit(greedy.run)
        try:
            # Until it waits with all of its gangs, and one has the nodes.
            wait_until("adversary", lambda: pause() or attack.done() or greedy.did["edited"] > 1, 300)
            end = time.monotonic() + minutes * 60
            found = dict(zip(HONEST, pool.map(lambda each: waits(each, end), honest), strict=True))
        finally:
            greedy.stopped.set()
        attack.result()
    Console().print(each_wait(found, greedy.did))
    everyone = [seconds for each in found.values() for seconds in each]
    return [
        Measurement.of(f"wait of a gang beside a greedy namespace, {len(everyone)} gangs", everyone, BAR_SECONDS, "s")
    ]


def each_wait(found: dict[str, list[float]], did: Counter[str]) -> Table:
    """All waits, a line for each namespace, and what went on meanwhile."""
    made = Table(
        title="from a gang's request to its last pod's node, s",
        caption=f"{GREEDY}: " + ", ".join(f"{n} {what}" for what, n in did.items()),
    )
    for head in ("namespace", "gangs", "waits"):
        made.add_column(head)
    for namespace, seconds in found.items():
        made.add_row(namespace, str(len(seconds)), " ".join(f"{s:.0f}" for s in seconds))
    return made

"""What the benchmark at scale measures with: figures by number of jobs, waits that are bounded, pods as a watch shows them."""

import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.table import Table

from benchmarks.operator_rig import Bench, process_seconds, samples
from dpo_operator.api import names
from dpo_operator.queueing.key import Key
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands
from tests.apiserver.operator_process import OperatorProcess
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.shell import say

Item = TypeVar("Item")
SAY_SECONDS = 15.0
LOOK_SECONDS = 0.5
CONNECTIONS = 6
# Rendering the metrics of 10,000 jobs costs the operator time: at most this share of it.
SCRAPE_SHARE = 0.05
POD_GANG = 2


@dataclass(frozen=True)
class Figure:
    """One value of one run. bar: the most that it may be. late: why it was not reached in its time; then value is a lower bound."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    late: str = ""

    @property
    def missed(self) -> bool:
        return bool(self.late) or (self.bar is not None and self.value > self.bar)

    def text(self) -> str:
        """The value as the table shows it."""
        shown = "∞" if math.isinf(self.value) else f"{self.value:,.0f}" if self.value >= 100 else f"{self.value:.3g}"
        return f"> {shown} ({self.late})" if self.late else f"{shown} !" if self.missed else shown


def comparison(found: Mapping[int, Sequence[Figure]]) -> Table:
    """Figures as rows, numbers of jobs as columns."""
    made = Table(
        title="one operator, by number of DPOJobs that are present",
        caption="!: above the bar. >: not reached when its time was over, (what was reached). Empty: not measured.",
    )
    made.add_column("measurement")
    for jobs in found:
        made.add_column(f"{jobs:,}", justify="right")
    made.add_column("bar", justify="right")
    rows = {(f.name, f.unit): f.bar for figures in found.values() for f in figures}
    for (name, unit), bar in rows.items():
        cells = [next((f.text() for f in figures if f.name == name), "") for figures in found.values()]
        made.add_row(f"{name}, {unit}", *cells, "" if bar is None else f"≤ {bar:g}")
    return made


@dataclass(frozen=True)
class Wait:
    """How long something took, seconds, and how much of it was done at the end."""

    seconds: float
    done: int
    of: int

    def figure(self, name: str, bar: float | None = None) -> Figure:
        """Its line in the table."""
        return Figure(name, self.seconds, "s", bar, "" if self.done >= self.of else f"{self.done:,} of {self.of:,}")


def wait_for(
    what: str,
    look: Callable[[], int],
    of: int,
    seconds: float,
    *,
    since: float | None = None,
    every: float = LOOK_SECONDS,
) -> Wait:
    """Look until so many are done, at most for some seconds; says how far it is. since: monotonic time at which it began."""
    began = time.monotonic() if since is None else since
    end, said = time.monotonic() + seconds, time.monotonic()
    while (done := look()) < of and time.monotonic() < end:
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            say(f"{what}: {done:,} of {of:,}")
        time.sleep(every)
    took = time.monotonic() - began
    say(f"{what}: {done:,} of {of:,} after {took:.1f} s")
    return Wait(took, done, of)


def p99(values: Sequence[float]) -> float:
    """Nearest rank. Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def bucket_p99(before: Mapping[tuple[str, ...], float], after: Mapping[tuple[str, ...], float]) -> float:
    """Upper bound of the bucket that 99% of what came between two readings of a histogram are within; 0 when nothing came."""
    counts = sorted((float(le), count - before.get((le,), 0.0)) for (le,), count in after.items())
    total = counts[-1][1] if counts else 0.0
    return next((bound for bound, count in counts if count >= 0.99 * total), 0.0) if total else 0.0


@dataclass(frozen=True)
class Reading:
    """Counters at one moment. scrape: how long the operator took to show its own, seconds."""

    at: float
    scrape: float
    cpu: float
    requests: float
    buckets: dict[tuple[str, ...], float]
    server_cpu: float
    server_requests: float


def read(plane: ControlPlane, operator: OperatorProcess) -> Reading:
    """Read all counters once."""
    server = next(process for process in plane.processes() if process.name == "kube-apiserver")
    asked = plane.kubectl("get", "--raw", "/metrics")
    total = sum(
        float(line.rsplit(" ", 1)[1]) for line in asked.splitlines() if line.startswith("apiserver_request_total{")
    )
    began = time.monotonic()
    text = operator.metrics()
    took = time.monotonic() - began
    return Reading(
        time.monotonic(),
        took,
        process_seconds(operator.pid),
        sum(samples(text, "dpojob_operator_api_requests_total").values()),
        samples(text, "dpojob_operator_handler_seconds_bucket", handler="reconcile", outcome="success"),
        process_seconds(server.pid),
        total,
    )


def between(before: Reading, after: Reading) -> list[Figure]:
    """What went on between two readings, by minute."""
    minutes = (after.at - before.at) / 60
    return [
        Figure("processor of the operator", 100 * (after.cpu - before.cpu) / minutes / 60, "% of a core"),
        Figure("requests of the operator", (after.requests - before.requests) / minutes, "per minute"),
        Figure(
            "processor of the API server", 100 * (after.server_cpu - before.server_cpu) / minutes / 60, "% of a core"
        ),
        Figure("requests at the API server", (after.server_requests - before.server_requests) / minutes, "per minute"),
        Figure("one scrape of the metrics", after.scrape, "s"),
    ]


class Scraped:
    """A look at the operator's metrics, less often the more a scrape costs."""

    def __init__(self, operator: OperatorProcess, count: Callable[[str], int]) -> None:
        self._operator, self._count = operator, count
        self._next, self._found = 0.0, 0

    def __call__(self) -> int:
        """The count of the newest scrape."""
        began = time.monotonic()
        if began >= self._next:
            try:
                self._found = self._count(self._operator.metrics())
            except OSError as error:
                say(f"no metrics: {error}")
            took = time.monotonic() - began
            self._next = time.monotonic() + max(1.0, took / SCRAPE_SHARE)
        return self._found


def passes(text: str, jobs: int) -> int:
    """Passes over jobs; as many as there are only when hardly any key waits."""
    count = samples(text, "dpojob_operator_handler_seconds_count", handler="reconcile", outcome="success")
    waits = sum(samples(text, "dpojob_operator_queue_depth").values())
    done = int(min(jobs, sum(count.values())))
    return done if waits <= CONNECTIONS else min(done, max(0, jobs - int(waits)))


def in_parallel(bench: Bench, items: Iterable[Item], act: Callable[[Hands, Item], object], end: float) -> None:
    """Act on each item, over several connections as many users would. The first error ends it and is raised.

    end: monotonic time after which it ends with TimeoutError.
    """
    left, lock, errors = iter(items), threading.Lock(), list[BaseException]()

    def work() -> None:
        hands = bench.hands("default")
        while not errors:
            with lock:
                item = next(left, None)
            if item is None:
                return
            if time.monotonic() > end:
                errors.append(TimeoutError(f"the part's time was over before {item} had its turn"))
                return
            try:
                act(hands, item)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        errors.append(error)
        raise
    if errors:
        raise errors[0]


@dataclass
class Pods:
    """Pods of all DPOJobs as a watch shows them, with the monotonic time at which each job's first one was seen."""

    first: dict[Key, float] = field(default_factory=dict)
    broken: str = ""
    _pods: dict[str, tuple[Key, str, int, str, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def follow(self, plane: ControlPlane) -> None:
        """A thread watches from now on; it ends with this process or with the API server."""
        threading.Thread(target=self._follow, args=(plane,), name="pods", daemon=True).start()

    def _follow(self, plane: ControlPlane) -> None:
        version = ""
        while True:
            try:
                version = self._watch(plane, version)
            except (OSError, ValueError, http.client.HTTPException, AttributeError) as error:
                self.broken = repr(error)
                return

    def _watch(self, plane: ControlPlane, version: str) -> str:
        requests = Requests(plane)
        path = f"/api/v1/pods?labelSelector={names.LABEL_JOB}"
        if not version:
            page = requests.send("GET", path).body
            version = page["metadata"]["resourceVersion"]
            for pod in page["items"]:
                self.take("ADDED", pod)
        connection = requests._connection
        connection.request(
            "GET", f"{path}&watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds=3000"
        )
        response = connection.getresponse()
        connection.sock.settimeout(None)
        while line := response.readline():
            event = json.loads(line)
            if event["type"] == "ERROR":
                return ""
            version = event["object"]["metadata"]["resourceVersion"]
            if event["type"] != "BOOKMARK":
                self.take(event["type"], event["object"])
        return version

    def take(self, type_: str, pod: Mapping[str, Any]) -> None:
        """One event."""
        metadata, labels = pod["metadata"], pod["metadata"]["labels"]
        key = Key(metadata["namespace"], labels[names.LABEL_JOB])
        with self._lock:
            self.first.setdefault(key, time.monotonic())
            if type_ == "DELETED":
                self._pods.pop(metadata["uid"], None)
                return
            state = "Deleted" if "deletionTimestamp" in metadata else str(pod.get("status", {}).get("phase"))
            attempt = int(labels[names.LABEL_ATTEMPT])
            self._pods[metadata["uid"]] = (key, labels[names.LABEL_PHASE], attempt, state, metadata["name"])

    def running(self) -> list[tuple[Key, int, str]]:
        """Training pods that run: job, attempt and name."""
        with self._lock:
            pods = list(self._pods.values())
        return [
            (key, attempt, name) for key, phase, attempt, state, name in pods if phase == "train" and state == "Running"
        ]

    def whole(self, jobs: Iterable[Key], attempt: int = 1) -> int:
        """How many of these jobs train with all pods of this attempt or a later one."""
        counts: dict[Key, int] = {}
        for key, its, _ in self.running():
            if its >= attempt:
                counts[key] = counts.get(key, 0) + 1
        return sum(1 for key in jobs if counts.get(key, 0) >= POD_GANG)

    def seen(self, jobs: Iterable[Key]) -> int:
        """How many of these jobs have had a pod."""
        return sum(1 for key in jobs if key in self.first)

"""What one operator carries: 100, 1,000 and 10,000 DPOJobs on a real API server, nodes and pods by kwok: `make bench-scale`.

Of the jobs that are present, up to 500 run (two pods each); of the others three in four have ended, with the status that an
operator left, and one in four is suspended. They are spread over ten namespaces. The operator's own process, etcd, the API
server with its controllers, and kwok share this machine. Each part is bounded in time and then tells how far it came.
Exit status 1 when a bar is missed.
"""

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import kwok
from benchmarks.operator_memory import chart_limit
from benchmarks.operator_rig import UNSUPPORTED, Bench, memory_mib, samples
from benchmarks.operator_scale_rig import (
    POD_GANG,
    Figure,
    Pods,
    Scraped,
    between,
    bucket_p99,
    comparison,
    in_parallel,
    p99,
    passes,
    read,
    wait_for,
)
from dpo_operator.generate import crd
from dpo_operator.queueing.key import Key
from tests.apiserver.client import wait_until_served
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig import fixture
from tests.cluster.rig.shell import say
from tests.scratch import scratch_folder

TEAMS = tuple(f"team-{i}" for i in range(10))
HOSTILE, GOOD = "hostile", "good"
MOST_RUNNING = 500
GOOD_JOBS, NEW_JOBS = 20, 60
NODES = 20
# What each part may take, about 40 minutes in all. A gang is placed at a time, so 500 of them take longest.
SECONDS = {"first start": 420.0, "burst": 540.0, "restart": 240.0, "steady": 60.0, "new": 150.0}
SECONDS |= {"storm": 480.0, "hostile": 240.0, "delete": 240.0}
# kopf keeps an object's task for a moment after its last event, and a start has passes to end.
SETTLE_SECONDS = 20.0
# Requests a second of each controller: by default they would be the slowest part.
CONTROLLERS_QPS = 500
MEMORY_BAR = chart_limit()
RECONCILE_BAR, FIRST_POD_BAR, GOOD_BAR = 1.0, 10.0, 5.0
NO_ROOM = {"gpusPerNode": 8, "nodes": 2, "training": {"globalBatchSize": 16}}


class Shares(NamedTuple):
    """How many of the jobs run, are suspended, and have ended."""

    running: int
    suspended: int
    finished: int


def shares(jobs: int) -> Shares:
    """Of so many jobs."""
    run = min(MOST_RUNNING, jobs // 2)
    suspended = (jobs - run) // 4
    return Shares(run, suspended, jobs - run - suspended)


@dataclass
class Scale:
    """One control plane with a number of jobs, and what was measured there."""

    bench: Bench
    operator: OperatorProcess
    jobs: int
    bad_jobs: int
    steady_seconds: float
    pods: Pods = field(default_factory=Pods)
    figures: list[Figure] = field(default_factory=list)
    end: float = math.inf

    @property
    def left(self) -> float:
        """Seconds of the present part."""
        return max(0.0, self.end - time.monotonic())

    @property
    def shares(self) -> Shares:
        return shares(self.jobs)

    def note(self, *figures: Figure) -> None:
        """Keep figures, and show them at once."""
        for figure in figures:
            say(f"  {figure.name}: {figure.text()} {figure.unit}")
        self.figures += figures

    def create(self, jobs: dict[Key, dict[str, Any]]) -> dict[Key, float]:
        """Create jobs over several connections. Returns the time before each creation."""
        began: dict[Key, float] = {}

        def act(hands: Hands, key: Key) -> None:
            began[key] = time.monotonic()
            in_namespace(hands, key.namespace).apply(key.name, **jobs[key])

        in_parallel(self.bench, jobs, act, self.end)
        return began

    def first_pods(self, began: dict[Key, float], what: str) -> tuple[list[float], bool]:
        """Wait for the first pod of each job: how long each took, and whether all had one in time. Those without count until now."""
        wait = wait_for(what, lambda: self.pods.seen(began), len(began), self.left)
        now = time.monotonic()
        return [self.pods.first.get(key, now) - at for key, at in began.items()], wait.done >= wait.of

    def looked_at(self, jobs: int) -> Scraped:
        """How many of so many jobs the operator has had a pass over."""
        return Scraped(self.operator, lambda text: passes(text, jobs))

    def memory(self, part: str) -> None:
        """The most that this life of the operator had."""
        self.note(Figure(f"{part}: memory, peak", memory_mib(self.operator), "MiB", MEMORY_BAR))

    @contextmanager
    def reconciles(self, part: str) -> Iterator[None]:
        """Note the p99 of the passes in a part."""
        before = read(self.bench.plane, self.operator).buckets
        yield
        after = read(self.bench.plane, self.operator).buckets
        self.note(
            Figure(f"{part}: reconcile, p99 (upper bound of its bucket)", bucket_p99(before, after), "s", RECONCILE_BAR)
        )


def in_namespace(hands: Hands, namespace: str) -> Hands:
    """The same connection."""
    return Hands(hands.requests, namespace)


def keys(prefix: str, count: int, namespaces: tuple[str, ...] = TEAMS) -> list[Key]:
    """Names of jobs, over namespaces in turn."""
    return [Key(namespaces[i % len(namespaces)], f"{prefix}-{i}") for i in range(count)]


def prepare(scale: Scale) -> dict[str, Any]:
    """Namespaces and volumes, and the status of a job that went through all phases under an operator with no other."""
    plane, bench = scale.bench.plane, scale.bench
    for name in (*TEAMS, HOSTILE, GOOD):
        plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        plane.wait_for_service_account(name)
    count = scale.shares.running + scale.bad_jobs // 2 + NEW_JOBS + GOOD_JOBS + 10
    in_parallel(bench, range(count), volume, scale.end)
    hands = bench.hands(GOOD)
    with running(scale.operator):
        time.sleep(5)
        scale.note(Figure("no jobs: memory", memory_mib(scale.operator, peak=False), "MiB"))
        hands.apply("life")
        pods = wait_until("training", lambda: train_pods(hands, "life"), 120)
        for pod in pods:
            hands.end(pod, 0, last_words(0, "train", 1))
        wait_until("end of a job", lambda: hands.status("life").get("state") == "Complete", 120)
    return hands.status("life")


def train_pods(hands: Hands, job: str) -> list[dict[str, Any]]:
    """A job's training pods, as soon as all of them run."""
    pods = [pod for pod in hands.children("pods", job) if "-train-" in pod["metadata"]["name"]]
    return pods if sum(1 for pod in pods if pod["status"].get("phase") == "Running") == POD_GANG else []


def volume(hands: Hands, number: int) -> None:
    """A volume that a claim of any size is bound to; nothing is ever mounted."""
    spec = {
        "capacity": {"storage": "1Ti"},
        "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": "/none"},
    }
    body = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"v-{number}"}, "spec": spec}
    answer = hands.requests.send("POST", "/api/v1/persistentvolumes", body)
    assert answer.accepted, answer.message


def start(scale: Scale, status: dict[str, Any]) -> None:
    """Jobs that have ended or are suspended are there before the operator starts."""
    suspended, finished = keys("suspended", scale.shares.suspended), keys("finished", scale.shares.finished)
    say(f"creating {len(suspended):,} suspended and {len(finished):,} finished jobs")

    def ended(hands: Hands, key: Key) -> None:
        there = in_namespace(hands, key.namespace)
        there.apply(key.name)
        # As an earlier operator would have left it.
        there.patch("dpojobs", f"{key.name}/status", {"status": status})

    in_parallel(scale.bench, finished, ended, scale.end)
    scale.create({key: {"suspend": True} for key in suspended})
    scale.note(*first_looks(scale, "first start", len(suspended) + len(finished)))
    scale.memory("first start")


def first_looks(scale: Scale, part: str, jobs: int) -> list[Figure]:
    """Start the operator: until it has looked at each job once, and until a new job has its first pod."""
    began = time.monotonic()
    scale.operator.start()
    healthy = Figure(f"{part}: until it is healthy", time.monotonic() - began, "s")
    new = scale.create({Key(GOOD, part.replace(" ", "-")): {}})
    waits, all_there = scale.first_pods(new, f"{part}: first pod of a new job")
    look = wait_for(f"{part}: first looks", scale.looked_at(jobs), jobs, scale.left, since=began)
    late = "" if all_there else "none"
    return [
        healthy,
        look.figure(f"{part}: until all jobs were looked at"),
        Figure(f"{part}: first pod of a job that is created then", waits[0], "s", None, late),
    ]


def burst(scale: Scale) -> None:
    """All jobs that are to run come at once, and each is started."""
    jobs = keys("run", scale.shares.running)
    with scale.reconciles("burst"):
        began = scale.create({key: {} for key in jobs})
        since = min(began.values())
        waits, all_there = scale.first_pods(began, "burst: first pods")
        late = "" if all_there else f"{scale.pods.seen(jobs):,} of {len(jobs):,}"
        scale.note(Figure("burst: first pod of jobs that all come at once, p99", p99(waits), "s", None, late))
        whole = wait_for("burst: gangs that train", lambda: scale.pods.whole(jobs), len(jobs), scale.left, since=since)
        scale.note(whole.figure("burst: until all of them train"))
    scale.memory("burst")


def restart(scale: Scale) -> None:
    """The operator ends and starts with everything present."""
    scale.operator.stop()
    scale.note(*first_looks(scale, "restart", scale.jobs))
    scale.memory("restart")


def steady(scale: Scale) -> None:
    """Nothing happens but training."""
    time.sleep(SETTLE_SECONDS)
    plane, operator = scale.bench.plane, scale.operator
    scale.note(Figure("steady: jobs that train", float(scale.pods.whole(keys("run", scale.shares.running))), "jobs"))
    before = read(plane, operator)
    say(f"steady: {scale.steady_seconds:.0f} s")
    time.sleep(scale.steady_seconds)
    after = read(plane, operator)
    scale.note(
        *(Figure(f"steady: {f.name}", f.value, f.unit) for f in between(before, after)),
        Figure(
            "steady: reconcile, p99 (upper bound of its bucket)",
            bucket_p99(before.buckets, after.buckets),
            "s",
            RECONCILE_BAR,
        ),
        Figure("steady: memory", memory_mib(operator, peak=False), "MiB", MEMORY_BAR),
    )


def new(scale: Scale) -> None:
    """A new job each second beside those that run."""
    jobs, began = keys("new", NEW_JOBS), dict[Key, float]()
    with scale.reconciles("new jobs"):
        for key in jobs:
            began |= scale.create({key: {}})
            time.sleep(max(0.0, began[key] + 1.0 - time.monotonic()))
        waits, all_there = scale.first_pods(began, "new jobs: first pods")
        late = "" if all_there else f"{scale.pods.seen(jobs):,} of {len(jobs):,}"
        scale.note(
            Figure("new jobs, one a second: first pod, p50", sorted(waits)[len(waits) // 2], "s"),
            Figure("new jobs, one a second: first pod, p99", p99(waits), "s", FIRST_POD_BAR, late),
        )
    delete(scale, jobs)


def delete(scale: Scale, jobs: list[Key]) -> None:
    in_parallel(
        scale.bench, jobs, lambda hands, key: in_namespace(hands, key.namespace).delete("dpojobs", key.name), scale.end
    )


def storm(scale: Scale) -> None:
    """All training pods fail at one instant."""
    jobs = set(keys("run", scale.shares.running))
    pods = [(key, attempt, name) for key, attempt, name in scale.pods.running() if key in jobs]
    hit = {key: attempt for key, attempt, _ in pods}
    # How long it takes to tell all of them, before the instant is chosen.
    began = time.time()
    annotate(scale, pods, "benchmarks.example/rehearsal", "done")
    instant = time.time() + 2 * (time.time() - began) + SETTLE_SECONDS
    counted = restarts(scale.operator.metrics())
    with scale.reconciles("storm"):
        at = datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        annotate(scale, pods, kwok.FAILS_AT, at)
        early = instant - time.time()
        assert early > 0, f"the pods were told {-early:.0f} s after the instant"
        time.sleep(early)
        since = time.monotonic()
        say(f"storm: {len(pods):,} pods of {len(hit):,} jobs fail")
        look = Scraped(scale.operator, lambda text: int(restarts(text) - counted))
        decided = wait_for("storm: decisions", look, len(hit), scale.left, since=since)

        def again() -> int:
            return sum(scale.pods.whole([key], attempt + 1) for key, attempt in hit.items()) if decided.done else 0

        train = wait_for("storm: gangs that train again", again, len(hit), scale.left, since=since, every=2.0)
    scale.note(
        Figure("storm: pods that fail at one instant", float(len(pods)), "pods"),
        decided.figure("storm: until the restart of all their jobs is decided"),
        train.figure("storm: until all of them train again"),
    )
    scale.memory("storm")


def annotate(scale: Scale, pods: list[tuple[Key, int, str]], name: str, value: str) -> None:
    """Set an annotation of pods."""
    body = {"metadata": {"annotations": {name: value}}}
    in_parallel(
        scale.bench,
        pods,
        lambda hands, pod: in_namespace(hands, pod[0].namespace).patch("pods", pod[2], body),
        scale.end,
    )


def restarts(text: str) -> float:
    """Restarts that the operator has counted since it started."""
    return sum(samples(text, "dpojob_operator_job_restarts_total").values())


def hostile(scale: Scale) -> None:
    """Many jobs of a namespace, half of them refused and half too large for the cluster, and good ones of another meanwhile."""
    bad = {key: UNSUPPORTED if i % 2 else NO_ROOM for i, key in enumerate(keys("bad", scale.bad_jobs, (HOSTILE,)))}

    def come() -> None:
        try:
            scale.create(bad)
        except Exception as error:
            say(f"not all bad jobs were created: {type(error).__name__}: {error}")

    crowd = threading.Thread(target=come, daemon=True)
    began: dict[Key, float] = {}
    crowd.start()
    for key in keys("good", GOOD_JOBS, (GOOD,)):
        began |= scale.create({key: {}})
        time.sleep(max(0.0, began[key] + 1.0 - time.monotonic()))
    waits, all_there = scale.first_pods(began, "hostile: good jobs")
    late = "" if all_there else f"{scale.pods.seen(began):,} of {len(began):,}"
    scale.note(
        Figure(
            f"hostile: first pod of a good job among {scale.bad_jobs:,} bad ones, worst",
            max(waits),
            "s",
            GOOD_BAR,
            late,
        )
    )
    crowd.join(scale.left)
    there = scale.bench.hands(HOSTILE)

    def answered() -> int:
        return sum(1 for item in there.all("dpojobs") if item.get("status", {}).get("state"))

    done = wait_for("hostile: bad jobs with a state", answered, len(bad), scale.left, every=3.0)
    scale.note(done.figure("hostile: after that, until all bad ones have an answer"))
    scale.memory("hostile")


def delete_namespace(scale: Scale) -> None:
    """The namespace of the bad jobs is deleted."""
    hands = scale.bench.hands(HOSTILE)
    path = f"/api/v1/namespaces/{HOSTILE}"
    since = time.monotonic()
    hands.requests.send("DELETE", path)
    gone = wait_for(
        "deletion: the namespace is gone",
        lambda: int(hands.requests.send("GET", path).status == 404),
        1,
        scale.left,
        since=since,
    )

    def forgotten(text: str) -> int:
        return scale.bad_jobs - len(samples(text, "dpojob_info", namespace=HOSTILE))

    forgot = wait_for(
        "deletion: jobs that the operator forgot",
        Scraped(scale.operator, forgotten),
        scale.bad_jobs,
        scale.left,
        since=since,
    )
    scale.note(
        gone.figure(f"deletion of a namespace of {scale.bad_jobs:,} jobs: until it is gone"),
        forgot.figure("deletion: until the operator has forgotten them"),
    )


PARTS: dict[str, Callable[[Scale], None]] = {
    "burst": burst,
    "restart": restart,
    "steady": steady,
    "new": new,
    "storm": storm,
    "hostile": hostile,
    "delete": delete_namespace,
}
# What another part leaves, without which a part has nothing to measure.
NEEDS = {"restart": "burst", "steady": "burst", "new": "burst", "storm": "burst", "delete": "hostile"}


def chosen(parts: list[str]) -> list[str]:
    """Parts in their order, with those that they need."""
    wanted = {*parts, *(NEEDS[part] for part in parts if part in NEEDS)}
    return [part for part in PARTS if part in wanted]


def one(jobs: int, arguments: argparse.Namespace, figures: list[Figure]) -> None:
    """All parts with a number of jobs. A part that breaks off is a figure that is missed; what was measured stays in figures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(scratch_folder()))
        plane = stack.enter_context(fixture.control_plane("bench-scale", scheduler=True, qps=CONTROLLERS_QPS))
        plane.apply(crd.crd())
        wait_until_served(plane, crd.NAME)
        stack.enter_context(kwok.nodes(plane, NODES))
        settings = {"DPO_PROGRESS_SECONDS": "3"}
        # All namespaces, as the chart does by default.
        operator = OperatorProcess(plane.kubeconfig, "", folder / "operator.log", 30, settings)
        stack.callback(operator.stop)
        bench = Bench(plane, folder)
        scale = Scale(bench, operator, jobs, arguments.bad_jobs, arguments.steady_seconds, figures=figures)
        scale.pods.follow(plane)
        acts: dict[str, Callable[[Scale], None]] = {"first start": lambda each: start(each, prepare(each))}
        for part, act in (acts | {part: PARTS[part] for part in chosen(arguments.parts)}).items():
            say(f"== {jobs:,} jobs: {part}")
            began = time.monotonic()
            scale.end = began + SECONDS[part] + (arguments.steady_seconds if part == "steady" else 0)
            try:
                act(scale)
                assert not scale.pods.broken, f"the watch of pods broke off: {scale.pods.broken}"
            except Exception as error:
                say(f"{part} broke off: {type(error).__name__}: {error}")
                late = f"{type(error).__name__}, see above"
                scale.note(Figure(f"{part}: broke off", time.monotonic() - began, "s", None, late))
                if part in acts:
                    # Without the jobs there is nothing else to measure.
                    return


def main() -> int:
    """Exit status 1 when a bar is missed or a part was not over in its time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[100, 1000, 10_000], help="default: 100 1000 10000")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="and those that they need; default: all"
    )
    parser.add_argument("--bad-jobs", type=int, default=1000, help="of the hostile namespace; default: %(default)s")
    parser.add_argument("--steady-seconds", type=float, default=120, help="of the steady state; default: %(default)g")
    arguments = parser.parse_args()
    # As Ctrl-C: everything that was started ends, and what was measured is shown.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found: dict[int, list[Figure]] = {}
    try:
        for jobs in arguments.jobs:
            figures = found.setdefault(jobs, [])
            try:
                one(jobs, arguments, figures)
            except Exception as error:
                say(f"{jobs:,} jobs broke off: {type(error).__name__}: {error}")
                figures.append(Figure("all: broke off", 0.0, "s", None, f"{type(error).__name__}, see above"))
    finally:
        Console(width=150).print(comparison(found))
    return 1 if any(figure.missed for figures in found.values() for figure in figures) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

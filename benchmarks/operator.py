"""What the operator costs and how fast it is, on a real API server without nodes: `make bench-operator`.

The operator's own process, an etcd, a kube-apiserver and a controller-manager share this machine; the benchmark stands in
for the kubelets. Exit status 1 when a bar is missed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmarks.operator_fair import fair
from benchmarks.operator_memory import memory
from benchmarks.operator_rig import (
    UNSUPPORTED,
    Bench,
    Measurement,
    applied,
    count,
    cpu_seconds,
    empty,
    memory_mib,
    samples,
    table,
)
from dpo_operator.generate import crd
from tests.apiserver.client import Requests, wait_until_served
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig import fixture
from tests.scratch import scratch_folder

JOBS, BAD_JOBS, EXITS = 100, 1000, 20
# Good jobs that are timed, without and with the bad ones.
TIMES = 10
# What the first phase of a job gets.
PREPARING = ("persistentvolumeclaims", "configmaps", "networkpolicies", "jobs")


def quantile(operator: OperatorProcess, share: float) -> float:
    """Upper bound of reconcile's duration for that share of passes: the bucket in which it lies."""
    buckets = samples(operator, "dpojob_operator_handler_seconds_bucket", handler="reconcile", outcome="success")
    by_bound = sorted((float(le), count) for (le,), count in buckets.items())
    return next(bound for bound, count in by_bound if count >= share * by_bound[-1][1])


def requests(operator: OperatorProcess) -> float:
    """Requests to the API server, watches and kopf's lists aside."""
    return sum(samples(operator, "dpojob_operator_api_requests_total").values())


def many_at_once(bench: Bench, times: int) -> list[Measurement]:
    """100 jobs at once: until all their children exist."""
    until, p99, memory, asked, cpu, applying = [], [], [], [], [], []
    for run in range(times):
        hands, operator = bench.place(f"many-{run}")
        with running(operator):
            before, cpu_before = requests(operator), cpu_seconds(operator)
            began = time.monotonic()
            applied(bench, hands.namespace, {f"job-{i}": {} for i in range(JOBS)})
            applying.append(time.monotonic() - began)

            def complete(hands: Hands = hands) -> bool:
                return all(count(hands, kind) >= JOBS for kind in PREPARING)

            wait_until("children", complete, 120)
            until.append(time.monotonic() - began)
            asked.append((requests(operator) - before) / JOBS)
            time.sleep(5)
            p99.append(quantile(operator, 0.99))
            cpu.append((cpu_seconds(operator) - cpu_before) / JOBS * 1000)
            memory.append(memory_mib(operator))
        empty(bench, hands.namespace)
    return [
        Measurement.of(f"{JOBS} jobs at once: until all children exist", until, 10.0, "s"),
        Measurement.of("of that, until all DPOJobs are created", applying, None, "s"),
        Measurement.of("reconcile, p99 (upper bound of its bucket)", p99, 1.0, "s"),
        Measurement.of("requests for each job until then", asked, None, "requests"),
        Measurement.of("processor time for each job", cpu, None, "ms"),
        Measurement.of(f"memory with {JOBS} jobs, peak", memory, None, "MiB"),
    ]


def good_among_bad(bench: Bench) -> list[Measurement]:
    """1,000 jobs that will be refused, and one good one after them: how much later its children exist."""
    hands, operator = bench.place("crowd")

    def children_of(name: str) -> float:
        began = time.monotonic()
        hands.apply(name)
        wait_until("child Job", lambda: hands.get("jobs", f"{name}-prepare-1"), 120)
        return time.monotonic() - began

    with running(operator):
        alone = statistics.median(children_of(f"alone-{i}") for i in range(TIMES))
        # Written while the operator is stopped, so that all of them come at once, and the good one is the last.
        operator.stop()
        applied(bench, hands.namespace, {f"bad-{i}": UNSUPPORTED for i in range(BAD_JOBS)})
        operator.start()
        crowded = [children_of(f"good-{i}") for i in range(TIMES)]
        began = time.monotonic()
        refused = Requests(bench.plane)

        def all_refused() -> bool:
            items = refused.send("GET", hands.path("dpojobs")).body["items"]
            return sum(1 for i in items if i.get("status", {}).get("state") == "Failed") >= BAD_JOBS

        wait_until("refusals", all_refused, 180)
        peak = memory_mib(operator)
        rest = time.monotonic() - began
    empty(bench, hands.namespace)
    return [
        Measurement.of("child Job of a job on an empty queue", [alone], None, "s"),
        Measurement.of(
            f"delay of a good job by {BAD_JOBS:,} bad ones", [max(0.0, c - alone) for c in crowded], 5.0, "s"
        ),
        Measurement.of("after that, until all bad ones are refused", [rest], None, "s"),
        Measurement.of("memory with them, peak", [peak], None, "MiB"),
    ]


def exit_to_status(bench: Bench) -> list[Measurement]:
    """From the end of a rank's process, as the kubelet reports it, to the decision in the DPOJob's status."""
    hands, operator = bench.place("exits")
    took = []
    with running(operator):
        for run in range(EXITS):
            name = f"exit-{run}"
            hands.apply(name)
            hands.run_phase(name, "prepare")
            pods = hands.pods(name, "train", 1, 2)
            for pod in pods:
                hands.start(pod)
            wait_until("training", lambda name=name: hands.status(name).get("state") == "Training")
            began = time.monotonic()
            hands.end(pods[1], 137)
            wait_until("restart", lambda name=name: hands.status(name).get("restarts") == 1)
            took.append(time.monotonic() - began)
            hands.delete("dpojobs", name)
    return [Measurement.of(f"pod exit → status, {EXITS} times", took, 2.0, "s")]


PARTS: dict[str, Callable[[Bench, argparse.Namespace], list[Measurement]]] = {
    "many": lambda bench, arguments: many_at_once(bench, arguments.times),
    "bad": lambda bench, _: good_among_bad(bench),
    "exits": lambda bench, _: exit_to_status(bench),
    "memory": lambda bench, arguments: memory(bench, arguments.jobs),
    "fair": lambda bench, arguments: fair(bench, arguments.minutes),
}
DEFAULT = ("many", "bad", "exits")
# These need a scheduler, which would only take time from the others.
SCHEDULED = ("fair",)


def main() -> int:
    """Exit status 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = "|".join(PARTS)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"default: {' '.join(DEFAULT)}", metavar=names)
    parser.add_argument("--times", type=int, default=10, help="many: runs with 100 jobs; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1000, help="memory: jobs of each kind; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=10, help="fair: how long; default: %(default)s")
    arguments = parser.parse_args()
    missed = False
    chosen = arguments.parts or DEFAULT
    for scheduler in (False, True):
        parts = [name for name in chosen if (name in SCHEDULED) is scheduler]
        if not parts:
            continue
        plane_name = "bench-gangs" if scheduler else "bench-operator"
        with scratch_folder() as folder, fixture.control_plane(plane_name, scheduler=scheduler) as plane:
            plane.apply(crd.crd())
            wait_until_served(plane, crd.NAME)
            bench = Bench(plane, Path(folder))
            for name in parts:
                measurements = PARTS[name](bench, arguments)
                Console().print(table(measurements))
                missed = missed or any(f.missed for f in measurements)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

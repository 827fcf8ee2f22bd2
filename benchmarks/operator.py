"""What the operator costs and how fast it is, on a real API server without nodes: `make bench-operator`.

The operator's own process, an etcd, a kube-apiserver and a controller-manager share this machine; the benchmark stands in
for the kubelets. Exit status 1 when a bar is missed.
"""

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from dpo_operator.generate import crd
from tests.apiserver.client import Requests, wait_until_served
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig import fixture
from tests.cluster.rig.control_plane import ControlPlane
from tests.scratch import scratch_folder

JOBS, BAD_JOBS, EXITS = 100, 1000, 20
# Good jobs that are timed, without and with the bad ones.
TIMES = 10
# What a job leaves for the garbage collector.
KINDS = ("dpojobs", "jobs", "pods", "services", "networkpolicies", "poddisruptionbudgets")
# What the first phase of a job gets.
PREPARING = ("persistentvolumeclaims", "configmaps", "networkpolicies", "jobs")
UNSUPPORTED = {"training": {"globalBatchSize": 2, "offload": "nvme"}}


@dataclass(frozen=True)
class Measurement:
    """One line of the table. bar: most that worst may be; None: only printed."""

    name: str
    median: float
    worst: float
    bar: float | None
    unit: str

    @classmethod
    def of(cls, name: str, values: Iterable[float], bar: float | None, unit: str) -> "Measurement":
        """From what was measured, once or several times."""
        found = list(values)
        return cls(name, statistics.median(found), max(found), bar, unit)

    @property
    def missed(self) -> bool:
        return self.bar is not None and self.worst > self.bar


def table(measurements: Iterable[Measurement]) -> Table:
    """Table of the measurements."""
    made = Table(title="operator, API server without nodes")
    for head in ("measurement", "median", "worst", "bar", ""):
        made.add_column(head, justify="left" if head == "measurement" else "right")
    for f in measurements:
        bar = "" if f.bar is None else f"≤ {f.bar:g}"
        made.add_row(f"{f.name}, {f.unit}", f"{f.median:.3g}", f"{f.worst:.3g}", bar, "missed" if f.missed else "")
    return made


class Bench:
    """A control plane with the CRD; each measurement has a namespace and an operator of its own."""

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.folder = folder

    def place(self, name: str) -> tuple[Hands, OperatorProcess]:
        """An empty namespace and the operator for it, not yet started."""
        self.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        self.plane.wait_for_service_account(name)
        operator = OperatorProcess(self.plane.kubeconfig, name, self.folder / f"{name}.log", resync_seconds=30)
        return self.hands(name), operator

    def hands(self, namespace: str) -> Hands:
        return Hands(Requests(self.plane), namespace)


def samples(operator: OperatorProcess, name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """Samples of a series by their other labels' values."""
    found = {}
    for family in text_string_to_metric_families(operator.metrics()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                found[tuple(v for k, v in sorted(sample.labels.items()) if k not in labels)] = sample.value
    return found


def quantile(operator: OperatorProcess, share: float) -> float:
    """Upper bound of reconcile's duration for that share of passes: the bucket in which it lies."""
    buckets = samples(operator, "dpojob_operator_handler_seconds_bucket", handler="reconcile", outcome="success")
    by_bound = sorted((float(le), count) for (le,), count in buckets.items())
    return next(bound for bound, count in by_bound if count >= share * by_bound[-1][1])


def memory_mib(operator: OperatorProcess) -> float:
    """Most memory that the process has had."""
    status = Path(f"/proc/{operator.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def cpu_seconds(operator: OperatorProcess) -> float:
    """Processor time since the process started."""
    fields = Path(f"/proc/{operator.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def requests(operator: OperatorProcess) -> float:
    """Requests to the API server, watches and kopf's lists aside."""
    return sum(samples(operator, "dpojob_operator_api_requests_total").values())


def applied(bench: Bench, namespace: str, jobs: dict[str, dict[str, object]]) -> None:
    """Create jobs over several connections, as many users would."""
    names = list(jobs)

    def some(part: list[str]) -> None:
        hands = bench.hands(namespace)
        for name in part:
            hands.apply(name, **jobs[name])

    threads = [threading.Thread(target=some, args=(names[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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


def count(hands: Hands, kind: str) -> int:
    """Objects of a kind, without their bodies."""
    page = hands.requests.send("GET", f"{hands.path(kind)}?limit=1").body
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)


def empty(bench: Bench, namespace: str) -> None:
    """Delete all jobs, so that what is left of them does not slow the next measurement."""
    bench.plane.kubectl("-n", namespace, "delete", "dpojobs", "--all", "--wait=false")
    hands = bench.hands(namespace)
    wait_until("empty namespace", lambda: not any(count(hands, kind) for kind in KINDS), 180)


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


PARTS: dict[str, Callable[[Bench, int], list[Measurement]]] = {
    "many": many_at_once,
    "bad": lambda bench, _: good_among_bad(bench),
    "exits": lambda bench, _: exit_to_status(bench),
}


def main() -> int:
    """Exit status 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all", metavar="|".join(PARTS))
    parser.add_argument("--times", type=int, default=10, help="runs with 100 jobs; default: %(default)s")
    arguments = parser.parse_args()
    missed = False
    with scratch_folder() as folder, fixture.control_plane("bench-operator") as plane:
        plane.apply(crd.crd())
        wait_until_served(plane, crd.NAME)
        bench = Bench(plane, Path(folder))
        for name in arguments.parts or PARTS:
            measurements = PARTS[name](bench, arguments.times)
            Console().print(table(measurements))
            missed = missed or any(f.missed for f in measurements)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

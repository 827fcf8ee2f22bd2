"""What the operator's benchmarks share: operators on a control plane, their figures, and a table."""

import os
import statistics
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.operator_process import OperatorProcess
from tests.cluster.rig.control_plane import ControlPlane

# What a job leaves for the garbage collector.
KINDS = ("dpojobs", "jobs", "pods", "services", "networkpolicies", "poddisruptionbudgets")
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

    def place(self, name: str, *others: str) -> tuple[Hands, OperatorProcess]:
        """An empty namespace and the operator for it and for others, which are empty too; not yet started."""
        for each in (name, *others):
            self.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": each}})
            self.plane.wait_for_service_account(each)
        log, watched = self.folder / f"{name}.log", ",".join((name, *others))
        return self.hands(name), OperatorProcess(self.plane.kubeconfig, watched, log, resync_seconds=30)

    def hands(self, namespace: str) -> Hands:
        return Hands(Requests(self.plane), namespace)


def samples(metrics: OperatorProcess | str, name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """Samples of a series by their other labels' values. metrics: whose, or what a scrape showed."""
    text = metrics if isinstance(metrics, str) else metrics.metrics()
    found = {}
    # Parsing the series of thousands of jobs would take seconds.
    lines = "".join(f"{line}\n" for line in text.splitlines() if line.startswith(name))
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                found[tuple(v for k, v in sorted(sample.labels.items()) if k not in labels)] = sample.value
    return found


def memory_mib(operator: OperatorProcess, *, peak: bool = True) -> float:
    """Resident memory: the most that the process has had, or what it has now."""
    status, name = Path(f"/proc/{operator.pid}/status").read_text(), "VmHWM:" if peak else "VmRSS:"
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(name))) / 1024


def cpu_seconds(operator: OperatorProcess) -> float:
    """Processor time since the operator's process started."""
    return process_seconds(operator.pid)


def process_seconds(pid: int) -> float:
    """Processor time of a process since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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


def count(hands: Hands, kind: str) -> int:
    """Objects of a kind, without their bodies."""
    page = hands.requests.send("GET", f"{hands.path(kind)}?limit=1").body
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)


def empty(bench: Bench, namespace: str) -> None:
    """Delete all jobs, so that what is left of them does not slow the next measurement."""
    bench.plane.kubectl("-n", namespace, "delete", "dpojobs", "--all", "--wait=false")
    hands = bench.hands(namespace)
    wait_until("empty namespace", lambda: not any(count(hands, kind) for kind in KINDS), 180)

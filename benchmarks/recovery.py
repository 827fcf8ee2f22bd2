"""How fast a job comes back on a real cluster: ranks killed and stopped, nodes lost, one after another.

`python -m benchmarks.recovery` prints median and worst beside the bar of each, and exits 1 when the worst misses it.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests import tied
from tests.cluster import scenario
from tests.cluster.rig import fixture
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.cluster import Cluster, Shape
from tests.cluster.scenario import Job
from tests.cluster.witness import parse

HANG_TIMEOUT_SECONDS = 10

Status = dict[str, Any]


@dataclass
class Watch:
    """The newest status of a job and when it came, as a watch delivers it."""

    status: Status = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def follow(self, lines: Iterator[bytes]) -> None:
        """Read documents until the stream ends."""
        buffer = b""
        for line in lines:
            buffer += line
            if line.rstrip() != b"}":
                continue
            documents = parse(buffer.decode())
            buffer = b""
            with self._changed:
                self.status = documents[-1].get("status", {})
                self._changed.notify_all()

    def wait(self, fits: Callable[[Status], bool], what: str, timeout: float = 300) -> tuple[float, Status]:
        """Monotonic time at which a status first fits, and that status."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self.status) and fits(self.status), timeout):
                raise SystemExit(f"no {what} within {timeout:.0f} s: {json.dumps(self.status, indent=1)}")
            return time.monotonic(), self.status


@contextmanager
def watching(job: Job) -> Iterator[Watch]:
    command = [
        binary("kubectl"), f"--kubeconfig={job.cluster.kubeconfig}", "get", "dpojob", job.name, "--watch", "-o", "json",
    ]  # fmt: skip
    process = tied.popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    watch = Watch()
    threading.Thread(target=watch.follow, args=(iter(process.stdout.readline, b""),), daemon=True).start()
    try:
        yield watch
    finally:
        process.terminate()
        process.wait()


@dataclass(frozen=True)
class Round:
    """Seconds from one fault to what follows it."""

    decided: float
    trains: float


def trains_as(attempt: int) -> Callable[[Status], bool]:
    """Whether an attempt has finished a step of its own."""

    def fits(status: Status) -> bool:
        progress = status.get("progress") or {}
        return progress.get("attempt") == attempt and progress.get("step", 0) > (progress.get("resumedFromStep") or 0)

    return fits


def saved(status: Status) -> bool:
    """Whether the current attempt has committed a checkpoint."""
    return bool((status.get("checkpoint") or {}).get("attempt") == status["attempts"]["train"])


def one_round(job: Job, watch: Watch, fault: Callable[[], float]) -> Round:
    """fault: injects it, and returns the monotonic time at which it began."""
    # A job whose attempts save nothing is given up after three of them.
    _, status = watch.wait(saved, "checkpoint of the current attempt")
    attempt = status["attempts"]["train"]
    began = fault()
    decided, _ = watch.wait(lambda s: s["attempts"]["train"] > attempt, "decision")
    trains, _ = watch.wait(trains_as(attempt + 1), f"step of attempt {attempt + 1}")
    print(f"attempt {attempt}: decided after {decided - began:.1f} s, trains after {trains - began:.1f} s", flush=True)
    return Round(decided - began, trains - began)


def signal_rank(job: Job, number: signal.Signals) -> float:
    """Send a signal to all processes of rank 1's pod."""
    pod = job.pods("train")[1]["metadata"]["name"]
    node, container = job.cluster.container(pod, namespace=job.namespace, container=None)
    began = time.monotonic()
    node.signal_container(container, number, whole=True)
    return began


def lose_node(job: Job, lost: list[str]) -> float:
    lost.append(job.pods("train")[1]["spec"]["nodeName"])
    began = time.monotonic()
    job.cluster.cut_link(lost[-1])
    return began


def measure(cluster: Cluster, times: int) -> dict[str, list[float]]:
    """All rounds on one job that never ends by itself."""
    job = Job(cluster, "recovery")
    job.apply(
        {
            "model": {"name": "pvc://inputs/stories260K"},
            "data": {"train": {"source": "pvc://inputs/hh/train.jsonl", "limit": 256}, "maxLength": 256},
            "training": {
                "learningRate": 1e-4, "globalBatchSize": 8, "microBatchSize": 2, "precision": "fp32", "epochs": 1000,
            },
            "checkpoint": {"everySteps": 10, "volume": {"size": "1Gi", "retention": "Delete"}},
            "failurePolicy": {
                "hangTimeoutSeconds": HANG_TIMEOUT_SECONDS, "maxRestarts": 100, "backoffSeconds": 1, "maxBackoffSeconds": 1,
            },
            "nodes": 2,
            "gpusPerNode": 1,
        }
    )  # fmt: skip
    found: dict[str, list[float]] = {"exit": [], "kill": [], "stop": [], "node": []}
    try:
        with watching(job) as watch:
            for _ in range(times):
                killed = one_round(job, watch, lambda: signal_rank(job, signal.SIGKILL))
                found["exit"].append(killed.decided)
                found["kill"].append(killed.trains)
            for _ in range(times):
                found["stop"].append(one_round(job, watch, lambda: signal_rank(job, signal.SIGSTOP)).decided)
            # A time-out shorter than what a cluster takes to give a node up would be measured instead.
            policy = {"spec": {"failurePolicy": {"hangTimeoutSeconds": 600}}}
            cluster.kubectl("patch", "dpojob", job.name, "--type=merge", "-p", json.dumps(policy))
            for _ in range(times):
                lost: list[str] = []
                try:
                    found["node"].append(one_round(job, watch, lambda lost=lost: lose_node(job, lost)).trains)
                finally:
                    for node in lost:
                        cluster.restore_link(node)
                        cluster.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=120s")
    finally:
        job.delete()
    return found


ROWS = (
    ("exit", "a rank's exit → the status says so", 2.0),
    ("kill", "a rank is killed → next finished step seen", 30.0),
    ("node", "a node is lost → the gang trains elsewhere", 90.0),
    (
        "stop",
        f"a rank is stopped → restart decided (hangTimeoutSeconds {HANG_TIMEOUT_SECONDS})",
        HANG_TIMEOUT_SECONDS + 10.0,
    ),
)


def main() -> int:
    """Exit status 0 when no worst figure is above its bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10, help="rounds of each fault")
    parser.add_argument("--inputs", type=Path, default=scenario.shared_folder(), help="folder with models/ and data/")
    arguments = parser.parse_args()
    if arguments.inputs is None:
        parser.error("no real inputs beside the checkout; name their folder with --inputs")
    with fixture.cluster("recovery", shape=Shape(gpus=(0, 1, 1, 1))) as cluster:
        scenario.install_with_inputs(cluster, arguments.inputs)
        found = measure(cluster, arguments.times)
    table = Table("seconds", "median", "worst", "bar", title=f"Recovery, {arguments.times} rounds each")
    for key, text, bar in ROWS:
        table.add_row(text, f"{statistics.median(found[key]):.1f}", f"{max(found[key]):.1f}", f"{bar:.0f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return int(any(max(found[key]) > bar for key, _, bar in ROWS))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)

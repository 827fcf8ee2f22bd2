"""Memory of the operator by number and kind of DPOJobs, and how many fit under the chart's limit."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.operator_rig import UNSUPPORTED, Bench, Measurement, applied, memory_mib, samples
from dpo_operator.api.quantity import to_bytes
from tests.apiserver.hands import wait_until
from tests.apiserver.hostile import COLUMNS
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig.layout import CHECKOUT
from tests.cluster.rig.shell import step

LARGE_JOBS = 75
# kopf keeps an object's task for some seconds after its last event.
SETTLE_SECONDS = 10.0
LOOK_SECONDS = 2.0
WAIT_SECONDS = 600.0
FILE = CHECKOUT / "charts/dpo-operator/values.yaml"

Spec = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """Resident memory beside a number of jobs, MiB. peak: since the operator started, now: when it was done with them."""

    kind: str
    jobs: int
    now: float
    peak: float

    def of_each_thousand(self, nothing: "Held") -> float:
        """MiB for 1,000 jobs, beside an operator without any."""
        return (self.now - nothing.now) / self.jobs * 1000

    def that_fit(self, nothing: "Held", limit: float) -> int:
        """Jobs with which the peak would reach the limit, MiB, by a straight line through these two."""
        return int((limit - nothing.peak) / max(self.peak - nothing.peak, 1e-9) * self.jobs)


def chart_limit() -> float:
    """The operator's memory limit by default, MiB."""
    return to_bytes(yaml.safe_load(FILE.read_text())["operator"]["resources"]["limits"]["memory"]) / 2**20


def largest() -> Spec:
    """A spec whose large fields are all full, as far as the CRD accepts them together; the operator refuses it."""
    source = {"source": "a/b", "columns": dict.fromkeys(COLUMNS, "😀" * 128)}
    condition = {"column": "c", "operator": "In", "values": ["é" * 512]}
    return {
        "model": {"name": "org/model", "chatTemplate": "😀" * 32_768},
        "data": {"train": source, "mixture": [source] * 32, "filters": {"where": [condition] * 32}},
        "pod": {"env": [{"name": f"NCCL_{i}", "value": "😀" * 4096} for i in range(4)]},
    }


def memory(bench: Bench, jobs: int) -> list[Measurement]:
    """The operator's memory with nothing, and after a start beside many jobs of each kind."""
    nothing, status = one_life(bench)
    beside = [
        held(bench, "largest", {f"job-{i}": largest() for i in range(LARGE_JOBS)}),
        held(bench, "finished", {f"job-{i}": {} for i in range(jobs)}, status),
        held(bench, "refused", {f"job-{i}": UNSUPPORTED for i in range(jobs)}),
        held(bench, "pending", {f"job-{i}": {} for i in range(jobs)}),
    ]
    Console().print(by_kind(nothing, beside, chart_limit()))
    return [Measurement.of("memory beside the largest jobs, peak", [beside[0].peak], chart_limit(), "MiB")]


def one_life(bench: Bench) -> tuple[Held, Spec]:
    """Memory of an operator without jobs, and the status of a job that then goes through all phases."""
    hands, operator = bench.place("memory-nothing")
    with step("no job, then one"), running(operator):
        time.sleep(SETTLE_SECONDS)
        nothing = Held("nothing", 0, memory_mib(operator, peak=False), memory_mib(operator))
        hands.apply("job")
        hands.run_phase("job", "prepare")
        hands.run_all("job")
    return nothing, hands.status("job")


def held(bench: Bench, kind: str, jobs: dict[str, Spec], status: Spec | None = None) -> Held:
    """Memory of an operator that starts beside these jobs and has had a pass over each. status: that they have already."""
    hands, operator = bench.place(f"memory-{kind}")
    with step(f"{len(jobs)} {kind}"):
        applied(bench, hands.namespace, jobs)
        for name in jobs if status is not None else ():
            hands.patch("dpojobs", f"{name}/status", {"status": status})
        with running(operator):
            wait_until(f"passes over all {kind}", is_done(operator, len(jobs)), WAIT_SECONDS)
            time.sleep(SETTLE_SECONDS)
            found = Held(kind, len(jobs), memory_mib(operator, peak=False), memory_mib(operator))
    # At once: what comes after it may take long.
    print(found, flush=True)
    return found


def is_done(operator: OperatorProcess, jobs: int) -> Callable[[], bool]:
    """Whether every job had a pass, and none waits for one."""

    def look() -> bool:
        time.sleep(LOOK_SECONDS)
        passes = samples(operator, "dpojob_operator_handler_seconds_count", handler="reconcile", outcome="success")
        waiting = samples(operator, "dpojob_operator_queue_depth")
        return sum(passes.values()) >= jobs and not any(waiting.values())

    return look


def by_kind(nothing: Held, beside: list[Held], limit: float) -> Table:
    """Table of all kinds."""
    made = Table(
        title=f"the operator's memory, MiB; {nothing.now:.0f} with no job, {nothing.peak:.0f} at most",
        caption=f"the last column is a straight line through this one and no job, to the chart's {limit:.0f} MiB; not tried",
    )
    for head in ("jobs", "kind", "now", "peak since the start", "for 1,000 more", "fit by extrapolation"):
        made.add_column(head, justify="left" if head == "kind" else "right")
    for each in beside:
        more, fit = each.of_each_thousand(nothing), each.that_fit(nothing, limit)
        made.add_row(f"{each.jobs:,}", each.kind, f"{each.now:.0f}", f"{each.peak:.0f}", f"{more:.0f}", f"{fit:,}")
    return made

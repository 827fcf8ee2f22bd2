"""What must hold whatever breaks: a witness that sees every state of a job's pods, and checks of how the job ended."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from dpo_operator.api import names
from tests import tied
from tests.cluster.rig.binaries import binary
from tests.cluster.scenario import Job

Records = dict[int, dict[str, float]]


@dataclass
class Witness:
    """Every event of a job's training pods, in order."""

    job: Job
    events: list[dict[str, Any]] = field(default_factory=list)

    def lives(self) -> dict[str, tuple[int, str]]:
        """Attempt and node of each training pod that ever ran, by UID."""
        return {
            event["object"]["metadata"]["uid"]: (_attempt(event["object"]), event["object"]["spec"].get("nodeName", ""))
            for event in self.events
            if event["object"]["status"].get("phase") == "Running"
        }

    def check_one_gang(self) -> None:
        """A: at no moment did pods of two attempts run, but for pods that are on their way out of a lost node."""
        alive: dict[str, int] = {}
        for event in self.events:
            pod = event["object"]
            runs = pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
            if runs and event["type"] != "DELETED":
                alive[pod["metadata"]["uid"]] = _attempt(pod)
            else:
                alive.pop(pod["metadata"]["uid"], None)
            assert len(set(alive.values())) <= 1, f"attempts {sorted(set(alive.values()))} ran at the same time"


def _attempt(pod: dict[str, Any]) -> int:
    return int(pod["metadata"]["labels"][names.LABEL_ATTEMPT])


@contextmanager
def witness(job: Job) -> Iterator[Witness]:
    """Watch from now on, and check A in the end."""
    selector = f"{names.LABEL_JOB}={job.name},{names.LABEL_PHASE}=train"
    command = [
        binary("kubectl"), f"--kubeconfig={job.cluster.kubeconfig}", "get", "pods", "--namespace", job.namespace,
        "--selector", selector, "--watch", "--output-watch-events", "-o", "json",
    ]  # fmt: skip
    found = Witness(job)
    with tempfile.TemporaryFile("w+") as out:
        watch = tied.popen(command, stdout=out, stderr=subprocess.DEVNULL)
        try:
            yield found
        finally:
            time.sleep(0.5)
            watch.terminate()
            watch.wait()
            out.seek(0)
            found.events += parse(out.read())
    found.check_one_gang()


def parse(text: str) -> list[dict[str, Any]]:
    """JSON documents that follow each other; a last one may be cut."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        try:
            document, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            break
        found.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing happened to: its training records, and what was left of it."""

    records: Records
    ending: dict[str, Any]


def ending(job: Job) -> dict[str, Any]:
    """D: what must be the same after every fault that heals; names without attempts, nothing with a time in it."""
    status = job.status
    return {
        "state": status["state"],
        "conditions": {c["type"]: c["status"] for c in status["conditions"] if c["type"] != "Restarting"},
        "dataset": status["dataset"],
        "steps": status["finalMetrics"]["step"],
        "export": status["export"],
        "children": sorted({_kind_of(child, job.name) for child in children(job)}),
    }


def children(job: Job) -> list[str]:
    """kind/name of every object of the job."""
    found = job.cluster.kubectl(
        "get", "jobs,services,configmaps,persistentvolumeclaims,poddisruptionbudgets,networkpolicies",
        "--namespace", job.namespace, "--selector", f"{names.LABEL_JOB}={job.name}", "--output", "name",
    )  # fmt: skip
    return found.split()


def _kind_of(child: str, job: str) -> str:
    """The kind, and of a Job the phase; neither the job's name nor the attempt."""
    kind, _, name = child.partition("/")
    return f"{kind} {name.removeprefix(job).rstrip('0123456789')}" if kind.startswith("job") else kind


def check(
    job: Job, undisturbed: Undisturbed, *, restarts: int, counted: int, volume: str, records: bool = True
) -> None:
    """B to G after a job that has completed. volume: UID of its claim before the fault."""
    status = job.status
    assert ending(job) == undisturbed.ending
    assert (status["restarts"], status["countedRestarts"]) == (restarts, counted), status["restartHistory"]
    claim = job.cluster.get("pvc", status["volume"]["claimName"], "--namespace", job.namespace)
    assert claim["metadata"]["uid"] == volume
    living = [pod["metadata"]["name"] for pod in job.pods("train") if pod["status"]["phase"] in ("Running", "Pending")]
    assert living == []
    jobs = [child for child in children(job) if child.startswith("job")]
    assert len(jobs) == 3, jobs
    if records:
        check_losses(job.metrics(), undisturbed.records)


def check_losses(found: Records, expected: Records) -> None:
    """C and G: each step once, and its loss that of the run that never stopped."""
    assert set(found) == set(expected)
    for step, record in expected.items():
        assert found[step]["loss"] == pytest.approx(record["loss"], abs=1e-4), f"step {step}"


def claim_uid(job: Job) -> str:
    """UID of the job's claim."""
    return str(job.status["volume"]["claimUid"])

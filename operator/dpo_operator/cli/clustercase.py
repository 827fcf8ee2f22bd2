"""What `why` needs to know of a job in a cluster, read with kubectl."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.cli.kubectl import RESOURCE, ClusterError, Kubectl, of_job
from dpo_operator.explain.case import Case, Place

Raw = dict[str, Any]
# Pods whose events are read: the first ones that do not run.
MAX_PODS = 4


def read_case(kubectl: Kubectl, name: str) -> Case:
    """The job with its pods, events and, where it waits for its turn, the other jobs. Raises ClusterError if it can't be read.

    What else can't be read is left out and named in the case.
    """
    job = kubectl.job(name)
    status, here = job.get("status") or {}, kubectl.in_namespace_of(job)
    unread: list[str] = []

    def attempt(what: str, read: Callable[[], list[Raw]]) -> list[Raw]:
        try:
            return read()
        except ClusterError as error:
            unread.append(f"{what} could not be read: {error}")
            return []

    pods = attempt("Its pods", lambda: here.items("pods", of_job(job)))
    events = attempt("Its events", lambda: _events(here, name, status, pods))
    others, everywhere = _others(here) if _waits_for_turn(status) else ([], False)
    options = replace(kubectl, namespace=None).options
    place = Place(cluster=" ".join(["kubectl", *options]), options="".join(f" {option}" for option in options))
    return Case.from_raw(
        job, now=datetime.now(UTC), place=place, pods=pods, events=events, others=others, others_known=everywhere,
        unread=unread,
    )  # fmt: skip


def _events(kubectl: Kubectl, name: str, status: Raw, pods: list[Raw]) -> list[Raw]:
    """Events about the job, the Job of its attempt, and those of its pods that do not run."""
    phase = status.get("phase")
    about = [name]
    if phase in names.PHASES:
        about.append(names.child_job_name(name, phase, (status.get("attempts") or {}).get(phase, 0)))
    late = [
        pod["metadata"]["name"]
        for pod in pods
        if (pod.get("status") or {}).get("phase") not in ("Running", "Succeeded")
    ]
    found = []
    for each in [*about, *late[-MAX_PODS:]]:
        found += kubectl.items("events", f"--field-selector=involvedObject.name={each}")
    return found


def all_events(kubectl: Kubectl, name: str) -> list[Raw]:
    """Events about a job, its Jobs and its pods, those of its mirror too, also about what is gone. Raises ClusterError."""
    job = kubectl.job(name)
    uid = job["metadata"].get("uid")
    # Pods of a copy to the mirror have no index.
    mine = re.compile(rf"{re.escape(name)}-(({'|'.join(names.PHASES)})-\d+(-\d+-\w+)?|mirror-\d+(-\w+)?)")
    found = []
    for each in kubectl.in_namespace_of(job).items("events"):
        about = each.get("involvedObject") or {}
        child = about.get("kind") in ("Pod", "Job") and mine.fullmatch(str(about.get("name", "")))
        if about.get("uid") == uid or child:
            found.append(each)
    return found


def _waits_for_turn(status: Raw) -> bool:
    running: Raw = next((each for each in status.get("conditions") or () if each.get("type") == c.RUNNING), {})
    return running.get("reason") == c.QUEUED


def _others(here: Kubectl) -> tuple[list[Raw], bool]:
    """The DPOJobs of all namespaces, or of this one where the others can't be read, and which of the two it was."""
    try:
        return replace(here, namespace=None).items(RESOURCE, "--all-namespaces"), True
    except ClusterError:
        return here.items(RESOURCE), False

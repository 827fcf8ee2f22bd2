"""Hostile DPOJobs on a real API server with the operator running: refused, or their child objects are harmless."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.allowed.allow import Allow, refusals
from dpo_operator.api.types import DPOJobSpec
from tests.apiserver import harmless, hostile
from tests.apiserver.client import Answer, Requests
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.apiserver.hostile import Hostile
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver

# Phases of a job without rounds.
PLAIN: tuple[names.Phase, ...] = ("prepare", "train", "export")

SPACE = "hostile"
# As by default, and names for an environment that is as large as fits.
ALLOW = Allow(env=("A*",))
KINDS = ("jobs", "services", "configmaps", "persistentvolumeclaims", "poddisruptionbudgets", "networkpolicies")


@pytest.fixture(scope="module")
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Hands:
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}})
    return Hands(dpojobs, SPACE)


@pytest.fixture(scope="module")
def operator(
    hands: Hands, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    log: Path = tmp_path_factory.mktemp("hostile") / "operator.log"
    settings = {"DPO_ALLOW": ALLOW.model_dump_json()}
    with running(OperatorProcess(control_plane.kubeconfig, SPACE, log, settings=settings)) as process:
        yield process


def create(hands: Hands, attempt: Hostile, name: str) -> Answer:
    """As somebody does who asks the API server not to look at unknown fields."""
    return hands.requests.send(
        "POST", f"{hands.path('dpojobs')}?fieldValidation=Ignore", attempt.job(name, hands.namespace)
    )


def test_the_corpus_is_large_and_its_names_differ() -> None:
    ids = [attempt.id for attempt in hostile.ALL]
    assert len(ids) == len(set(ids))
    assert len(ids) >= 100


@pytest.mark.fault(45)
@pytest.mark.parametrize("attempt", hostile.NAMES, ids=lambda a: a.id)
def test_a_name_that_is_none_is_refused(hands: Hands, attempt: Hostile) -> None:
    assert create(hands, attempt, "unused").status in (400, 404, 422)


@pytest.mark.fault(47, 48)
@pytest.mark.parametrize("attempt", [a for a in hostile.TEXTS if a.refused], ids=lambda a: a.id)
def test_a_text_that_fits_nowhere_is_refused(hands: Hands, attempt: Hostile) -> None:
    assert create(hands, attempt, "unused").status in (400, 413, 422)


@pytest.mark.parametrize("attempt", [a for a in hostile.OTHERS if a.refused], ids=lambda a: a.id)
def test_what_nobody_may_ask_for_is_refused(hands: Hands, attempt: Hostile) -> None:
    answer = create(hands, attempt, "unused")
    assert answer.status in (400, 422), answer.body


@pytest.mark.fault(48)
def test_what_is_accepted_is_harmless(hands: Hands, operator: OperatorProcess) -> None:
    """All at the same time, each through all of its phases."""
    attempts = [attempt for attempt in hostile.ALL if not attempt.refused and not denied(attempt)]
    jobs = {}
    for i, attempt in enumerate(attempts):
        answer = create(hands, attempt, f"h-{i}")
        assert answer.accepted, (attempt.id, answer.message)
        # A status that is brought along is dropped.
        assert "status" not in answer.body
        jobs[f"h-{i}"] = attempt.id
    for phase in PLAIN:
        run_phase(hands, list(jobs), phase)
    for name, what in jobs.items():
        job = wait_until(f"end of {what}", lambda name=name: ended(hands, name))
        children = [child | {"kind": KIND_OF[kind]} for kind in KINDS for child in hands.children(kind, name)]
        assert len([child for child in children if child["kind"] == "Job"]) == 3, what
        assert [problem for child in children for problem in harmless.problems(child, job)] == [], what
        # Nobody but the tenant has put anything on the job itself.
        assert "finalizers" not in job["metadata"]


def denied(attempt: Hostile) -> list[str]:
    """What the operator says on behalf of the administrator."""
    spec = {key: value for key, value in attempt.job("x", SPACE)["spec"].items() if key in DPOJobSpec.model_fields}
    try:
        return refusals(DPOJobSpec.model_validate(spec), ALLOW, "", "default")
    except ValidationError:
        return []  # unknown fields, which the API server drops


def test_what_the_administrator_does_not_allow_makes_nothing(hands: Hands, operator: OperatorProcess) -> None:
    attempts = [attempt for attempt in hostile.ALL if not attempt.refused and denied(attempt)]
    assert len(attempts) >= 9
    for i, attempt in enumerate(attempts):
        assert create(hands, attempt, f"denied-{i}").accepted, attempt.id
    for i, attempt in enumerate(attempts):
        wait_until(f"end of {attempt.id}", lambda i=i: hands.status(f"denied-{i}").get("state") == "Failed")
        assert hands.condition(f"denied-{i}", "Failed") == ("True", "NotAllowed")
        assert not any(hands.children(kind, f"denied-{i}") for kind in KINDS)


@pytest.mark.fault(47)
def test_what_is_too_large_together_fails_at_once(hands: Hands, operator: OperatorProcess) -> None:
    for i, attempt in enumerate(hostile.TOO_LARGE):
        assert create(hands, attempt, f"large-{i}").accepted, attempt.id
    for i, attempt in enumerate(hostile.TOO_LARGE):
        wait_until(f"end of {attempt.id}", lambda i=i: hands.status(f"large-{i}").get("state") == "Failed")
        assert hands.condition(f"large-{i}", "Failed") == ("True", "InvalidSpec")
        assert not any(hands.children(kind, f"large-{i}") for kind in KINDS)


KIND_OF = {
    "jobs": "Job",
    "services": "Service",
    "configmaps": "ConfigMap",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "poddisruptionbudgets": "PodDisruptionBudget",
    "networkpolicies": "NetworkPolicy",
}


def ended(hands: Hands, name: str) -> dict[str, Any] | None:
    job = hands.get("dpojobs", name)
    return job if job and job.get("status", {}).get("state") == "Complete" else None


def run_phase(hands: Hands, jobs: list[str], phase: names.Phase) -> None:
    """One phase of all jobs, which have one pod each."""
    pods = {name: hands.pods(name, phase, 1, 1)[0] for name in jobs}
    for pod in pods.values():
        hands.start(pod, "")
    for name, pod in pods.items():
        wait_until(f"{name} to run", lambda name=name: hands.condition(name, "Running")[0] == "True")
        hands.end(pod, 0, last_words(0, phase, 1, export_path="export"))


@pytest.mark.fault(45)
def test_names_that_are_made_of_each_other_do_not_collide(hands: Hands, operator: OperatorProcess) -> None:
    jobs = ["x", "x-train", "x-train-1", "x-prepare", "x-train-1-0", "x-work", "x" * names.MAX_JOB_NAME]
    made = {}
    for name in jobs:
        answer = create(hands, Hostile(name), name)
        assert answer.accepted, answer.message
        made[name] = answer.body["metadata"]["uid"]
    for phase in PLAIN:
        run_phase(hands, jobs, phase)
    for name in jobs:
        wait_until(f"end of {name}", lambda name=name: ended(hands, name))
        for kind in ("jobs", "services", "configmaps"):
            owners = {child["metadata"]["ownerReferences"][0]["uid"] for child in hands.children(kind, name)}
            assert owners == {made[name]}


def test_the_check_finds_what_is_harmful(hands: Hands, operator: OperatorProcess) -> None:
    """Negative control: a Job as nobody should get it."""
    answer = create(hands, Hostile("control"), "control")
    (child,) = wait_until("Job", lambda: hands.children("jobs", "control"))
    child["kind"] = "Job"
    assert harmless.problems(child, answer.body) == []
    pod = child["spec"]["template"]["spec"]
    pod |= {"hostPID": True, "serviceAccountName": "admin"}
    pod["volumes"].append({"name": "h", "hostPath": {"path": "/"}})
    container = pod["containers"][0]
    container["env"].append({"name": "X", "value": "$$$(HOME)"})
    container["command"] = ["sh", "-c", "id"]
    container["securityContext"]["capabilities"] = {"add": ["SYS_ADMIN"]}
    found = " ".join(harmless.problems(child, answer.body))
    for word in ("hostPID", "serviceAccountName", "hostPath", "X is expanded", "command", "capabilities"):
        assert word in found

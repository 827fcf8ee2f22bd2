"""One hostile text by every way in: nothing of it gets out as it was."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.api.reports import Progress
from dpo_operator.api.types import DPOJob
from dpo_operator.kube.client import error_of
from dpo_operator.planning.objects import ChildJob, ChildPod, Notice
from dpo_operator.planning.observed import Heartbeat, Observed
from dpo_operator.planning.rejecting import reject_unreadable
from dpo_operator.planning.validate import Problems, read_job
from tests.unit.planning.build import NOON, a_child, a_claim, a_job, a_pod, a_status, a_view, decide

pytestmark = pytest.mark.unit

EVIL = "done\x1b[2J\x07\nWarning  Forged\r\n\u202etxt\u2066\u200b\u2028\u3164\ufeff” said “" + "!" * 30_000
VISIBLE = "done�[2J"
# What no status and no event may contain, apart from all that str.isprintable knows.
INVISIBLE = "\u3164\u2800\ufe0f\u034f"


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from (key, *leaves(part))
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, str):
        yield value


def raw_pod(status: dict[str, Any], node: str = "n1", phase: str = "train") -> ChildPod:
    labels = {names.LABEL_PHASE: phase, names.LABEL_ATTEMPT: "1", names.COMPLETION_INDEX: "0"}
    owner = [{"uid": f"uid-pairs-{phase}-1", "controller": True}]
    metadata = {"name": f"pairs-{phase}-1-0-x", "uid": "u", "labels": labels, "ownerReferences": owner}
    return ChildPod.from_raw({"metadata": metadata, "status": status, "spec": {"nodeName": node}})


def container(**state: Any) -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": [{"name": names.CONTAINER, "state": state}]}


def ended_pod(code: int, phase: str = "train", **more: Any) -> ChildPod:
    progress = {"phase": phase, "attempt": 1, "activity": EVIL[:100], "step": 3, "max_steps": 3}
    digest = {"step": 3, "path": EVIL[:100], "digest": "ab" * 32, "attempt": 1, "time": 1e9}
    said = {"phase": phase, "attempt": 1, "outcome": "Succeeded" if code == 0 else "Failed", "exit_code": code}
    said |= {"message": EVIL[:2000], "reason": EVIL[:50], "progress": progress | {"checkpoint": digest}} | more
    end = {"exitCode": code, "reason": EVIL, "finishedAt": EVIL, "message": json.dumps(said)}
    return raw_pod(container(terminated=end), phase=phase)


def failed_job() -> ChildJob:
    condition = {"type": "Failed", "status": "True", "message": EVIL}
    labels = {names.LABEL_PHASE: "train", names.LABEL_ATTEMPT: "1"}
    metadata = {"name": "pairs-train-1", "uid": "uid-pairs-train-1", "labels": labels}
    return ChildJob.from_raw({"metadata": metadata, "status": {"conditions": [condition]}}, failed_seconds=60)


def event(uid: str, reason: str) -> Notice:
    return Notice.from_raw({"involvedObject": {"uid": uid}, "reason": reason, "message": EVIL})


def condition(type_: str, status: str) -> dict[str, str]:
    return {"type": type_, "status": status, "reason": EVIL, "message": EVIL}


def pending(**status: Any) -> ChildPod:
    return raw_pod(status | {"phase": "Pending"}, node="")


def reading() -> Heartbeat:
    checkpoint = {"step": 2, "path": EVIL, "digest": "ab" * 32, "attempt": 1, "time": 1e9}
    said = {"phase": "train", "attempt": 1, "activity": EVIL, "step": 2, "checkpoint": checkpoint}
    return Heartbeat(Progress.model_validate_json(json.dumps(said)))


def refused() -> str:
    error = error_of(403, json.dumps({"reason": EVIL, "message": EVIL}).encode(), "", "")
    return f"The API server refused to create Job x: {error}"


DATASET = {"train_pairs": 1, "eval_pairs": 1, "dropped": {EVIL[:60]: 2}}
ONE, UID = {"nodes": 1}, "uid-pairs-train-1"
WAYS_IN: dict[str, Callable[[], tuple[DPOJob, Observed, str]]] = {
    "exit": lambda: (a_job(**ONE), a_view(a_child(), ended_pod(70)), "train"),
    "success": lambda: (a_job(**ONE), a_view(a_child(complete=True), ended_pod(0)), "train"),
    "dataset": lambda: (
        a_job(**ONE),
        a_view(a_child("prepare", complete=True), ended_pod(0, "prepare", dataset=DATASET)),
        "prepare",
    ),
    "export": lambda: (
        a_job(**ONE),
        a_view(a_child("export", complete=True), ended_pod(0, "export", export_path=EVIL[:90])),
        "export",
    ),
    "progress": lambda: (a_job(**ONE), a_view(a_child(), a_pod(), progress=reading().progress), "train"),
    "pod": lambda: (a_job(**ONE), a_view(a_child(), raw_pod({"phase": "Failed", "reason": EVIL, "message": EVIL})), "train"),
    "disruption": lambda: (
        a_job(**ONE),
        a_view(a_child(), raw_pod({"phase": "Failed", "message": EVIL, "conditions": [condition("DisruptionTarget", "True")]})),
        "train",
    ),
    "image": lambda: (
        a_job(**ONE),
        a_view(a_child(), pending(**container(waiting={"reason": "ErrImagePull", "message": EVIL}))),
        "train",
    ),
    "container": lambda: (
        a_job(**ONE),
        a_view(a_child(), pending(**container(waiting={"reason": "CreateContainerError", "message": EVIL}))),
        "train",
    ),
    "scheduler": lambda: (
        a_job(**ONE),
        a_view(a_child(), pending(conditions=[condition("PodScheduled", "False")])),
        "train",
    ),
    "scheduler, gang": lambda: (
        a_job(),
        a_view(a_child(), pending(conditions=[condition("PodScheduled", "False")]), placing_seconds=1e6),
        "train",
    ),
    "Job": lambda: (a_job(**ONE), a_view(failed_job()), "train"),
    "event of a Job": lambda: (a_job(**ONE), a_view(a_child(), waiting_seconds=60, notices=(event(UID, "FailedCreate"),)), "train"),
    "event of a pod": lambda: (a_job(**ONE), a_view(a_child(), raw_pod({}), waiting_seconds=60, notices=(event("u", "FailedMount"),)), "train"),
    "webhook": lambda: (a_job(**ONE), a_view(refused=refused()), "train"),
    "webhook, gang": lambda: (a_job(), a_view(a_child(suspended=True), refused=refused()), "train"),
    "claim": lambda: (
        a_job(**ONE, checkpoint={"volume": {"size": "900Gi"}}),
        a_view(a_child(), a_pod(), claim=a_claim(requested="1Gi"), expansion_refused=("900Gi", EVIL)),
        "train",
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_IN)
def test_no_hostile_text_gets_out_by(way: str):
    job, seen, phase = WAYS_IN[way]()
    created = way not in ("webhook",)
    plan = decide(a_status(phase, created=created), seen, job)
    texts = [*leaves(plan.status.to_dict()), *(e.message for e in plan.events), *(e.reason for e in plan.events)]
    assert any(VISIBLE in text for text in texts)
    for text in texts:
        assert text.isprintable()
        assert not set(INVISIBLE) & set(text)
        assert len(text) <= 2048
    assert all(len(e.message) <= 1000 for e in plan.events)


def test_keys_of_a_spec_are_shown_like_its_values():
    raw = a_job().model_dump(by_alias=True, mode="json", exclude_none=True)
    raw["spec"]["pod"] = {"nodeSelector": {EVIL: EVIL}, EVIL: 1}
    problems = read_job(raw)
    assert isinstance(problems, Problems)
    rejected = reject_unreadable(a_status(), problems, generation=1, now=NOON)
    assert VISIBLE in rejected.status.message
    assert all(
        text.isprintable() for text in [*leaves(rejected.status.to_dict()), *(e.message for e in rejected.events)]
    )

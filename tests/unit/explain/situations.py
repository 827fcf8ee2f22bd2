"""Situations of jobs as the operator's own planning makes them, for the golden texts of `why`.

`python -m tests.unit.explain.situations` writes them again.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.diagnosis import MEANINGS, Code, Figure, Finding
from dpo_operator.api.exitcodes import TABLE, ExitCode
from dpo_operator.api.reports import SlowestRank
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.stored import CheckpointStatus, MirrorStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.explain.case import Case, Place
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.findings import as_status
from dpo_operator.planning.objects import ChildPod, Notice
from dpo_operator.planning.plan import plan
from dpo_operator.planning.rejecting import reject
from dpo_operator.planning.restarts import after_failure
from dpo_operator.planning.transitions import Moment, settled
from dpo_operator.planning.validate import validate
from tests.unit.planning.build import (
    NOON,
    SETTINGS,
    a_child,
    a_claim,
    a_job,
    a_pod,
    a_reading,
    a_status,
    a_view,
    decide,
    termination_text,
)

GOLDEN = Path(__file__).with_name("golden.txt")
PLACE = Place("kubectl")
Raw = dict[str, Any]
SITUATIONS: dict[str, Callable[[], Case]] = {}


def situation(make: Callable[[], Case]) -> Callable[[], Case]:
    SITUATIONS[make.__name__.replace("_", " ")] = make
    return make


def case(
    status: DPOJobStatus,
    job: DPOJob | None = None,
    *,
    pods: tuple[Raw, ...] = (),
    events: tuple[Raw, ...] = (),
    others: tuple[Raw, ...] = (),
    minutes: float = 3,
    findings: tuple[Finding, ...] = (),
    **metadata: Any,
) -> Case:
    """The case of a job some minutes after its status was written, read back from JSON as an API server has it."""
    raw = (job or a_job()).model_dump(mode="json", by_alias=True, exclude_none=True)
    raw["metadata"] |= {"creationTimestamp": "2026-01-01T11:30:00Z"} | metadata
    found = [as_status(finding, "train") for finding in findings]
    raw["status"] = status.model_copy(update={"findings": found}).to_dict()
    now = NOON + timedelta(minutes=minutes)
    return Case.from_raw(raw, now=now, place=PLACE, pods=pods, events=events, others=others, others_known=True)


def raw_pod(index: int = 0, of: str = "train", attempt: int = 1, node: str = "", **status: Any) -> Raw:
    """A pod as the API server has it."""
    phase = of
    name = f"pairs-{phase}-{attempt}-{index}"
    labels = {names.LABEL_PHASE: phase, names.LABEL_ATTEMPT: str(attempt), names.COMPLETION_INDEX: str(index)}
    owner = [{"uid": f"uid-pairs-{phase}-{attempt}", "controller": True}]
    metadata = {"name": f"{name}-x7k2p", "uid": f"uid-{name}", "labels": labels, "ownerReferences": owner}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": "Pending"} | status}


def unscheduled(words: str) -> Raw:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "message": words}]}


def container(**state: Any) -> Raw:
    return {"containerStatuses": [{"name": names.CONTAINER, "state": state}]}


def ended(
    index: int,
    code: int,
    words: str = "",
    *,
    reason: str = "Error",
    phase: str = "train",
    attempt: int = 1,
    **more: Any,
) -> Raw:
    """A pod whose container ended."""
    text = termination_text(code, words, phase=phase, attempt=attempt, rank=index, **more) if words else ""
    end = {"exitCode": code, "reason": reason, "finishedAt": "2026-01-01T12:00:00Z", "message": text}
    return raw_pod(index, phase, attempt, node=f"gpu-{index}", **({"phase": "Failed"} | container(terminated=end)))


def event(about: str, reason: str, message: str, uid: str = "", count: int = 1) -> Raw:
    kind, name = about.split()
    return {
        "involvedObject": {"kind": kind, "name": name, "uid": uid},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "count": count,
        "lastTimestamp": "2026-01-01T12:02:00Z",
    }


def waits(
    *pods: Raw,
    job: DPOJob | None = None,
    events: tuple[Raw, ...] = (),
    claim: Any = "own",
    phase: Any = "train",
    **seen: Any,
) -> Case:
    """What planning says of pods that do not run, from the same objects."""
    children = [a_child(phase), *(ChildPod.from_raw(pod) for pod in pods)]
    notices = tuple(Notice.from_raw(each) for each in events)
    status = decide(a_status(phase), a_view(*children, claim=claim, notices=notices, **seen), job).status
    return case(status, job, pods=pods, events=events)


def fails(
    *pods: Raw, job: DPOJob | None = None, phase: Any = "train", status: DPOJobStatus | None = None, **seen: Any
) -> Case:
    """What planning says of pods that ended."""
    before = status or a_status(phase)
    after = decide(before, a_view(a_child(phase, before.attempt), *(ChildPod.from_raw(p) for p in pods), **seen), job)
    return case(after.status, job, pods=pods, minutes=0)


# Pending


@situation
def nobody_has_looked_at_it() -> Case:
    return case(DPOJobStatus())


@situation
def its_pods_are_starting() -> Case:
    return waits(raw_pod(0, node="gpu-0"), raw_pod(1, node="gpu-1"))


@situation
def no_node_has_room() -> Case:
    words = "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 Insufficient nvidia.com/gpu."
    return waits(raw_pod(0, **unscheduled(words)), raw_pod(1, **unscheduled(words)), job=a_job(nodes=2, gpusPerNode=8))


@situation
def a_quota_is_used_up() -> Case:
    words = 'Error creating: pods "pairs-train-1-0-x7k2p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8'
    return waits(events=(event("Job pairs-train-1", "FailedCreate", words, "uid-pairs-train-1", 4),))


@situation
def a_webhook_denies_its_pods() -> Case:
    words = 'Error creating: admission webhook "guard.example.org" denied the request: images must come from registry.example'
    return waits(events=(event("Job pairs-train-1", "FailedCreate", words, "uid-pairs-train-1"),))


@situation
def its_priority_class_does_not_exist() -> Case:
    words = 'Error creating: pods "pairs-train-1-0-x" is forbidden: no PriorityClass with name urgent was found'
    job = a_job(pod={"priorityClassName": "urgent"})
    return waits(job=job, events=(event("Job pairs-train-1", "FailedCreate", words, "uid-pairs-train-1"),))


@situation
def its_token_does_not_exist() -> Case:
    pod = raw_pod(0, "prepare", node="cpu-0")
    words = 'MountVolume.SetUp failed for volume "token" : secret "hf" not found'
    job = a_job(model={"name": "org/gated", "tokenSecretRef": {"name": "hf", "key": "token"}})
    said = event("Pod pairs-prepare-1-0-x7k2p", "FailedMount", words, "uid-pairs-prepare-1-0", 3)
    return waits(pod, job=job, phase="prepare", events=(said,))


@situation
def a_volume_can_not_be_mounted() -> Case:
    words = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other-0'
    said = event("Pod pairs-train-1-0-x7k2p", "FailedAttachVolume", words, "uid-pairs-train-1-0")
    return waits(raw_pod(0, node="gpu-0"), raw_pod(1, node="gpu-1"), events=(said,))


@situation
def its_image_does_not_exist() -> Case:
    waiting = {
        "reason": "ImagePullBackOff",
        "message": 'Back-off pulling image "registry.example/trainer:0.9": not found',
    }
    job = a_job(pod={"image": "registry.example/trainer:0.9"})
    return waits(raw_pod(0, node="gpu-0", **container(waiting=waiting)), raw_pod(1, node="gpu-1"), job=job)


@situation
def its_container_can_not_be_made() -> Case:
    waiting = {"reason": "CreateContainerConfigError", "message": 'configmap "pairs-config-0123456789" not found'}
    return waits(raw_pod(0, node="gpu-0", **container(waiting=waiting)), raw_pod(1, node="gpu-1"))


@situation
def its_claim_does_not_exist() -> Case:
    job = a_job(checkpoint={"volume": {"claimName": "team-volume"}})
    status = a_status("prepare", created=False, volume=None)
    return case(decide(status, a_view(claim=None), job).status, job)


@situation
def its_claim_has_no_volume() -> Case:
    words = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    return waits(raw_pod(0, "prepare", **unscheduled(words)), claim=a_claim(bound=False), phase="prepare")


@situation
def its_claim_is_being_deleted() -> Case:
    return case(decide(a_status("prepare", created=False, volume=None), a_view(claim=a_claim(deleting=True))).status)


@situation
def its_claim_can_not_be_shared() -> Case:
    job = a_job(checkpoint={"volume": {"claimName": "mine"}})
    claim = a_claim(name="mine", access_modes=("ReadWriteOnce",), open=True)
    return case(decide(a_status("prepare", created=False, volume=None), a_view(claim=claim), job).status, job)


@situation
def an_object_of_its_name_is_there() -> Case:
    status = a_status("prepare", created=False, volume=None)
    return case(decide(status, a_view(claim=a_claim(token_digest="other"))).status)


@situation
def the_administrator_does_not_allow_its_claim() -> Case:
    job = a_job(checkpoint={"volume": {"claimName": "mine"}})
    status = a_status("prepare", created=False, volume=None)
    return case(decide(status, a_view(claim=a_claim(name="mine")), job).status, job)


@situation
def old_pods_still_stop() -> Case:
    old = a_pod(0, attempt=1, deleting=True)
    status = a_status(attempt=2, created=False)
    return case(decide(status, a_view(a_child(attempt=1, deleting=True), old)).status)


@situation
def the_api_server_refuses_its_job() -> Case:
    status = a_status(created=False)
    refused = 'jobs.batch "pairs-train-1" is forbidden: User "system:serviceaccount:dpo-system:dpo-operator" cannot create resource "jobs"'
    return case(decide(status, a_view(refused=refused)).status)


@situation
def it_waits_for_its_turn() -> Case:
    status = decide(a_status(), a_view(a_child(suspended=True), may_place=False)).status
    waited = [
        {"metadata": {"uid": str(n)}, "status": {"placementWait": {"waitingSince": f"2026-01-01T11:{n}:00Z"}}}
        for n in (10, 20)
    ]
    return case(status, others=tuple(waited))


@situation
def it_waits_in_a_queue() -> Case:
    job = a_job(queue={"kind": "Kueue", "name": "team"})
    return case(decide(a_status(), a_view(a_child(suspended=True)), job).status, job)


@situation
def its_gang_got_half_of_its_nodes() -> Case:
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    pods = (raw_pod(0, node="gpu-0"), raw_pod(1, **unscheduled(words)))
    seen = a_view(a_child(), *(ChildPod.from_raw(p) for p in pods), placing_seconds=300.0)
    return case(decide(a_status(), seen).status, pods=pods, minutes=0)


# Restarting


@situation
def it_backs_off() -> Case:
    status = a_status(active_job=None)
    for _ in range(3):
        failure = Failure(
            "InternalError",
            "counted",
            "train attempt 1: rank 0 exited with code 70 (InternalError): “CUDA error”",
            step=40,
        )
        status = after_failure(status, failure, a_job().spec.failure_policy, Moment(NOON, 1)).status
    later = Moment(NOON, 1)
    found = decide(settled(status, later), a_view(), now=NOON + timedelta(seconds=1))
    return case(found.status, minutes=1 / 60)


@situation
def a_pod_was_evicted() -> Case:
    pod = ended(0, 143, "Stopped by SIGTERM after a save at step 40.", outcome="Stopped")
    pod["status"]["conditions"] = [
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
        }
    ]
    return fails(pod, raw_pod(1, node="gpu-1", phase="Running"))


@situation
def a_pod_was_preempted() -> Case:
    pod = ended(0, 143, "Stopped by SIGTERM after a save at step 40.", outcome="Stopped")
    message = "default-scheduler: preempting to accommodate a higher priority pod"
    pod["status"]["conditions"] = [
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message}
    ]
    return fails(pod)


@situation
def its_ranks_hang() -> Case:
    running = {"phase": "Running"}
    pods = (raw_pod(0, node="gpu-0", **running), raw_pod(1, node="gpu-1", **running))
    view = a_view(a_child(), *(ChildPod.from_raw(p) for p in pods), progress=a_reading(12), stalled_seconds=1.0)
    before = decide(a_status(), view).status
    hung = replace(view, heartbeat=replace(view.heartbeat, progress=None, stalled_seconds=300.0, hung=(1,)))
    return case(decide(before, hung).status, pods=pods, minutes=0)


@situation
def it_runs_out_of_memory() -> Case:
    return fails(ended(0, 137, reason="OOMKilled"), raw_pod(1, node="gpu-1", phase="Running"))


@situation
def it_was_restarted_too_often() -> Case:
    status = a_status(
        restarts=5, counted_restarts=5, counted_restart_times=[int(NOON.timestamp()) - n for n in range(5)]
    )
    words = "Unexpected RuntimeError: CUDA error: an illegal memory access was encountered"
    return fails(ended(0, 70, words), ended(1, 75), status=status)


@situation
def it_does_not_get_any_further() -> Case:
    status = a_status(restarts=3, counted_restarts=3, restarts_without_progress=3, furthest_step=40)
    first = after_failure(
        a_status(), Failure("Hang", "counted", "train attempt 1: nothing was finished for 300 s after step 40; all pods run.", step=40),
        a_job().spec.failure_policy, Moment(NOON - timedelta(minutes=20), 1),
    ).status  # fmt: skip
    status = status.model_copy(update={"restart_history": first.restart_history})
    failure = Failure(
        "Hang", "counted", "train attempt 4: nothing was finished for 300 s after step 40; all pods run.", step=40
    )
    return case(
        settled(after_failure(status, failure, a_job().spec.failure_policy, Moment(NOON, 1)).status, Moment(NOON, 1)),
        minutes=5,
    )


# Failed, or restarting: each exit code

WORDS = {
    ExitCode.UNSUPPORTED: "training.optimizer adamw-8bit needs bitsandbytes, which this image does not have",
    ExitCode.BAD_DATASET: "data.train: 812 of 1000 rows are unusable: chosen and rejected are equal (800), empty answer (12)",
    ExitCode.INPUT_NOT_FOUND: "data.train.source: org/pairs has no split trian; it has train, test",
    ExitCode.SOURCE_UNAVAILABLE: "huggingface.co did not answer for 60 s",
    ExitCode.INTERNAL_ERROR: "Unexpected RuntimeError: CUDA error: an illegal memory access was encountered",
    ExitCode.VOLUME_ERROR: "/work/checkpoints: no space left on device",
    ExitCode.PEER_LOST: "Rank 1 went away during all_reduce",
    ExitCode.NON_FINITE: "The loss was NaN in 10 steps in a row, the last time at step 41",
    ExitCode.ACCESS_DENIED: "meta-llama/Llama-3.1-8B-Instruct is gated, and the token has no access to it",
    ExitCode.INVALID_CONFIGURATION: "adapter.targetModules: no module of the model is named q_projj",
    ExitCode.BAD_EXPORT: "The exported weights give log-probs that differ by 0.4 nats from those of the policy",
    ExitCode.NO_ACCELERATOR: "The container has 8 GPUs, and CUDA says: no NVIDIA driver",
    ExitCode.STOPPED_BY_DIAGNOSIS: "Gibberish is in diagnosis.stopOn; the state was saved at step 40",
    ExitCode.SIGKILL: "",
    ExitCode.SIGTERM: "",
}
PHASES: dict[ExitCode, names.Phase] = dict.fromkeys(
    (ExitCode.BAD_DATASET, ExitCode.INPUT_NOT_FOUND, ExitCode.SOURCE_UNAVAILABLE, ExitCode.ACCESS_DENIED), "prepare"
) | {ExitCode.BAD_EXPORT: "export"}


def exits(code: ExitCode) -> Case:
    phase = PHASES.get(code, "train")
    job = a_job(nodes=1, diagnosis={"stopOn": ["Gibberish", "FlatLoss"]})
    found = fails(ended(0, code, WORDS[code], phase=phase), job=job, phase=phase)
    if code is not ExitCode.STOPPED_BY_DIAGNOSIS:
        return found
    status = found.status.model_copy(update={"findings": [as_status(a_finding(Code.GIBBERISH), "train")]})
    return replace(found, status=status)


for code in TABLE:
    SITUATIONS[f"exit code {int(code)}"] = lambda code=code: exits(code)


@situation
def its_spec_is_not_valid() -> Case:
    job = a_job(nodes=2, checkpoint={"volume": {"accessMode": "ReadWriteOnce"}})
    problems = validate(job)
    assert problems is not None
    return case(settled(reject(DPOJobStatus(), problems, Moment(NOON, 1)).status, Moment(NOON, 1)), job)


@situation
def it_ran_too_long() -> Case:
    job = a_job(activeDeadlineSeconds=600)
    return case(decide(a_status(), a_view(a_child()), job).status, job)


@situation
def its_claim_was_deleted() -> Case:
    return case(decide(a_status(), a_view(a_child(), claim=None)).status)


@situation
def its_claim_was_deleted_and_the_mirror_has_a_checkpoint() -> Case:
    job = a_job(checkpoint={"mirror": {"to": "s3://checkpoints/run"}})
    newest = CheckpointStatus(step=50, path="checkpoints/step-00000050", digest="a" * 64, attempt=1, time=NOON)
    status = a_status(mirror=MirrorStatus(copies=1, ended=1, tried="a" * 64, checkpoint=newest))
    return case(decide(status, a_view(a_child(), claim=None), job).status, job)


# Running


def runs(
    progress: Any = None,
    minutes: float = 0.2,
    findings: tuple[Finding, ...] = (),
    events: tuple[Raw, ...] = (),
    **spec: Any,
) -> Case:
    pods = (raw_pod(0, node="gpu-0", phase="Running"), raw_pod(1, node="gpu-1", phase="Running"))
    view = a_view(
        a_child(),
        *(ChildPod.from_raw(p) for p in pods),
        progress=progress or a_reading(12, checkpoint=10),
        stalled_seconds=1.0,
    )
    job = a_job(**spec)
    return case(decide(a_status(), view, job).status, job, pods=pods, minutes=minutes, findings=findings, events=events)


@situation
def it_trains_well() -> Case:
    return runs()


@situation
def it_has_been_silent() -> Case:
    silent = "Rank 0 could not be reached for 31 s: pod pairs-train-1-0-x7k2p on node gpu-0. No other rank that was asked answers either, so a hang could not be detected. Allow the operator to reach port metrics of the job's pods."
    return runs(minutes=4, events=(event("DPOJob pairs", "HeartbeatSilent", silent),))


@situation
def one_rank_is_slow() -> Case:
    return runs(a_reading(12, slowest=SlowestRank(rank=1, ratio=2.5)))


FIELDS = {
    Code.WRONG_REFERENCE: "model.reference", Code.NOT_THE_FINE_TUNED_MODEL: "model.name", Code.TEMPLATE_OR_BOUNDARY: "model.chatTemplate",
    Code.SWAPPED_LABELS: "data.train.columns", Code.GIBBERISH: "training.learningRate", Code.FLAT_LOSS: "training.learningRate",
    Code.NOISY_LABELS: "data.filters.minConfidence", Code.LIKELIHOOD_DISPLACEMENT: "method.nllWeight", Code.VERBOSITY: "method.name",
    Code.SHORTCUT: "data.filters", Code.OVER_REFUSING: "data.mixture", Code.OVERFITTING: "training.epochs",
    Code.SATURATED: "training.epochs", Code.REFERENCE_DRIFT: "method.beta", Code.DISTRIBUTION_MISMATCH: "data.train.source",
}  # fmt: skip


def a_finding(code: Code, severity: Any = "Unhealthy") -> Finding:
    """A finding as the rules make them: the meaning as its cause, with a field and a value."""
    return Finding(
        code=code,
        severity=severity,
        step=12,
        figures=(Figure(name="eval_rewards/margins", value=-0.84, limit=-0.2), Figure(name="eval_loss", value=1.227)),
        cause=MEANINGS[code],
        setting=FIELDS[code],
        suggestion=f"Change {FIELDS[code]}.",
    )


for finding in Code:
    SITUATIONS[f"finding {finding}"] = lambda code=finding: runs(findings=(a_finding(code),))


# At an end, or set aside


def completes(findings: tuple[Finding, ...] = ()) -> Case:
    reading = a_reading(100).model_dump(mode="json")
    done = ended(0, 0, "Finished after 100 steps.", reason="Completed", progress=reading, outcome="Succeeded")
    rest = ended(1, 0, "Finished.", reason="Completed")
    trained = decide(a_status(), a_view(a_child(complete=True), *(ChildPod.from_raw(p) for p in (done, rest)))).status
    exported = ended(0, 0, "Exported.", reason="Completed", phase="export", export_path="export")
    view = a_view(a_child("export", complete=True), ChildPod.from_raw(exported))
    return case(decide(trained, view).status, findings=findings)


@situation
def it_is_complete() -> Case:
    return completes()


@situation
def it_is_complete_and_ill() -> Case:
    return completes((a_finding(Code.GIBBERISH),))


@situation
def it_is_complete_with_a_warning() -> Case:
    return completes((a_finding(Code.NOISY_LABELS, "Warning"),))


@situation
def it_is_suspended() -> Case:
    job = a_job(suspend=True)
    return case(decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1)), job).status, job)


@situation
def another_controller_has_it() -> Case:
    job = a_job(managedBy="kueue.x-k8s.io/multikueue")
    return case(plan(job, DPOJobStatus(), a_view(), NOON, SETTINGS).status, job)


@situation
def it_is_being_deleted() -> Case:
    return case(a_status(), deletionTimestamp="2026-01-01T12:00:00Z")


def written() -> str:
    """The golden file."""
    from dpo_operator.explain.why import why

    return "\n".join(f"=== {name}\n{why(make()).text()}" for name, make in SITUATIONS.items())


if __name__ == "__main__":
    GOLDEN.write_text(written())
    sys.stdout.write(f"{len(SITUATIONS)} situations\n")

"""Jobs that restart, and jobs that failed: of each exit code one or the other."""

from dataclasses import replace
from datetime import timedelta

from dpo_operator.api import names
from dpo_operator.api.diagnosis import Code
from dpo_operator.api.exitcodes import TABLE, ExitCode
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.stored import CheckpointStatus, MirrorStatus
from dpo_operator.explain.case import Case
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.findings import as_status
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.rejecting import reject
from dpo_operator.planning.restarts import after_failure
from dpo_operator.planning.transitions import Moment, settled
from dpo_operator.planning.validate import validate
from tests.unit.explain.cases import Situations, a_finding, case, ended, fails, raw_pod
from tests.unit.planning.build import NOON, a_child, a_job, a_reading, a_status, a_view, decide

FAILING = Situations()


@FAILING.add
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


@FAILING.add
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


@FAILING.add
def a_pod_was_preempted() -> Case:
    pod = ended(0, 143, "Stopped by SIGTERM after a save at step 40.", outcome="Stopped")
    message = "default-scheduler: preempting to accommodate a higher priority pod"
    pod["status"]["conditions"] = [
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message}
    ]
    return fails(pod)


@FAILING.add
def its_ranks_hang() -> Case:
    running = {"phase": "Running"}
    pods = (raw_pod(0, node="gpu-0", **running), raw_pod(1, node="gpu-1", **running))
    view = a_view(a_child(), *(ChildPod.from_raw(p) for p in pods), progress=a_reading(12), stalled_seconds=1.0)
    before = decide(a_status(), view).status
    hung = replace(view, heartbeat=replace(view.heartbeat, progress=None, stalled_seconds=300.0, hung=(1,)))
    return case(decide(before, hung).status, pods=pods, minutes=0)


@FAILING.add
def it_runs_out_of_memory() -> Case:
    return fails(ended(0, 137, reason="OOMKilled"), raw_pod(1, node="gpu-1", phase="Running"))


@FAILING.add
def it_was_restarted_too_often() -> Case:
    status = a_status(
        restarts=5, counted_restarts=5, counted_restart_times=[int(NOON.timestamp()) - n for n in range(5)]
    )
    words = "Unexpected RuntimeError: CUDA error: an illegal memory access was encountered"
    return fails(ended(0, 70, words), ended(1, 75), status=status)


@FAILING.add
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
    ExitCode.DRIVER_TOO_OLD: "expected an NVIDIA driver from 580.65.06 on, which this image's torch for CUDA 13.2 needs, found 535.161.07 on this node",
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
    FAILING[f"exit code {int(code)}"] = lambda code=code: exits(code)


@FAILING.add
def its_spec_is_not_valid() -> Case:
    job = a_job(nodes=2, checkpoint={"volume": {"accessMode": "ReadWriteOnce"}})
    problems = validate(job)
    assert problems is not None
    return case(settled(reject(DPOJobStatus(), problems, Moment(NOON, 1)).status, Moment(NOON, 1)), job)


@FAILING.add
def it_ran_too_long() -> Case:
    job = a_job(activeDeadlineSeconds=600)
    return case(decide(a_status(), a_view(a_child()), job).status, job)


@FAILING.add
def its_claim_was_deleted() -> Case:
    return case(decide(a_status(), a_view(a_child(), claim=None)).status)


@FAILING.add
def its_claim_was_deleted_and_the_mirror_has_a_checkpoint() -> Case:
    job = a_job(checkpoint={"mirror": {"to": "s3://checkpoints/run"}})
    newest = CheckpointStatus(step=50, path="checkpoints/step-00000050", digest="a" * 64, attempt=1, time=NOON)
    status = a_status(mirror=MirrorStatus(copies=1, ended=1, tried="a" * 64, checkpoint=newest))
    return case(decide(status, a_view(a_child(), claim=None), job).status, job)

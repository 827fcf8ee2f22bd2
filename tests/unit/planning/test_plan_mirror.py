"""Copies of checkpoints to the mirror beside the training, and the restart from there when the volume is lost."""

import json
from typing import Any

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import CheckpointRecord, RecordedCheckpoints
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.stored import CheckpointStatus, MirrorStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import config_name
from dpo_operator.planning import ending
from dpo_operator.planning.actions import Create, Delete, Plan
from dpo_operator.planning.objects import ChildJob, ChildPod, Size
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.plan import plan
from tests.unit.planning.build import NOON, SETTINGS, a_child, a_claim, a_job, a_pod, a_status, a_view, condition, ended

pytestmark = pytest.mark.unit

TO = "s3://checkpoints/run"
JOB = a_job(checkpoint={"mirror": {"to": TO}})


def at_step(step: int, letter: str = "a") -> CheckpointStatus:
    return CheckpointStatus(step=step, path=f"checkpoints/step-{step:08d}", digest=letter * 64, attempt=1, time=NOON)


def a_record(step: int, letter: str = "a") -> CheckpointRecord:
    return CheckpointRecord(step=step, attempt=1, digest=letter * 64)


def trained(step: int = 50, letter: str = "a", **fields: Any) -> DPOJobStatus:
    """Training that runs and has committed a checkpoint."""
    running = c.with_condition((), c.RUNNING, True, c.PODS_RUNNING, "", now=NOON, generation=1)
    known = {"checkpoint": at_step(step, letter), "recorded_checkpoints": [a_record(step, letter)]}
    return a_status(**({"conditions": [*a_status().conditions, *running][-1:]} | known | fields))


def view(*mirror: ChildJob | ChildPod, **fields: Any) -> Observed:
    """Both ranks run. mirror: the Job of a copy and its pod."""
    jobs = tuple(child for child in mirror if isinstance(child, ChildJob))
    pods = tuple(pod for pod in mirror if isinstance(pod, ChildPod))
    return a_view(a_child(), a_pod(0), a_pod(1), mirrors=jobs, mirror_pods=pods, guards=(), **fields)


def a_copy(number: int = 1, **fields: Any) -> ChildJob:
    return a_child("mirror", number, **fields)  # type: ignore[arg-type]


def a_report(code: int = 0, message: str = "", number: int = 1, **more: Any) -> ChildPod:
    text = json.dumps({"exit_code": code, "message": message} | more)
    return ended(0, code, phase="mirror", attempt=number, text=text)


COPIED = {
    "checkpoint": {"step": 50, "path": "checkpoints/step-00000050", "digest": "a" * 64, "attempt": 1, "time": 1.0}
}


def decide(status: DPOJobStatus, seen: Observed, job: DPOJob = JOB) -> Plan:
    return plan(job, status, seen, NOON, SETTINGS)


def copies(result: Plan) -> list[dict[str, Any]]:
    made = [action.manifest for action in result.actions if isinstance(action, Create) and action.kind == "Job"]
    return [manifest for manifest in made if manifest["metadata"]["labels"][names.LABEL_PHASE] == "mirror"]


def test_a_committed_checkpoint_is_copied_by_a_job_of_its_own() -> None:
    result = decide(trained(), view())
    (job,) = copies(result)
    assert job["metadata"]["name"] == "pairs-mirror-1"
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["python", "-m", "dpo_trainer", "mirror"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    sent = RecordedCheckpoints.model_validate_json(environment[names.ENV_RECORDED_CHECKPOINTS] or "")
    assert sent.checkpoints == (a_record(50),)
    assert result.status.mirror == MirrorStatus(copies=1, tried="a" * 64)
    assert condition(result.status, c.MIRRORED) == ("False", c.MIRROR_PENDING)
    # The training is left alone, one copy runs at a time, and one is enough for a checkpoint.
    assert condition(result.status, c.RUNNING) == ("True", c.PODS_RUNNING)
    assert not copies(decide(result.status, view(a_copy())))
    assert not copies(decide(result.status, view()))
    assert not copies(decide(trained(), view(), a_job()))
    newer = result.status.model_copy(update={"checkpoint": at_step(100, "b")})
    assert not copies(decide(newer, view(a_copy())))
    assert [job["metadata"]["name"] for job in copies(decide(newer, view()))] == ["pairs-mirror-2"]


def test_no_copy_starts_without_a_running_pod_of_the_job() -> None:
    waiting = a_view(a_child(), a_pod(0), a_pod(1, pod_phase="Pending", ready=False), guards=())
    assert not copies(decide(trained(), waiting))
    suspended = a_job(checkpoint={"mirror": {"to": TO}}, suspend=True)
    assert not copies(decide(trained(), view(), suspended))


def test_what_a_copy_reports_is_in_the_status_and_its_job_goes() -> None:
    status = trained(mirror=MirrorStatus(copies=1, tried="a" * 64))
    result = decide(status, view(a_copy(complete=True), a_report(**COPIED)))
    assert result.status.mirror is not None
    assert result.status.mirror.checkpoint is not None
    assert (result.status.mirror.checkpoint.step, result.status.mirror.ended) == (50, 1)
    assert condition(result.status, c.MIRRORED) == ("True", c.COPIED)
    assert [(a.name, a.uid) for a in result.actions if isinstance(a, Delete)] == [
        ("pairs-mirror-1", "uid-pairs-mirror-1")
    ]
    # Also when the job has ended meanwhile.
    done = decide(status.model_copy(update={"state": "Complete"}), view(a_copy(complete=True), a_report(**COPIED)))
    assert condition(done.status, c.MIRRORED) == ("True", c.COPIED)


@pytest.mark.parametrize(
    ("pod", "reason", "said"),
    [
        (
            a_report(ExitCode.ACCESS_DENIED, "s3://checkpoints: access was refused."),
            "AccessDenied",
            "access was refused",
        ),
        (a_report(137, text="", reason="OOMKilled"), c.MIRROR_FAILED, "OOMKilled"),
        (None, c.MIRROR_FAILED, "deadline"),
    ],
)
def test_a_failed_copy_warns_and_training_goes_on(pod: ChildPod | None, reason: str, said: str) -> None:
    status = trained(mirror=MirrorStatus(copies=1, tried="a" * 64))
    if pod is not None and reason == c.MIRROR_FAILED:
        pod = ended(0, 137, phase="mirror", attempt=1, reason="OOMKilled")
    failed = a_copy(failed=True, failure_message="Job was active longer than specified deadline")
    result = decide(status, view(failed, *([pod] if pod else [])))
    assert condition(result.status, c.MIRRORED) == ("False", reason)
    assert condition(result.status, c.RUNNING) == ("True", c.PODS_RUNNING)
    assert result.status.restarts == 0
    (event,) = [event for event in result.events if event.reason == c.MIRROR_FAILED]
    assert event.type == "Warning"
    assert said in event.message
    # Not tried again for the same checkpoint, told once, and tried for the next one.
    again = decide(result.status, view(failed, *([pod] if pod else [])))
    assert not [event for event in again.events if event.reason == c.MIRROR_FAILED]
    assert not copies(decide(result.status, view()))
    assert copies(decide(result.status.model_copy(update={"checkpoint": at_step(100, "b")}), view()))


def test_a_refused_job_of_a_copy_is_a_failed_copy() -> None:
    status = trained(mirror=MirrorStatus(copies=1, tried="a" * 64))
    result = decide(status, view(refused="The API server refused to create Job pairs-mirror-1: “exceeded quota”"))
    assert condition(result.status, c.MIRRORED) == ("False", c.REQUEST_REFUSED)
    assert any("exceeded quota" in event.message for event in result.events)


def test_a_mirror_that_falls_behind_is_told_once() -> None:
    status = trained(350, "b", mirror=MirrorStatus(copies=2, ended=1, tried="a" * 64, checkpoint=at_step(50)))
    result = decide(status, view(a_copy(2)))
    assert condition(result.status, c.MIRRORED) == ("False", c.MIRROR_BEHIND)
    assert [event.reason for event in result.events] == [c.MIRROR_BEHIND]
    assert not decide(result.status, view(a_copy(2))).events
    assert not decide(trained(250, "b", mirror=status.mirror), view(a_copy(2))).events


def test_a_failure_is_not_hidden_by_a_mirror_that_is_behind() -> None:
    mirror = MirrorStatus(copies=2, ended=1, tried="a" * 64, checkpoint=at_step(50))
    status = trained(350, "b", mirror=mirror)
    denied = a_report(ExitCode.ACCESS_DENIED, "access was refused.", number=2)
    status = decide(status, view(a_copy(2, failed=True), denied)).status
    going = decide(status, view(a_copy(2, failed=True, deleting=True), denied))
    assert (condition(going.status, c.MIRRORED), going.events) == (("False", "AccessDenied"), ())
    begun = decide(decide(going.status, view()).status, view(a_copy(3)))
    assert (condition(begun.status, c.MIRRORED), begun.events) == (("False", "AccessDenied"), ())


def a_view_of_one(*mirror: ChildJob | ChildPod, **fields: Any) -> Observed:
    """What is seen of a job of one node on a volume that one node may attach, without pods of the attempt."""
    jobs = tuple(child for child in mirror if isinstance(child, ChildJob))
    pods = tuple(pod for pod in mirror if isinstance(pod, ChildPod))
    claim = a_claim(access_modes=("ReadWriteOnce",))
    return a_view(*fields.pop("own", ()), claim=claim, mirrors=jobs, mirror_pods=pods, guards=(), **fields)


def deleted(result: Plan) -> list[str]:
    return [action.name for action in result.actions if isinstance(action, Delete) and "mirror" in action.name]


ONE = a_job(nodes=1, checkpoint={"mirror": {"to": TO}})
A_COPYS_POD = a_pod(0, "mirror", 1)


def test_a_copy_leaves_the_volume_to_the_next_attempt() -> None:
    """It holds a volume of one node on the node of the attempt that ended; the next copy continues it."""
    status = trained(mirror=MirrorStatus(copies=1, tried="a" * 64))
    copy = (a_copy(), A_COPYS_POD)
    assert not deleted(decide(status, a_view_of_one(*copy, own=(a_child(), a_pod(0))), ONE))
    result = decide(status, a_view_of_one(*copy, own=(a_child(), ended(0, 137))), ONE)
    assert result.status.attempt == 2
    assert deleted(result) == ["pairs-mirror-1"]
    assert not [event for event in result.events if event.reason.startswith("Mirror")]
    # Its end is no failure, and the same checkpoint is copied beside the next attempt.
    going = (a_copy(deleting=True, failed=True), ended(0, 143, phase="mirror", deleting=True))
    after = decide(result.status, a_view_of_one(*going), ONE)
    assert (deleted(after), c.find(after.status.conditions, c.MIRRORED)) == ([], None)
    again = decide(result.status, a_view_of_one(own=(a_child(attempt=2), a_pod(0, attempt=2))), ONE)
    assert [job["metadata"]["name"] for job in copies(again)] == ["pairs-mirror-2"]
    suspended = a_job(nodes=1, checkpoint={"mirror": {"to": TO}}, suspend=True)
    assert deleted(decide(status, a_view_of_one(*copy, own=(a_child(), a_pod(0))), suspended)) == ["pairs-mirror-1"]
    # A volume of many nodes is in nobody's way.
    assert not deleted(decide(status, view(*copy), a_job(checkpoint={"mirror": {"to": TO}}, suspend=True)))


def test_a_copy_without_a_node_ends_with_the_job() -> None:
    done = trained(mirror=MirrorStatus(copies=1, tried="a" * 64), completion_time=NOON)
    complete = c.with_condition(done.conditions, c.COMPLETE, True, c.EXPORTED, "", now=NOON, generation=1)
    done = done.model_copy(update={"conditions": list(complete), "state": "Complete"})
    for pods in ((), (a_pod(0, "mirror", 1, pod_phase="Pending", node="", ready=False),)):
        result = decide(done, a_view_of_one(a_copy(), *pods), ONE)
        assert deleted(result) == ["pairs-mirror-1"]
        (event,) = result.events
        assert event.reason == c.MIRROR_FAILED
        assert "no other copy follows" in event.message
    # One that runs may end, and one whose pod may still get any node starts.
    assert not deleted(decide(done, a_view_of_one(a_copy(), A_COPYS_POD), ONE))
    assert not deleted(decide(done, view(a_copy()), JOB))
    failed = decide(done, a_view_of_one(a_copy(failed=True), a_report(ExitCode.ACCESS_DENIED, "refused.")), ONE)
    assert "training goes on" not in failed.events[0].message


def test_a_refused_resize_leaves_copies_to_the_size_that_runs() -> None:
    own = (a_child(size=Size(1, 1)), a_pod(0))
    wanted = a_job(nodes=2, checkpoint={"mirror": {"to": TO}})
    result = decide(trained(), a_view_of_one(own=own), wanted)
    assert condition(result.status, c.RESIZED) == ("False", c.RESIZE_REFUSED)
    (job,) = copies(result)
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert config_name(ONE) in {volume["configMap"]["name"] for volume in volumes if "configMap" in volume}


@pytest.mark.parametrize("state", ["running", "done", "deleted"])
def test_a_copys_pod_on_a_lost_node_is_removed_by_force(state: str) -> None:
    pod = a_pod(0, "mirror", 1, deleting=True, deleting_seconds=11, disruption="DeletionByTaintManager", ready=False)
    status = trained(mirror=MirrorStatus(copies=1, tried="a" * 64))
    job = JOB
    if state == "done":
        status = status.model_copy(update={"state": "Complete"})
    if state == "deleted":
        metadata = {"deletionTimestamp": "2026-01-01T12:00:00Z", "finalizers": ["example.org/keep"]}
        job = a_job(checkpoint={"mirror": {"to": TO}}, metadata=metadata)
    result = decide(status, view(a_copy(deleting=True), pod), job)
    assert Delete("Pod", pod.name, pod.uid, 0) in result.actions
    assert result.requeue_after is not None
    assert result.requeue_after <= ending.MIN_DELAY_SECONDS


def lost(status: DPOJobStatus, **fields: Any) -> Plan:
    """The claim is gone, as two reads have shown."""
    return decide(status, a_view(a_child(), claim=None, guards=(), **fields))


def test_a_lost_volume_ends_a_job_whose_mirror_has_nothing() -> None:
    for job in (JOB, a_job()):
        result = decide(trained(), a_view(a_child(), claim=None, guards=()), job)
        assert condition(result.status, c.FAILED) == ("True", c.VOLUME_LOST)


def test_a_lost_volume_is_replaced_from_the_mirror() -> None:
    mirror = MirrorStatus(copies=1, ended=1, tried="a" * 64, checkpoint=at_step(50))
    status = trained(100, "b", mirror=mirror)
    # Not before two reads agree.
    assert lost(status, held={}).status.phase == "train"
    result = lost(status)
    assert c.find(result.status.conditions, c.FAILED) is None
    assert condition(result.status, c.RESTARTING) == ("True", c.VOLUME_LOST)
    assert (result.status.phase, result.status.volume) == ("prepare", None)
    assert result.status.attempts.prepare == status.attempts.prepare + 1
    assert result.status.attempts.train == status.attempts.train + 1
    assert result.status.checkpoint == at_step(50)
    assert [(r.reason, r.counting) for r in result.status.restart_history] == [(c.VOLUME_LOST, "Uncounted")]
    (event,) = result.events
    assert (event.type, event.reason) == ("Warning", c.VOLUME_LOST)
    assert "step 50" in event.message
    # Old pods go first; then there is a new claim, and a prepare that fetches what was recorded.
    status = result.status
    busy = decide(status, a_view(a_child(), a_pod(0), claim=None, guards=()))
    assert {a.kind for a in busy.actions} <= {"Job", "Pod"}
    status = decide(status, a_view(claim=None, guards=())).status
    made = decide(status, a_view(claim=None, guards=()))
    assert made.actions[0].kind == "PersistentVolumeClaim"
    prepared = decide(made.status, a_view(claim=a_claim(uid="uid-new")))
    environment = {e["name"]: e["value"] for e in _container(prepared)["env"]}
    assert environment[names.ENV_RESTORE] == "1"
    known = RecordedCheckpoints.model_validate_json(environment[names.ENV_RECORDED_CHECKPOINTS])
    assert known.checkpoints == (a_record(50), a_record(100, "b"))
    assert known.last_attempt == status.attempts.train
    # A first prepare fetches nothing.
    first = decide(a_status("prepare", created=False), a_view())
    assert names.ENV_RESTORE not in {e["name"] for e in _container(first)["env"]}


def _container(result: Plan) -> dict[str, Any]:
    (job,) = [a.manifest for a in result.actions if isinstance(a, Create) and a.kind == "Job"]
    container: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return container


def test_a_claim_of_one_pod_is_no_place_for_a_mirrored_job() -> None:
    one = a_job(nodes=1, checkpoint={"mirror": {"to": TO}, "volume": {"claimName": "mine"}})
    claim = a_claim(name="mine", access_modes=("ReadWriteOncePod",), open=True)
    status = a_status("prepare", created=False, volume=None)
    result = decide(status, a_view(claim=claim, guards=()), one)
    assert condition(result.status, c.RUNNING) == ("False", c.VOLUME_UNSUITABLE)
    assert "ReadWriteOncePod" in result.status.message
    without = a_job(nodes=1, checkpoint={"volume": {"claimName": "mine"}})
    assert condition(decide(status, a_view(claim=claim, guards=()), without).status, c.RUNNING) != (
        "False",
        c.VOLUME_UNSUITABLE,
    )

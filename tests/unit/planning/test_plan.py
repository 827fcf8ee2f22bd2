"""Rules of plan(), one by one."""

from dataclasses import replace
from datetime import timedelta

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.status import DPOJobStatus, State
from dpo_operator.planning.actions import Create, Delete
from dpo_operator.planning.objects import Claim, token_digest
from dpo_operator.planning.transitions import Moment, completed, settled
from tests.unit.planning.build import (
    BOTH,
    NOON,
    UID,
    a_child,
    a_claim,
    a_job,
    a_pod,
    a_reading,
    a_status,
    a_view,
    condition,
    decide,
    ended,
    termination_text,
    with_heartbeat,
)

AT_NOON = Moment(NOON, 1)

pytestmark = pytest.mark.unit


def test_new_job_is_accepted_before_anything_is_made():
    result = decide(DPOJobStatus(), a_view(claim=None, support=()))
    assert result.actions == ()
    assert (result.status.phase, result.status.attempts.prepare, result.status.start_time) == ("prepare", 1, NOON)
    assert result.status.state is State.PENDING
    assert result.events == ()
    assert result.requeue_after == 0


def test_accepted_job_gets_what_pods_mount_and_then_its_job():
    accepted = decide(DPOJobStatus(), a_view(claim=None, support=())).status
    first = decide(accepted, a_view(claim=None, support=()))
    assert [action.kind for action in first.actions] == ["PersistentVolumeClaim", "ConfigMap"]
    training = decide(a_status(created=False), a_view(support=()))
    assert [action.kind for action in training.actions] == ["ConfigMap", "Service"]
    second = decide(accepted, a_view())
    assert [action.name for action in second.actions] == ["pairs-prepare-1"]
    third = decide(second.status, a_view(a_child("prepare")))
    assert (third.status.volume.claim_uid, third.status.volume.folder) == ("uid-claim", UID)


@pytest.mark.parametrize(
    ("spec", "reason", "part"),
    [
        ({"nodes": 200, "gpusPerNode": 8}, c.INVALID_SPEC, "spec.training.globalBatchSize"),
        ({"training": {"offload": "nvme"}}, c.UNSUPPORTED, "offload: nvme is not implemented yet"),
        (
            {"data": {"train": {"source": "pvc://../x"}}},
            c.INVALID_SPEC,
            "spec.data.train.source: a URL must be pvc://claim/path",
        ),
    ],
    ids=["rule", "unsupported", "claim name"],
)
def test_job_that_cannot_run_fails_with_the_field_named(spec, reason, part):
    result = decide(DPOJobStatus(), a_view(), a_job(**spec))
    assert result.status.state is State.FAILED
    assert condition(result.status, c.FAILED) == ("True", reason)
    assert part in result.status.message
    assert result.actions == ()
    assert result.events[0].type == "Warning"


@pytest.mark.parametrize(
    ("phase", "following", "state"),
    [("prepare", "train", State.PENDING), ("train", "export", State.PENDING), ("export", "export", State.COMPLETE)],
)
def test_success_decides_on_the_next_phase_and_makes_nothing_yet(phase, following, state):
    pods = [
        ended(i, 0, phase=phase, text=termination_text(0, phase=phase)) for i in range(2 if phase == "train" else 1)
    ]
    result = decide(a_status(phase), a_view(a_child(phase), *pods))
    assert (result.status.phase, result.status.state) == (following, state)
    assert result.status.attempts.of(following) == 1
    assert result.actions == ()
    assert result.requeue_after == 0


def test_job_condition_alone_is_a_success_when_pods_were_collected():
    result = decide(a_status("prepare"), a_view(a_child("prepare", complete=True)))
    assert result.status.phase == "train"


def test_one_of_two_ranks_done_is_no_success():
    result = decide(a_status(), a_view(a_child(), ended(0, 0), a_pod(1)))
    assert result.status.phase == "train"
    assert result.status.workers.started == 2


def test_reports_of_all_phases_reach_the_status():
    text = termination_text(
        0, phase="prepare", dataset={"train_pairs": 90, "eval_pairs": 10, "dropped": {"empty": 2, "equal": 1}}
    )
    status = decide(a_status("prepare"), a_view(a_child("prepare"), ended(0, 0, phase="prepare", text=text))).status
    assert (status.dataset.train_pairs, status.dataset.eval_pairs, status.dataset.dropped_rows) == (90, 10, 3)
    assert condition(status, c.PREPARED) == ("True", c.PREPARE_SUCCEEDED)

    text = termination_text(0, progress=a_reading(100, checkpoint=100).model_dump(mode="json"))
    status = decide(a_status(), a_view(a_child(), ended(0, 0, text=text), ended(1, 0))).status
    assert (status.final_metrics.loss, status.final_metrics.step) == ("0.6312", 100)
    assert (status.checkpoint.step, status.checkpoint.digest) == (100, "ab" * 32)
    assert status.progress.percent == "100%"

    text = termination_text(0, phase="export", export_path="export")
    status = decide(a_status("export"), a_view(a_child("export"), ended(0, 0, phase="export", text=text))).status
    assert status.export.path == "export"
    assert status.completion_time == NOON
    assert UID in status.message
    assert "pairs-work" in status.message


PUSHED = a_job(export={"push": {"to": "s3://models/out"}})


def test_a_push_has_a_condition_and_a_digest():
    trained = decide(a_status("train"), a_view(a_child(complete=True), ended(0, 0), ended(1, 0)), PUSHED).status
    assert condition(trained, "Pushed") == ("False", "PushPending")
    exporting = a_status("export", conditions=trained.conditions)
    report = {"to": "s3://models/out", "digest": "a" * 64}
    text = termination_text(0, phase="export", export_path="export", pushed=report)
    done = decide(exporting, a_view(a_child("export"), ended(0, 0, phase="export", text=text)), PUSHED).status
    assert (done.export.pushed.to, done.export.pushed.digest) == ("s3://models/out", "a" * 64)
    assert condition(done, "Pushed") == ("True", "Copied")
    assert "s3://models/out" in done.message
    refused = termination_text(77, phase="export", reason="AccessDenied", message="exported to export, and not pushed")
    failed = decide(exporting, a_view(a_child("export"), ended(0, 77, phase="export", text=refused)), PUSHED).status
    assert condition(failed, "Pushed") == ("False", "AccessDenied")
    assert failed.state is State.FAILED
    # Without export.push there is no such condition, whatever a pod says.
    other = decide(a_status("export"), a_view(a_child("export"), ended(0, 0, phase="export", text=text))).status
    assert "Pushed" not in {c.type for c in other.conditions}


def test_a_job_that_stopped_early_is_complete_and_says_so():
    # The trainer counts what it did as the whole run.
    reading = a_reading(10, max_steps=10, checkpoint=10).model_dump(mode="json")
    sentence = "Stopped early after step 10 of 40: eval_loss has not improved since step 6."
    trained = ended(0, 0, text=termination_text(0, sentence, progress=reading))
    plan = decide(a_status(), a_view(a_child(complete=True), trained, ended(1, 0)))

    assert [(event.reason, event.message) for event in plan.events] == [
        ("Trained", f"The trainer reports: “{sentence}”")
    ]
    assert (plan.status.progress.percent, plan.status.progress.step, plan.status.phase) == ("100%", 10, "export")
    done = settled(completed(plan.status, AT_NOON), AT_NOON)
    assert (done.state, done.final_metrics.step) == ("Complete", 10)
    assert done.message.endswith(f"The trainer reported: “{sentence}”")


def test_running_gang_is_shown_with_its_progress():
    result = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(37, checkpoint=25)))
    assert result.status.state is State.TRAINING
    shown = result.status.progress
    assert (shown.percent, shown.eta, shown.loss, shown.reward_margin) == ("37%", "1h12m", "0.6312", "0.1250")
    assert result.status.checkpoint.step == 25
    assert condition(result.status, c.RUNNING) == ("True", c.PODS_RUNNING)
    assert result.requeue_after == 3.0
    assert "Running" in [event.reason for event in result.events]


def test_second_look_at_the_same_cluster_changes_nothing():
    view = a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(37))
    first = decide(a_status(), view)
    second = decide(first.status, view, now=NOON + timedelta(minutes=5))
    assert second.status == first.status
    assert second.actions == second.events == ()


def test_failed_rank_bumps_the_attempt_and_touches_nothing():
    result = decide(a_status(), a_view(a_child(), a_pod(0), ended(1, 137)))
    assert result.status.attempts.train == 2
    assert result.status.active_job is None
    assert (result.status.restarts, result.status.counted_restarts) == (1, 1)
    assert result.status.state is State.RESTARTING
    assert result.actions == ()


def test_old_attempt_goes_before_the_new_one_is_made():
    status = decide(a_status(), a_view(a_child(), a_pod(0), ended(1, 137))).status
    going = decide(status, a_view(a_child(), a_pod(0), ended(1, 137)))
    assert going.actions == (
        # The pod first: with its Job it would get its whole grace period.
        Delete("Pod", "pairs-train-1-0", "uid-pairs-train-1-0", 10),
        Delete("Job", "pairs-train-1", "uid-pairs-train-1"),
    )
    assert going.requeue_after == 1.0
    # The Job is gone, one pod is still saving or stuck: nothing is made.
    left = decide(status, a_view(a_pod(0, deleting=True, grace_seconds=10)))
    assert left.actions == ()
    assert decide(status, a_view()).actions[0].name == "pairs-train-2"


def test_a_killed_rank_and_its_peer_count_as_one_restart():
    status = a_status()
    lost = ended(0, 75, at="11:59:59", text=termination_text(75, "connection closed by peer"))
    # Rank 0's end may be seen first: that is not yet the whole story.
    early = decide(status, a_view(a_child(), lost, a_pod(1)))
    assert early.status.attempts.train == 1
    assert early.requeue_after == 1.0
    late = decide(early.status, a_view(a_child(), lost, ended(1, 137, at="12:00:00")))
    assert (late.status.restarts, late.status.restart_history[0].reason) == (1, "Killed")
    after = decide(late.status, a_view(a_child(failed=True), lost, ended(1, 137)))
    assert after.status.restarts == 1


def test_vanished_job_is_the_next_attempt_and_does_not_count():
    result = decide(a_status(), a_view())
    assert result.status.attempts.train == 2
    assert (result.status.restarts, result.status.counted_restarts) == (1, 0)
    assert result.status.restart_history[0].reason == "JobDeleted"
    # Its pods are alive, and all together: they may save in their own time.
    assert decide(result.status, a_view(a_pod(0, deleting=True), a_pod(1, deleting=True))).actions == ()


def test_a_job_that_was_never_seen_is_created_again_with_the_same_number():
    result = decide(a_status(created=False), a_view())
    assert [action.name for action in result.actions] == ["pairs-train-1"]
    assert result.status.restarts == 0


def test_job_of_the_same_name_and_another_uid_is_not_adopted():
    result = decide(a_status(), a_view(a_child(uid="other"), a_pod(0), a_pod(1)))
    assert result.status.attempts.train == 2


def test_orphaned_pod_of_an_old_attempt_is_deleted():
    result = decide(a_status(attempt=2, created=False), a_view(a_pod(0)))
    assert result.actions == (Delete("Pod", "pairs-train-1-0", "uid-pairs-train-1-0", None),)


def test_pod_that_lost_its_job_is_deleted_even_when_that_job_is_made_again():
    orphan = a_pod(0, orphan=True)
    deletion = Delete("Pod", orphan.name, orphan.uid, None)
    # Its Job was deleted alone before the status told of it: the same name is free, and the pod is nobody's.
    assert decide(a_status(created=False), a_view(orphan)).actions == (deletion,)
    assert decide(a_status(), a_view(orphan)).actions == (deletion,)
    assert decide(a_status(), a_view(a_child(), orphan, a_pod(0, name="new", uid="new"))).actions == (deletion,)
    gone = decide(a_status(created=False), a_view())
    assert [action.name for action in gone.actions] == ["pairs-train-1"]


def test_pods_of_a_job_that_was_deleted_before_it_was_noted_are_waited_for():
    """Another Job of the same number would have ranks that the fence on the volume can't tell from these."""
    going = a_view(a_pod(0, deleting=True), a_pod(1, deleting=True))
    plan = decide(a_status(created=False), going)
    assert plan.actions == ()
    assert condition(plan.status, c.RUNNING) == ("False", c.STOPPING_OLD_PODS)
    # Its Job may only not have been seen: Kubernetes takes pods away that have none.
    assert decide(a_status(created=False), a_view(a_pod(0))).actions == ()
    assert [a.kind for a in decide(a_status(created=False), a_view()).actions] == ["Job"]


def test_a_stray_pod_is_in_nobodys_way_while_the_attempts_own_job_is_there():
    running = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1))).status
    stray = a_pod(0, name="stray", uid="stray", orphan=True)
    seen = a_view(a_child(), a_pod(0), a_pod(1), stray)
    assert decide(running, seen).actions == (Delete("Pod", "stray", "stray", None),)
    assert decide(running, seen).status == running
    going = replace(stray, deleting=True)
    failed = decide(running, a_view(a_child(), a_pod(0), ended(1, 137), going))
    assert failed.status.restart_history[0].reason == "Killed"
    # Its end is nobody's failure.
    assert decide(running, a_view(a_child(), a_pod(0), a_pod(1), ended(0, 1, orphan=True))).status.restarts == 0


@pytest.mark.parametrize(
    ("pod", "grace"),
    [
        (a_pod(0, deleting=True, deleting_seconds=9, disruption="DeletionByTaintManager", ready=False), None),
        (a_pod(0, deleting=True, deleting_seconds=11, disruption="DeletionByTaintManager", ready=False), 0),
        (a_pod(0, deleting=True, deleting_seconds=170), None),
        (a_pod(0, deleting=True, deleting_seconds=190), 0),
    ],
    ids=["lost node, just now", "lost node", "saving", "long over its grace period"],
)
def test_stuck_pod_is_removed_by_force_only_when_its_node_must_be_lost(pod, grace):
    actions = decide(a_status(attempt=2, created=False), a_view(pod)).actions
    assert actions == (() if grace is None else (Delete("Pod", pod.name, pod.uid, grace),))


def test_finished_prepare_keeps_its_job_for_the_logs():
    view = a_view(a_child("prepare", complete=True), ended(0, 0, phase="prepare"), a_child(), a_pod(0), a_pod(1))
    assert decide(a_status(), view).actions == ()


def test_hang_restarts_and_shortens_the_goodbye():
    view = a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(12), stalled_seconds=299.0)
    calm = decide(a_status(), view)
    assert calm.status.restarts == 0
    hung = decide(calm.status, with_heartbeat(view, stalled_seconds=300.0))
    record = hung.status.restart_history[0]
    assert (record.reason, record.counting, hung.status.attempts.train) == ("Hang", "Counted", 2)
    assert "after step 12" in record.message
    assert {action.grace_seconds for action in decide(hung.status, view).actions if action.kind == "Pod"} == {10}


def test_loading_a_large_model_is_no_hang():
    loading = a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(0, last_step_at=None), stalled_seconds=1799.0)
    assert decide(a_status(), loading).status.restarts == 0
    assert decide(a_status(), with_heartbeat(loading, stalled_seconds=1800.0)).status.restarts == 1


def test_silent_rank_that_had_worked_is_hung():
    working = a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(3), stalled_seconds=0.0)
    status = decide(a_status(), working).status
    silent = with_heartbeat(working, progress=None, stalled_seconds=300.0)
    assert decide(status, silent).status.restart_history[0].reason == "Hang"


def test_prepare_may_take_as_long_as_it_needs():
    view = a_view(a_child("prepare"), a_pod(0, "prepare"), stalled_seconds=9999.0)
    assert decide(a_status("prepare"), view).status.restarts == 0


def test_suspend_stops_the_attempt_and_resume_makes_the_next_one_uncounted():
    running = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1))).status
    job = a_job(suspend=True, generation=2)
    stopped = decide(running, a_view(a_child(), a_pod(0), a_pod(1)), job)
    assert (stopped.status.state, stopped.status.attempts.train, stopped.status.restarts) == (State.SUSPENDED, 2, 0)
    assert stopped.actions == ()
    going = decide(stopped.status, a_view(a_child(), a_pod(0), a_pod(1)), job)
    # The pods keep their own grace period, in which they save.
    assert going.actions == (Delete("Job", "pairs-train-1", "uid-pairs-train-1"),)
    assert going.status.state is State.SUSPENDED
    assert decide(going.status, a_view(), job).actions == ()
    resumed = decide(going.status, a_view(), a_job(generation=3))
    assert resumed.status.state is State.PENDING
    assert decide(resumed.status, a_view()).actions[0].name == "pairs-train-2"
    assert resumed.status.restarts == 0


def test_job_that_is_born_suspended_makes_nothing():
    job = a_job(suspend=True)
    status = DPOJobStatus()
    for _ in range(4):
        result = decide(status, a_view(claim=None, support=()), job)
        assert result.actions == ()
        status = result.status
    assert status.state is State.SUSPENDED
    assert status.attempts.prepare == 1


def test_deadline_fails_the_job_and_stops_its_pods():
    job = a_job(activeDeadlineSeconds=1800)
    view = a_view(a_child(), a_pod(0), a_pod(1))
    assert decide(a_status(), view, job, now=NOON - timedelta(seconds=1)).requeue_after == 1.0
    over = decide(a_status(), view, job)
    assert condition(over.status, c.FAILED) == ("True", c.DEADLINE_EXCEEDED)
    assert decide(over.status, view, job).actions == (Delete("Job", "pairs-train-1", "uid-pairs-train-1"),)


def test_a_deadline_begins_anew_when_a_job_is_resumed():
    job = a_job(activeDeadlineSeconds=1801)
    stopped = decide(a_status(), a_view(), a_job(suspend=True, activeDeadlineSeconds=1801)).status
    assert stopped.active_seconds_before == 1800
    later = NOON + timedelta(days=1)
    resumed = decide(stopped, a_view(), job, now=later).status
    assert decide(resumed, a_view(), job, now=later + timedelta(seconds=1800)).status.state is not State.FAILED
    assert decide(resumed, a_view(), job, now=later + timedelta(seconds=1801)).status.state is State.FAILED


@pytest.mark.parametrize("what", ["claim", "anew"])
def test_lost_claim_fails_the_job_instead_of_starting_from_nothing(what):
    claim = None if what == "claim" else a_claim(uid="another")
    result = decide(a_status(), a_view(a_child(), a_pod(0), a_pod(1), claim=claim))
    assert condition(result.status, c.FAILED) == ("True", c.VOLUME_LOST)
    assert result.actions == ()


@pytest.mark.parametrize(
    ("spec", "claim", "reason"),
    [
        ({"checkpoint": {"volume": {"claimName": "mine"}}}, None, c.VOLUME_NOT_FOUND),
        ({}, a_claim(deleting=True), c.VOLUME_TERMINATING),
        ({}, a_claim(owner_uid="earlier"), c.VOLUME_TERMINATING),
        ({}, a_claim(token_digest=""), c.NAME_CONFLICT),
        ({}, a_claim(access_modes=("ReadWriteOnce",)), c.VOLUME_UNSUITABLE),
        ({"nodes": 1}, a_claim(access_modes=("ReadOnlyMany",)), c.VOLUME_UNSUITABLE),
    ],
    ids=["missing", "being deleted", "of an earlier job", "of somebody else", "one node only", "read-only"],
)
def test_unusable_claim_is_told_and_waited_for(spec, claim, reason):
    status = a_status("prepare", created=False, volume=None)
    result = decide(status, a_view(claim=claim), a_job(**spec))
    assert condition(result.status, c.RUNNING) == ("False", reason)
    assert result.actions == ()
    assert result.requeue_after == 10.0


def test_claim_counts_by_a_token_that_the_status_knew_before_it_existed():
    new, unmade = a_status("prepare", created=False, volume=None, claim_tokens=[]), a_view(claim=None, guards=())
    noted = decide(new, unmade)
    assert (noted.actions, noted.requeue_after) == ((), 0)
    (digest,) = noted.status.claim_tokens
    (claim,) = [a for a in decide(noted.status, unmade).actions if a.kind == "PersistentVolumeClaim"]
    made = Claim.from_raw(claim.manifest | {"metadata": claim.manifest["metadata"] | {"uid": "made"}})
    assert made.token_digest == digest
    own = replace(made, access_modes=("ReadWriteMany",))
    assert [a.kind for a in decide(noted.status, a_view(claim=own)).actions] == ["Job"]
    # Whatever its labels and owner are, a claim with another token was made by somebody else; so was one without.
    for token in ("", "guessed", digest):
        planted = replace(own, token_digest=token_digest(token), owner_uid=UID, made_for_uid=UID)
        refused = decide(noted.status, a_view(claim=planted))
        assert condition(refused.status, c.RUNNING) == ("False", c.NAME_CONFLICT)
        assert "checkpoint.volume.claimName: pairs-work" in refused.status.message
    # An operator that was restarted knows another token; the first one's request may still arrive.
    again = decide(noted.status, replace(unmade, claim_token="of another process")).status
    assert [a.kind for a in decide(again, a_view(claim=own)).actions] == ["Job"]
    # Once the claim is in the status, its UID tells.
    seen = decide(noted.status, a_view(a_child("prepare"), claim=own)).status
    assert (seen.volume.claim_uid, seen.claim_tokens) == ("made", [])


def test_config_map_of_another_owner_is_never_used():
    for planted in ({"owner_uid": "another"}, {"as_made": False}):
        view = a_view(support=(BOTH[1], replace(BOTH[0], **planted)))
        result = decide(a_status(created=False), view)
        assert condition(result.status, c.RUNNING) == ("False", c.NAME_CONFLICT)
        assert result.actions == ()


def test_service_that_leads_elsewhere_is_never_used():
    result = decide(a_status(created=False), a_view(support=(BOTH[0], replace(BOTH[1], as_made=False))))
    assert condition(result.status, c.RUNNING) == ("False", c.NAME_CONFLICT)
    assert "Service pairs-train was not made by this operator" in result.status.message
    assert result.actions == ()


@pytest.mark.parametrize(
    ("pod", "reason", "part"),
    [
        (
            a_pod(1, pod_phase="Pending", waiting=("ImagePullBackOff", "no such tag")),
            c.IMAGE_PULL_FAILED,
            "no such tag",
        ),
        (
            a_pod(1, pod_phase="Pending", waiting=("CreateContainerConfigError", 'secret "hf" not found')),
            c.SECRET_NOT_FOUND,
            'secret "hf" not found',
        ),
        (a_pod(1, pod_phase="Pending", unscheduled="0/3 nodes: Insufficient nvidia.com/gpu"), c.UNSCHEDULABLE, "0/3"),
        (a_pod(1, pod_phase="Pending"), c.PODS_PENDING, "1 of 2"),
    ],
    ids=["image", "secret", "scheduler", "starting"],
)
def test_pods_that_cannot_start_are_explained_and_cost_no_restart(pod, reason, part):
    result = decide(a_status(), a_view(a_child(), a_pod(0), pod))
    running = c.find(result.status.conditions, c.RUNNING)
    assert (running.status, running.reason) == ("False", reason)
    assert part in running.message
    assert (result.status.restarts, result.status.state) == (0, State.PENDING)


@pytest.mark.parametrize(
    ("pods", "parts"),
    [
        ([], ["0 of 1", "a quota", "kubectl -n default describe job pairs-prepare-1"]),
        (
            [a_pod(0, "prepare", pod_phase="Pending", waiting=("ContainerCreating", ""))],
            ["Secret hf must exist and have the key token", "kubectl -n default describe pod pairs-prepare-1-0"],
        ),
    ],
    ids=["no pod", "a volume that is not mounted"],
)
def test_what_only_kubernetes_events_tell_is_pointed_at(pods, parts):
    job = a_job(model={"name": "org/model", "tokenSecretRef": {"name": "hf"}})
    result = decide(a_status("prepare"), a_view(a_child("prepare"), *pods), job)
    assert condition(result.status, c.RUNNING) == ("False", c.PODS_PENDING)
    assert [part for part in parts if part not in result.status.message] == []


def test_refused_request_is_shown_and_tried_again():
    result = decide(a_status(created=False), a_view(refused="exceeded quota: gpus"))
    assert condition(result.status, c.RUNNING) == ("False", c.QUOTA_EXCEEDED)
    assert "exceeded quota" in result.status.message
    assert [action.kind for action in result.actions] == ["Job"]


def test_deleted_config_map_comes_back_while_the_job_runs():
    view = a_view(a_child(), a_pod(0), a_pod(1), support=(BOTH[1],))
    result = decide(a_status(), view)
    assert [action.kind for action in result.actions] == ["ConfigMap"]
    assert isinstance(result.actions[0], Create)

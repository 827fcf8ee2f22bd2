"""What is decided about ranks that hang or keep silent."""

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.planning.hangs import silent_event
from tests.unit.planning.build import UID, a_child, a_job, a_pod, a_reading, a_status, a_view, decide, with_heartbeat

pytestmark = [pytest.mark.unit, pytest.mark.fault(34)]

JOB = a_job(failurePolicy={"hangTimeoutSeconds": 60, "startTimeoutSeconds": 60})
ROUNDS = {"rounds": 2, "judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}}
VIEW = a_view(a_child(), a_pod(0), a_pod(1), progress=a_reading(12), stalled_seconds=1.0)


def test_event_says_which_pod_did_not_answer_and_where_the_stacks_are():
    before = decide(a_status(), VIEW, JOB).status
    hung = decide(before, with_heartbeat(VIEW, stalled_seconds=60.0, progress=None, hung=(1,)), JOB)
    (event,) = hung.events
    assert (event.type, event.reason) == ("Warning", "Hang")
    assert (
        "nothing was finished for 60 s after step 12; pod pairs-train-1-1 on node gpu-1 did not answer."
        in event.message
    )
    assert f"to the pods' logs and to stacks/attempt-1 in folder {UID} of claim pairs-work." in event.message
    # The history has room for all of it.
    assert hung.status.restart_history[0].message in event.message


def test_a_hang_of_a_new_attempt_does_not_show_the_previous_step():
    before = decide(a_status(), VIEW, JOB).status
    view = a_view(a_child(attempt=2), a_pod(0, attempt=2), a_pod(1, attempt=2), stalled_seconds=60.0)
    second = a_status(attempt=2, progress=before.progress)
    assert "after step 0; all pods run." in decide(second, view, JOB).events[0].message


def test_a_job_is_looked_at_the_moment_its_time_runs_out():
    assert decide(a_status(), VIEW, JOB).requeue_after == 3.0
    assert decide(a_status(), with_heartbeat(VIEW, stalled_seconds=58.5), JOB).requeue_after == 1.5
    assert decide(a_status(), with_heartbeat(VIEW, stalled_seconds=59.9), JOB).requeue_after == 0.5


@pytest.mark.parametrize("phase", ["prepare", "export"])
def test_other_phases_hang_when_their_process_does_not_answer(phase: str):
    view = a_view(a_child(phase), a_pod(0, phase), stalled_seconds=60.0, hung=(0,))
    status = a_status(phase=phase)
    assert decide(status, with_heartbeat(view, stalled_seconds=59.0), JOB).status.restarts == 0
    hung = decide(status, view, JOB)
    (record,) = hung.status.restart_history
    assert (record.reason, record.counting) == ("Hang", "Counted")
    assert record.message == f"{phase} attempt 1: pod pairs-{phase}-1-0 on node gpu-0 did not answer for 60 s."
    # A download may be quiet for hours, as long as somebody answers; it's not looked at more often for that.
    quiet = decide(status, with_heartbeat(view, stalled_seconds=86400.0, hung=()), JOB)
    assert (quiet.status.restarts, quiet.requeue_after) == (0, 3.0)


@pytest.mark.fault(35)
def test_silence_alone_is_said_in_words():
    assert silent_event(a_pod(0), "could not be reached", 31.2, 40) == silent_event(
        a_pod(0), "could not be reached", 31.4, 40
    )
    event = silent_event(a_pod(0), "has not answered", 31.2, 40)
    assert event.reason == c.HEARTBEAT_SILENT
    assert event.message == (
        "Rank 0 has not answered for 31 s: pod pairs-train-1-0 on node gpu-0. Other ranks make progress "
        "(step 40), so the job is not restarted."
    )


def test_a_generator_that_hangs_before_all_are_placed_is_restarted():
    job = a_job(failurePolicy={"hangTimeoutSeconds": 60, "startTimeoutSeconds": 60}, iterative=ROUNDS)
    view = a_view(a_child("generate"), a_pod(0, "generate"), stalled_seconds=60.0, hung=(0,))
    status = a_status("generate", round=1)
    assert decide(status, with_heartbeat(view, stalled_seconds=59.0), job).status.restarts == 0
    assert decide(status, view, job).status.restart_history[0].reason == "Hang"

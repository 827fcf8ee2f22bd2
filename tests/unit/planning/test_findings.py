"""Findings of pods in status, condition and events."""

from typing import Any

import pytest

from dpo_operator.api import conditions as c
from dpo_operator.api.diagnosis import MAX_FINDINGS, WARNINGS, Code, Figure, Finding
from dpo_operator.api.names import ANNOTATION_RETRY
from dpo_operator.api.reports import MAX_TERMINATION_BYTES, CheckpointRecord, Progress, Termination
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.planning.actions import Plan
from dpo_operator.planning.findings import as_status
from tests.unit.planning.build import a_child, a_job, a_pod, a_status, a_view, decide, ended, termination_text

pytestmark = pytest.mark.unit

FLAT = Finding(
    code="FlatLoss",
    severity="Unhealthy",
    step=40,
    cause="After 40 of 100 steps the loss is where it began (0.6931).",
    suggestion="Raise training.learningRate to 5e-6.",
    setting="training.learningRate",
    figures=(Figure(name="eval_rewards/margins", value=0.0011, limit=0.006), Figure(name="loss", value=0.6931)),
)
LONG = Finding(code="Verbosity", severity="Warning", step=20, cause="Answers are 2.1 times as long as the reference's.")
EASY = Finding(code="Shortcut", severity="Info", step=20, cause="Length explains most pairs.")


def report(
    *findings: Finding, looked: int | None = 40, attempt: int = 1, phase: str = "train", **more: Any
) -> Progress:
    return Progress(
        phase=phase, attempt=attempt, step=40, max_steps=100, findings=findings, diagnosed_step=looked, **more
    )  # type: ignore[arg-type]


def running(status: DPOJobStatus, read: Progress, **spec: Any) -> Plan:
    """What is decided while all pods of the attempt run and rank 0 reports."""
    pods = [a_pod(i, attempt=status.attempt) for i in range(2)]
    return decide(status, a_view(a_child(attempt=status.attempt), *pods, progress=read), a_job(**spec))


def health(plan_or_status: Plan | DPOJobStatus) -> tuple[str, str, str] | None:
    status = plan_or_status.status if isinstance(plan_or_status, Plan) else plan_or_status
    found = c.find(status.conditions, c.HEALTHY)
    return (found.status, found.reason, found.message) if found else None


def told(plan: Plan) -> list[tuple[str, str, str]]:
    codes = {*Code, *WARNINGS}
    return [(e.type, e.reason, e.message) for e in plan.events if e.reason in codes or e.reason.startswith("X")]


def test_a_finding_is_in_status_condition_and_event_with_one_sentence():
    plan = running(a_status(), report(LONG, FLAT, EASY))
    assert [(f.code, f.severity, f.phase, f.step) for f in plan.status.findings] == [
        ("FlatLoss", "Unhealthy", "train", 40),
        ("Verbosity", "Warning", "train", 20),
        ("Shortcut", "Info", "train", 20),
    ]
    flat = plan.status.findings[0]
    assert flat.message == FLAT.sentence
    assert flat.setting == "training.learningRate"
    assert flat.figures == ["eval_rewards/margins 0.0011 (limit 0.006)", "loss 0.6931"]
    assert health(plan) == ("False", "FlatLoss", FLAT.sentence)
    assert told(plan) == [
        ("Warning", "FlatLoss", FLAT.sentence),
        ("Warning", "Verbosity", LONG.sentence),
        ("Normal", "Shortcut", EASY.sentence),
    ]


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ((), ("True", "NoFindings", "")),
        ((EASY,), ("True", "Shortcut", EASY.sentence)),
        ((EASY, LONG), ("True", "Verbosity", LONG.sentence)),
    ],
)
def test_less_than_unhealthy_leaves_a_job_healthy(findings: tuple[Finding, ...], expected: tuple[str, str, str]):
    assert health(running(a_status(), report(*findings))) == expected


def test_health_is_not_known_before_the_first_look():
    assert health(running(a_status(), report(looked=None))) is None
    early = running(a_status(), report(LONG, looked=None))
    assert health(early) is None
    assert [f.code for f in early.status.findings] == ["Verbosity"]
    assert health(running(a_status(), report(FLAT, looked=None))) == ("False", "FlatLoss", FLAT.sentence)


def test_without_diagnosis_there_is_no_health_and_warnings_are_told():
    plan = running(a_status(), report(LONG), diagnosis={"enabled": False})
    assert health(plan) is None
    assert told(plan) == [("Warning", "Verbosity", LONG.sentence)]


def test_each_code_has_one_event_in_an_attempt():
    """The operator keeps nothing: each plan starts from the status as it is stored."""
    status = a_status()
    events = []
    for findings in ((FLAT,), (FLAT, LONG), (), (FLAT,)):
        plan = running(DPOJobStatus.model_validate(status.to_dict()), report(*findings))
        status = plan.status
        events.append([code for _, code, _ in told(plan)])
    assert events == [["FlatLoss"], ["Verbosity"], [], []]
    second = status.model_copy(update={"attempts": status.attempts.next("train"), "active_job": None})
    assert [code for _, code, _ in told(running(second, report(FLAT, attempt=2)))] == ["FlatLoss"]


def test_a_finding_that_goes_away_is_shown_gone():
    status = running(a_status(), report(FLAT, LONG)).status
    plan = running(status, report(LONG))
    assert [f.code for f in plan.status.findings] == ["Verbosity"]
    assert health(plan) == ("True", "Verbosity", LONG.sentence)
    assert running(plan.status, report()).status.findings == []


def test_an_attempt_that_has_not_looked_keeps_what_is_known():
    status = running(a_status(), report(FLAT)).status
    second = status.model_copy(update={"attempts": status.attempts.next("train"), "active_job": None})
    plan = running(second, report(attempt=2, looked=None))
    assert [f.code for f in plan.status.findings] == ["FlatLoss"]
    assert health(plan) == ("False", "FlatLoss", FLAT.sentence)
    assert told(plan) == []
    slow = Finding(code="NotPacked", severity="Info", cause="Padded rows.")
    warned = running(plan.status, report(slow, attempt=2, looked=None))
    assert [f.code for f in warned.status.findings] == ["FlatLoss", "NotPacked"]
    assert (health(warned), told(warned)) == (health(plan), [("Normal", "NotPacked", slow.sentence)])
    assert health(running(plan.status, report(attempt=2))) == ("True", "NoFindings", "")


@pytest.mark.parametrize(
    "read",
    [report(FLAT, attempt=2), report(FLAT, phase="prepare"), report(FLAT, phase="export")],
    ids=("attempt", "prepare", "export"),
)
def test_reports_of_others_count_for_nothing(read: Progress):
    plan = running(a_status(), read)
    assert (plan.status.findings, health(plan), told(plan)) == ([], None, [])


def test_what_prepare_finds_stays_beside_what_training_finds():
    data = Finding(code="LengthBias", severity="Warning", cause="The longer answer is chosen in 90% of the pairs.")
    last = report(data, phase="prepare", looked=0)
    text = termination_text(0, phase="prepare", progress=last.model_dump(mode="json"))
    status = a_status("prepare")
    plan = decide(status, a_view(a_child("prepare", complete=True), ended(0, 0, phase="prepare", text=text)))
    assert plan.status.phase == "train"
    assert [(f.code, f.phase) for f in plan.status.findings] == [("LengthBias", "prepare")]
    assert told(plan) == [("Warning", "LengthBias", data.sentence)]
    assert health(plan) is None
    begun = running(plan.status, report(data, looked=0))
    assert [(f.code, f.phase) for f in begun.status.findings] == [("LengthBias", "prepare")]
    assert (told(begun), health(begun)) == ([], None)
    train = running(plan.status, report(FLAT, data))
    assert [(f.code, f.phase) for f in train.status.findings] == [("FlatLoss", "train"), ("LengthBias", "prepare")]
    assert [f.code for f in running(train.status, report()).status.findings] == ["LengthBias"]


def test_a_finished_job_keeps_its_findings():
    status = running(a_status(), report(FLAT)).status
    text = termination_text(0, "Trained.", progress=report(FLAT, LONG).model_dump(mode="json"))
    done = decide(status, a_view(a_child(complete=True), *(ended(i, 0, text=text) for i in range(2))))
    assert done.status.phase == "export"
    assert [f.code for f in done.status.findings] == ["FlatLoss", "Verbosity"]
    assert [code for _, code, _ in told(done)] == ["Verbosity"]
    view = a_view(
        a_child("export", complete=True), ended(0, 0, phase="export", text=termination_text(0, phase="export"))
    )
    complete = decide(done.status, view).status
    assert complete.state == "Complete"
    assert [f.code for f in complete.findings] == ["FlatLoss", "Verbosity"]
    assert health(complete) == ("False", "FlatLoss", FLAT.sentence)


def test_findings_of_all_phases_fit_into_the_status():
    """The API server refuses a status with more, and the job would never end."""
    kept = [
        as_status(LONG.model_copy(update={"code": f"C{n}"}), phase)
        for phase in ("prepare", "train")
        for n in range(MAX_FINDINGS)
    ]
    status = a_status("export", findings=kept)
    worse = Finding(code="NotPacked", severity="Unhealthy", cause="Of export.")
    last = report(worse, phase="export", looked=None)
    text = termination_text(0, phase="export", progress=last.model_dump(mode="json"))
    done = decide(status, a_view(a_child("export", complete=True), ended(0, 0, phase="export", text=text))).status
    assert done.state == "Complete"
    assert DPOJobStatus.model_validate(done.to_dict()).findings[0].code == "NotPacked"


def stopped() -> Plan:
    """Training ended by a finding of stopOn."""
    text = termination_text(81, FLAT.sentence, progress=report(FLAT).model_dump(mode="json"))
    return decide(a_status(), a_view(a_child(), ended(0, 81, text=text), a_pod(1)))


def test_a_finding_that_stops_training_fails_the_job():
    plan = stopped()
    failed = c.find(plan.status.conditions, c.FAILED)
    assert failed is not None
    assert (failed.status, failed.reason, plan.status.restarts) == ("True", "StoppedByDiagnosis", 0)
    assert FLAT.sentence in failed.message
    assert [f.code for f in plan.status.findings] == ["FlatLoss"]
    assert health(plan) == ("False", "FlatLoss", FLAT.sentence)


def test_a_rule_may_restart_what_a_finding_stopped():
    policy = {"rules": [{"reasons": ["StoppedByDiagnosis"], "action": "Restart"}]}
    text = termination_text(81, FLAT.sentence, progress=report(FLAT).model_dump(mode="json"))
    view = a_view(a_child(), ended(0, 81, text=text), a_pod(1))
    plan = decide(a_status(), view, a_job(failurePolicy=policy))
    assert (plan.status.attempt, plan.status.counted_restarts) == (2, 1)
    assert [f.code for f in plan.status.findings] == ["FlatLoss"]


def test_a_retry_begins_without_the_findings_of_its_phase():
    data = running(a_status(), report(FLAT)).status.findings[0].model_copy(update={"phase": "prepare"})
    status = stopped().status
    status = status.model_copy(update={"findings": [*status.findings, data]})
    plan = decide(status, a_view(), a_job(metadata={"annotations": {ANNOTATION_RETRY: "1"}}))
    assert plan.status.attempts.train == 2
    assert [f.phase for f in plan.status.findings] == ["prepare"]
    assert health(plan) is None


def test_a_hostile_pod_can_say_little():
    """It has a code for each reading, and texts as long as they may be."""
    status, events = a_status(), []
    for i in range(40):
        found = [
            Finding(code=f"X{i}Y{n}", severity="Unhealthy", cause="\x1b[31m" + "a\n" * 5000, suggestion="b" * 5000)
            for n in range(MAX_FINDINGS)
        ]
        plan = running(status, report(*found))
        status = plan.status
        events += told(plan)
        assert len(status.findings) == MAX_FINDINGS
    assert len(events) == 1
    assert "\x1b" not in str(status.to_dict())
    assert "\n" not in events[0][2]
    assert all(len(finding.message) <= 640 for finding in status.findings)
    assert status.announced_findings is not None
    assert status.announced_findings.codes == ["Other"]
    assert len(str(status.to_dict())) < 20_000


def test_last_words_have_room_for_the_worst_findings():
    """What they leave out is kept from what was read before."""
    codes = list(Code)[:MAX_FINDINGS]
    figures = tuple(Figure(name=f"eval_rewards/margins_{n}", value=0.123456, limit=1.0) for n in range(8))
    many = [
        Finding(code=code, severity="Warning", step=9, cause="w" * 290, suggestion="s" * 290, figures=figures)
        for code in codes
    ]
    records = [CheckpointRecord(step=n, attempt=1, digest="0" * 64) for n in range(12)]
    last = Termination(
        phase="train",
        attempt=1,
        outcome="Succeeded",
        exit_code=0,
        message="m" * 4000,
        progress=report(*many, recorded=records),
    )
    text = last.to_text()
    assert len(text.encode()) <= MAX_TERMINATION_BYTES
    read = Termination.from_text(text)
    assert read is not None
    assert read.progress is not None
    assert read.progress.recorded == records
    assert 1 <= len(read.progress.findings) < MAX_FINDINGS
    assert len(read.progress.findings) + read.progress.findings_left_out == MAX_FINDINGS
    status = running(a_status(), report(*many)).status
    done = decide(status, a_view(a_child(complete=True), *(ended(i, 0, text=text) for i in range(2))))
    assert done.status.findings == status.findings

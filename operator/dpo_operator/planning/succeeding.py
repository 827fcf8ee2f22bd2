"""What follows a phase that succeeded: its reports are kept, and the next phase begins, or the job is complete."""

from collections.abc import Sequence
from dataclasses import replace

from dpo_operator.api import conditions as c
from dpo_operator.api.exitcodes import ExitCode, info
from dpo_operator.api.phases import LAST, following
from dpo_operator.api.reports import Termination
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.text import quoted
from dpo_operator.api.types import DPOJob
from dpo_operator.planning import failures, findings, legs, progress, recorded, restarts, rounds, transitions
from dpo_operator.planning.actions import Event, Plan
from dpo_operator.planning.failures import Failure
from dpo_operator.planning.fit import predicted_not_to_fit
from dpo_operator.planning.objects import ChildPod
from dpo_operator.planning.transitions import Moment


def succeed(job: DPOJob, status: DPOJobStatus, pods: Sequence[ChildPod], at: Moment, gpu_memory: float | None) -> Plan:
    """Keep what the phase reported, and decide on the next one. gpu_memory: bytes of a GPU, None if not configured."""
    assert status.phase is not None
    done = status.step
    termination = next((p.exit.termination for p in pods if p.succeeded and p.index == 0 and p.exit), None)
    reported = termination is not None and termination.round is not None and progress.is_current(termination, status)
    if status.phase == "judge" and not reported:
        # Whether and how the rounds continue is in its report alone. What was judged is on the volume, so that judging again costs little.
        lost = Failure(failures.POD_DELETED, "counted", "The judge ended well, and its report is lost")
        return restarts.after_failure(status, lost, job.spec.failure_policy, at)
    if done.leg and not legs.is_reported(status, termination):
        # What came of a leg is in its report alone. The leg is on the volume with its figures, so that another attempt only reads them.
        lost = Failure(failures.POD_DELETED, "counted", f"Leg {done.leg} ended well, and its report is lost")
        return restarts.after_failure(status, lost, job.spec.failure_policy, at)
    status = progress.with_termination(status, termination, at.now)
    status = legs.with_report(job.spec, status, termination)
    if done.phase == "prepare" and job.spec.resume_from is not None:
        current = termination is not None and progress.is_current(termination, status)
        status = recorded.with_first(status, termination.resumed if termination is not None and current else None)
        if status.resumed_from is None:
            # Without its record, training would refuse the checkpoint. It is on the volume, so that preparing again costs little.
            lost = Failure(failures.POD_DELETED, "counted", "Prepare ended well, and its report is lost")
            return restarts.after_failure(status, lost, job.spec.failure_policy, at)
    status = rounds.with_reports(job.spec, status, termination)
    step = following(job.spec, done, rounds.end_of(status), asked=rounds.is_asked(status))
    if step is None:
        status = transitions.completed(status, at, rounds.why_ended(status) or legs.why_chosen(job.spec, status))
        return Plan(status, events=(Event("Normal", c.COMPLETE, status.message),), requeue_after=0)
    if done.phase == "export" or done.leg:
        status = recorded.of_the_last_round(status)
    events = _events(job, status, termination, gpu_memory)
    if done.leg and step == LAST:
        choice = legs.with_choice(job.spec, status)
        if choice is None:
            why = info(ExitCode.STOPPED_BY_DIAGNOSIS).reason
            given_up = restarts.give_up(status, why, legs.why_none(status), at)
            return replace(given_up, events=(*events, *given_up.events))
        exported = legs.chosen(choice)
        assert exported is not None
        status = findings.of_leg(job, choice, exported, at)
    status = transitions.next_phase(status, step, at)
    if done.phase == "prepare":
        status = transitions.mark(status, at, c.PREPARED, True, c.PREPARE_SUCCEEDED, _prepared(status))
    if step == LAST and job.spec.export.push is not None:
        then = f"The model is copied to {job.spec.export.push.to} when its export was verified."
        status = transitions.mark(status, at, c.PUSHED, False, c.PUSH_PENDING, then)
    return Plan(status, events=events, requeue_after=0)


def _events(
    job: DPOJob, status: DPOJobStatus, termination: Termination | None, gpu_memory: float | None
) -> tuple[Event, ...]:
    """What the phase that succeeded has done."""
    match status.phase:
        case "prepare":
            # Once per job: the inputs of the estimate are immutable.
            warning = predicted_not_to_fit(job.spec, termination.dataset if termination else None, gpu_memory)
            return (Event("Normal", c.PREPARED, _prepared(status)), *((warning,) if warning else ()))
        case "train" if status.leg:
            return legs.events(status)
        case "train":
            said = termination is not None and bool(termination.message)
            ending = status.final_metrics.ending if status.final_metrics else "Training finished."
            return (Event("Normal", "Trained", f"The trainer reports: {quoted(ending)}" if said else ending),)
        case _:
            return rounds.events(status)


def _prepared(status: DPOJobStatus) -> str:
    found = status.dataset
    text = f"{found.train_pairs} training and {found.eval_pairs} evaluation pairs." if found else "Prepared."
    first = status.resumed_from
    return text if first is None else f"{text} Training begins with step {first.step} of {quoted(first.source, 256)}."

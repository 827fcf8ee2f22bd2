"""Why a job is where it is: the answer of `dpo why` and `kubectl dpo why`, of plain data."""

import re

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.quantity import duration
from dpo_operator.api.status import State
from dpo_operator.explain.case import Case
from dpo_operator.explain.endings import ENDINGS, EXHAUSTED, ending
from dpo_operator.explain.explanation import Explanation, who
from dpo_operator.explain.history import endings_of_pods, notes, supporting_events, tried
from dpo_operator.explain.learning import figures, finding_lines, suggestions, worst
from dpo_operator.explain.legs import leg_lines
from dpo_operator.explain.rounds import round_lines
from dpo_operator.explain.waits import WAITS, Lines, Wait
from dpo_operator.explain.working import working

# A new job without a status is not unusual for this long, seconds.
UNSEEN_SECONDS = 30.0


def why(case: Case) -> Explanation:
    """The explanation of a job's state."""
    state = case.status.state
    if case.deleting:
        return _deleting(case)
    if case.managed_by != names.MANAGER:
        return Explanation(
            "other",
            f"{who(case)} is left alone by the DPO operator.",
            (f"Its spec.managedBy is {case.managed_by}, so that another controller acts on it.",),
            do=("Ask that controller. spec.managedBy can't change in a job's life.",),
        )
    if state is None:
        return _unseen(case)
    if state == State.FAILED:
        return _failed(case)
    if state == State.COMPLETE:
        return _complete(case)
    if state == State.SUSPENDED:
        return _suspended(case)
    if state in (State.PENDING, State.RESTARTING):
        return _waiting(case)
    return working(case)


def _deleting(case: Case) -> Explanation:
    return Explanation(
        "other",
        f"{who(case)} is being deleted.",
        ("A finalizer keeps the object until its owner has removed it.",),
        next=("Its pods are stopped, and the object goes when the last finalizer is removed.",),
        do=(f"See the finalizers: {case.kubectl(f'get dpojob {case.name} -o jsonpath={{.metadata.finalizers}}')}",),
    )


def _unseen(case: Case) -> Explanation:
    age = case.seconds_since(case.created)
    headline = f"{who(case)} is pending: no operator has looked at it yet."
    if age < UNSEEN_SECONDS:
        return Explanation(
            "unseen",
            headline,
            (f"It was made {duration(age)} ago.",),
            next=("An operator usually acts within seconds.",),
        )
    find = f"{case.place.cluster} get deployments -A -l {names.LABEL_PART_OF}={names.PART_OF}"
    return Explanation(
        "unseen",
        headline,
        (
            f"It was made {duration(age)} ago and has no status. Either no operator runs, or it does not serve namespace {case.namespace}.",
        ),
        next=("As soon as an operator serves the namespace, it starts the job.",),
        do=(
            f"Look for the operator: {find}",
            "If it runs, look at its log, and at the chart's values, which say which namespaces it serves.",
        ),
    )


def _waiting(case: Case) -> Explanation:
    status, running = case.status, case.running
    restarting = status.state == State.RESTARTING
    reason = running.reason if running else c.PENDING
    message = running.message if running else status.message
    known = f"{message} {status.message}"
    since = f"It has waited for {duration(case.seconds_since(running.last_transition_time))}." if running else ""
    wait = WAITS.get(reason)
    if restarting and wait is None:
        # The reason is that of the failure itself: the next attempt has not met anything that is in its way.
        cause, end = message, ending(reason)
        return Explanation(
            "restarting",
            f"{who(case)} is restarting: {end.says}.",
            (f"{reason}: {cause}", *endings_of_pods(case, known), *supporting_events(case, known)),
            tuple(tried(case, known)),
            (_next_attempt(case),),
            tuple(end.do(case)),
        )
    wait = wait or Wait("Kubernetes has not started its pods.", lambda _c: "It goes on by itself.", lambda _c: [])
    word = "restarting" if restarting else "pending"
    before = _last_failure(case) if restarting else []
    return Explanation(
        "restarting" if restarting else "pending",
        f"{who(case)} is {word}: {wait.says}",
        (f"{reason}: {message}", *supporting_events(case, known), since, *before, *notes(case)),
        tuple(tried(case, known)),
        (wait.next(case),),
        tuple(wait.do(case) or (_after_last_failure(case) if restarting else [])),
    )


def _last_failure(case: Case) -> Lines:
    history = case.status.restart_history
    return [f"It restarts because {ending(history[-1].reason).says} ({history[-1].reason})."] if history else []


def _after_last_failure(case: Case) -> Lines:
    history = case.status.restart_history
    return ending(history[-1].reason).do(case) if history else []


def _next_attempt(case: Case) -> str:
    status = case.status
    saved = status.checkpoint
    start = (
        f"from the checkpoint of step {saved.step}"
        if saved is not None and status.phase == "train"
        else "from its beginning"
    )
    when = "as soon as the pods of the last one are gone"
    if status.not_before is not None and status.not_before > case.now:
        when = case.until(status.not_before)
    return f"Attempt {status.attempt} starts {when}, {start}. Nothing needs to be done for that."


def _failed(case: Case) -> Explanation:
    status, failed = case.status, case.failed
    reason, message = (failed.reason, failed.message) if failed else ("", status.message)
    says, root = "", ""
    if reason in EXHAUSTED:
        root = _root(case, message)
        says = EXHAUSTED[reason] + (f"; the last time {ending(root).says}" if root else "")
    end = ending(root or reason)
    spec, lines = case.spec, list(end.do(case))
    if reason == c.MAX_RESTARTS_EXCEEDED and spec is not None:
        more = 2 * spec.failure_policy.max_restarts or 1
        lines.append(
            f"If it only needs more tries: {case.patch(failurePolicy={'maxRestarts': more})}; then {case.dpo('retry')}"
        )
    next_ = ["Nothing happens by itself: a failed job stays as it is, and so do its checkpoints."]
    if left := _deleted_in(case):
        next_.append(f"It is deleted {left}.")
    known = message
    return Explanation(
        "failed",
        f"{who(case)} has failed: {says or end.says}.",
        (
            f"{reason}: {message}",
            *endings_of_pods(case, known),
            *supporting_events(case, known),
            *finding_lines(case),
            *notes(case),
        ),
        tuple(tried(case, known)),
        tuple(next_),
        tuple(lines),
    )


def _deleted_in(case: Case) -> str:
    """When a job that has ended is deleted, in words; empty where it is kept."""
    ttl, ended = case.spec.ttl_seconds_after_finished if case.spec else None, case.status.completion_time
    if ttl is None or ended is None:
        return ""
    return f"in {duration(ttl - case.seconds_since(ended))} (ttlSecondsAfterFinished)"


def _root(case: Case, message: str) -> str:
    """The reason of the last failure: the message names that of an exit, and failures of one kind follow each other."""
    named = next((word for word in re.findall(r"\((\w+)\)", message) if word in ENDINGS), "")
    history = case.status.restart_history
    return named or (history[-1].reason if history else "")


def _suspended(case: Case) -> Explanation:
    if case.local:
        return Explanation(
            "stopped",
            f"{who(case)} is not at work and not at its end.",
            (case.status.message, *finding_lines(case)),
            tuple(tried(case)),
            ("Nothing happens by itself.",),
            ("Resume it from its last checkpoint: dpo run FILE",),
        )
    return Explanation(
        "suspended",
        f"{who(case)} is suspended: its spec.suspend is true.",
        (case.status.message, *finding_lines(case), *notes(case)),
        tuple(tried(case)),
        ("It stays suspended, without pods, until it is resumed. Everything else is kept.",),
        (f"Resume it: {case.dpo('resume')}",),
    )


def _complete(case: Case) -> Explanation:
    status, bad, spec = case.status, worst(case), case.spec
    ill = bad is not None and bad.severity == "Unhealthy"
    if spec is not None and not spec.diagnosis.enabled:
        headline, verdict = "is complete", "spec.diagnosis.enabled is false, so that nobody looked at its learning."
    elif bad is None:
        headline, verdict = "is complete and healthy", "No finding speaks against its learning."
    elif ill:
        headline = f"is complete, but not healthy: {bad.code}"
        verdict = f"{bad.code} says that the result is most likely of no use."
    else:
        headline = f"is complete, with a warning: {bad.code}"
        verdict = f"Look at {bad.code} before you use the model."
    result = f"dpo report {case.place.folder}" if case.local else case.dpo("status")
    left = _deleted_in(case)
    return Explanation(
        "ill" if ill else "finished",
        f"{who(case)} {headline}.",
        (
            status.message,
            *figures(case),
            *round_lines(status),
            *leg_lines(status),
            verdict,
            *finding_lines(case),
            *notes(case),
        ),
        tuple(tried(case)) if status.restarts else (),
        (f"The DPOJob is deleted {left}." if left else "Nothing more: the job is at its end.",),
        (*suggestions(case), f"See the result: {result}"),
    )

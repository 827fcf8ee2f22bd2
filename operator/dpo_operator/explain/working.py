"""Jobs whose pods run: whether they learn, are slow or are silent."""

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.quantity import duration
from dpo_operator.api.text import shown
from dpo_operator.explain.case import Case
from dpo_operator.explain.explanation import Explanation, Kind, who
from dpo_operator.explain.history import NAMES, notes, supporting_events, tried
from dpo_operator.explain.learning import figures, finding_lines, suggestions, worst
from dpo_operator.explain.legs import leg_lines
from dpo_operator.explain.rounds import round_lines
from dpo_operator.explain.waits import Lines

# Nothing new from rank 0 for this long is worth a line, seconds.
QUIET_SECONDS = 120.0


def working(case: Case) -> Explanation:
    """What runs now: whether it learns, is slow or is silent, and until when."""
    status, bad = case.status, worst(case)
    phase = NAMES[status.phase or "train"] + (f" of {whose}" if (whose := status.step.whose) else "")
    progress = status.progress
    quiet = case.seconds_since(progress.updated_time) if progress is not None else 0.0
    kind: Kind = "working"
    headline = f"{who(case)} is running {phase}"
    cause: Lines = []
    do: Lines = []
    if bad is not None and bad.severity == "Unhealthy":
        kind, headline = "ill", f"{headline}, but it does not learn as it should: {bad.code}"
    elif status.phase == "train" and quiet > QUIET_SECONDS:
        kind, headline = "silent", f"{headline}, but nothing new was reported for {duration(quiet)}"
        cause += _silence(case, quiet)
        do += _silence_do(case)
    elif status.straggler is not None:
        kind = "slow"
        headline = f"{headline}, slowly: rank {status.straggler.rank} takes {status.straggler.ratio} times as long as the others"
        cause.append(_straggler(case))
        do.append(
            f"Look for a CPU limit, a slow GPU or another load there: {case.place.cluster} describe node {status.straggler.node or 'NODE'}"
        )
    elif bad is not None and bad.severity == "Warning":
        headline = f"{headline}, with a warning: {bad.code}"
    cause += finding_lines(case)
    if kind != "slow" and status.straggler is not None:
        cause.append(_straggler(case))
    known = " ".join(cause)
    do += suggestions(case)
    if not case.local:
        do.append(f"Watch it: {case.dpo('status')} -w")
    return Explanation(
        kind,
        f"{headline}.",
        (
            *figures(case),
            *round_lines(status),
            *leg_lines(status),
            *cause,
            *supporting_events(case, known),
            *notes(case),
        ),
        tuple(tried(case)),
        tuple(_next_of_work(case)),
        tuple(do),
    )


def _straggler(case: Case) -> str:
    slow = case.status.straggler
    assert slow is not None
    return f"Straggler: rank {slow.rank} (pod {slow.pod or 'unknown'} on node {slow.node or 'unknown'}); the other ranks wait for it at each step."


def _silence(case: Case, quiet: float) -> Lines:
    silent = [
        event
        for event in case.events
        if event.reason == c.HEARTBEAT_SILENT and case.seconds_since(event.last) < quiet + QUIET_SECONDS
    ]
    lines = [f"{event.reason}: {event.message}" for event in silent[-1:]]
    activity = case.status.progress.activity if case.status.progress else None
    doing = f" It was at: {shown(activity)}." if activity else ""
    return [*lines, f"A long evaluation, a save or a slow step also looks like this.{doing}"]


def _silence_do(case: Case) -> Lines:
    return [
        f"See what the ranks say: {case.dpo('logs')}",
        f"If the operator can't reach them, allow it to reach port {names.METRICS_PORT_NAME} of the job's pods (NetworkPolicy).",
    ]


def _next_of_work(case: Case) -> Lines:
    status, spec, progress = case.status, case.spec, case.status.progress
    lines = []
    if status.phase == "train" and progress is not None and progress.eta:
        lines.append(f"Training ends in about {progress.eta}; then the model is exported and checked.")
    elif status.phase is not None:
        following = {
            "prepare": "Training starts when the model and the data are ready.",
            "generate": "Then the answers are judged.",
            "judge": "Then the round is trained on the pairs, unless the judge ends the rounds.",
            "train": "Then the model is exported and checked.",
            "export": "The job is complete when the export was checked.",
        }
        if status.phase == "prepare" and spec is not None and spec.iterative is not None:
            following["prepare"] = "Round 1 starts when the model and the prompts are ready."
        if status.round and status.phase == "export":
            following["export"] = "Then the next round begins, or the last policy is compared."
        lines.append(following[status.phase])
    if spec is not None and status.phase == "train" and not case.local:
        policy = spec.failure_policy
        lines.append(
            f"If no piece of work is finished for {duration(policy.hang_timeout_seconds)} (failurePolicy.hangTimeoutSeconds), all ranks "
            "restart from the last checkpoint."
        )
    if spec is not None and spec.active_deadline_seconds is not None and status.active_since is not None:
        left = spec.active_deadline_seconds - status.active_seconds_before - case.seconds_since(status.active_since)
        lines.append(f"The job fails in {duration(left)} if it is not done by then (activeDeadlineSeconds).")
    return lines

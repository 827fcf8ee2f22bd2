"""Rounds of a job: what judges report of them, and why they end."""

from dpo_operator.api import conditions as c
from dpo_operator.api import phases
from dpo_operator.api.iterative import MAX_ROUND_HISTORY
from dpo_operator.api.reports import RoundsEnd, Termination
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.planning.actions import Event
from dpo_operator.planning.progress import is_current
from dpo_operator.planning.transitions import changed

# Why no further round is trained, for people.
ENDS: dict[RoundsEnd, str] = {
    "Saturated": "the answers of round {round} gave too few pairs (iterative.pairs.minPairs)",
    "RoundsWorse": "the policy of round {before} is worse than the one before it, which is exported",
    "BudgetSpent": "iterative.judge.budget is spent",
    "NoPrompts": "no prompts are left for round {round} (iterative.promptsPerRound, iterative.reusePrompts)",
}


def with_reports(spec: DPOJobSpec, status: DPOJobStatus, termination: Termination | None) -> DPOJobStatus:
    """The status with what a judge said of its round, and of the round before, whose policy it has now compared.

    Pods belong to tenants: a report of any other round is dropped.
    """
    rounds = spec.iterative
    if rounds is None or status.phase != "judge" or termination is None or not is_current(termination, status):
        return status
    found = {each.round: each for each in status.rounds}
    before, now = termination.compared, termination.round
    if before is not None and before.round == status.round - 1:
        found[before.round] = RoundStatus.of(before)
    # After the last round there is nothing but the comparison, unless it says that this round was the worse one.
    if now is not None and now.round == status.round and (now.round <= rounds.rounds or now.ended):
        found[now.round] = RoundStatus.of(now)
    return changed(status, rounds=[found[number] for number in sorted(found)][-MAX_ROUND_HISTORY:])


def current(status: DPOJobStatus) -> RoundStatus | None:
    """Figures of the current round; None before its judge has reported them."""
    return next((each for each in status.rounds if each.round == status.round), None)


def is_asked(status: DPOJobStatus) -> bool:
    """Whether the current round has something to train on; not when it began as the comparison after the last one, and rounds was raised since."""
    found = current(status)
    return found is None or phases.is_asked(found)


def end_of(status: DPOJobStatus) -> RoundsEnd:
    """Why the current round is the last one; empty if others may follow."""
    found = current(status)
    return found.ended if found is not None and status.phase in ("judge", "export") else ""


def why_ended(status: DPOJobStatus) -> str:
    """Why no further round was trained, as a sentence; empty without such a reason."""
    last = status.rounds[-1] if status.rounds else None
    if last is None or not last.ended:
        return ""
    reason = ENDS[last.ended].format(round=last.round, before=last.round - 1)
    return f"No further round is trained: {reason}."


def events(status: DPOJobStatus) -> tuple[Event, ...]:
    """What generate, judge or the export of a round has done. A judge's figures are of its round; a win rate is of the policy before it."""
    number, found = status.round, current(status)
    match status.phase:
        case "generate":
            return (Event("Normal", "Generated", f"The answers of round {number} are generated."),)
        case "judge":
            said = [Event("Normal", "Judged", _judged(status))]
            if found is not None and found.ended:
                said.append(Event("Warning", c.ROUNDS_ENDED, why_ended(status)))
            return tuple(said)
        case _:
            return (Event("Normal", "RoundTrained", f"Round {number} is trained and exported."),)


def _judged(status: DPOJobStatus) -> str:
    found = current(status)
    of_round = f"Round {status.round} is judged"
    if found is not None:
        of_round += f": {found.pairs} pairs of {found.prompts} prompts, {found.ties} ties, {found.judge_calls} calls"
    before = next((each for each in status.rounds if each.round == status.round - 1), None)
    if before is None or before.win_rate_previous is None:
        return f"{of_round}."
    error = f" ± {before.win_rate_error}" if before.win_rate_error else ""
    initial = f", against the initial one {before.win_rate_initial}" if before.win_rate_initial else ""
    return f"{of_round}. Win rate of round {before.round} against the policy before it: {before.win_rate_previous}{error}{initial}."

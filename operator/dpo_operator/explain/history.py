"""What was tried so far, and the words of pods and events that support a cause."""

import re

from dpo_operator.api import conditions as c
from dpo_operator.api import exitcodes
from dpo_operator.api.names import Phase
from dpo_operator.api.quantity import duration
from dpo_operator.api.text import quoted
from dpo_operator.explain.case import Case, Event, Pod
from dpo_operator.explain.waits import Lines

SHOWN_RESTARTS = 3
SHOWN_EVENTS = 3
# Longest text of one pod or event, characters.
MAX_WORDS = 400
# Older events are about something else.
RECENT_SECONDS = 3600.0
NAMES: dict[Phase, str] = {
    "prepare": "the preparation",
    "generate": "the generation of answers",
    "judge": "the judging",
    "train": "the training",
    "export": "the export",
}
# Conditions leave the names of single pods out.
_RANDOM_NAME = re.compile(r'pods "[^"]*"')
_COUNTING = {"Counted": "counted", "Uncounted": "not counted", "Planned": "planned"}


def tried(case: Case, known: str = "") -> Lines:
    """The attempts so far and the newest restarts, with the steps that they reached and the words that `known` has not."""
    status = case.status
    if status.phase is None:
        return []
    of_round = f", in {status.step.whose}" if status.step.whose else ""
    lines = [f"Attempt {status.attempt} of {NAMES[status.phase]}{of_round}. {_restarts(case)}"]
    newest = status.restart_history[-SHOWN_RESTARTS:]
    for each in newest:
        at = f" after step {each.step}" if each.phase == "train" else ""
        what = f"{each.time:%Y-%m-%d %H:%M:%S} UTC, attempt {each.attempt} of {NAMES[each.phase]} ended{at}"
        words = "" if each.message[:80] in known else f" {each.message}"
        known += words
        lines.append(f"{what}: {each.reason} ({_COUNTING[each.counting]}).{words}")
    if status.checkpoint is not None:
        saved = status.checkpoint
        lines.append(
            f"The newest checkpoint has step {saved.step} and was committed {duration(case.seconds_since(saved.time))} ago."
        )
    return lines


def _restarts(case: Case) -> str:
    status, policy = case.status, case.spec.failure_policy if case.spec else None
    if not status.restarts:
        return "No restarts so far."
    text = f"{status.restarts} restart{'s' if status.restarts > 1 else ''} so far, {status.counted_restarts} of them counted"
    if policy is None:
        return f"{text}."
    oldest = case.now.timestamp() - policy.window_seconds
    counted = sum(1 for time in status.counted_restart_times if time > oldest)
    window = duration(policy.window_seconds)
    return f"{text}; {counted} of at most {policy.max_restarts} within the last {window} (failurePolicy.maxRestarts)."


def supporting_events(case: Case, known: str) -> Lines:
    """The newest warnings about the job and its pods that say more than `known` does."""
    lines: Lines = []
    for event in reversed(case.events):
        if event.type != "Warning" or case.seconds_since(event.last) > RECENT_SECONDS:
            continue
        # The operator's own events repeat its conditions, and conditions repeat the events of pods.
        if event.about.startswith("DPOJob ") or _RANDOM_NAME.sub("pods", _words(event))[:80] in known:
            continue
        line = f"Event of {event.about}: {event.reason}: {quoted(_words(event), MAX_WORDS)}{_when(case, event)}"
        if line not in lines:
            lines.append(line)
        if len(lines) == SHOWN_EVENTS:
            break
    return lines


def _words(event: Event) -> str:
    return event.message.removeprefix("(combined from similar events): ")


def _when(case: Case, event: Event) -> str:
    times = f", {event.count} times" if event.count > 1 else ""
    ago = f", {duration(case.seconds_since(event.last))} ago" if event.last is not None else ""
    return f" ({(times + ago).removeprefix(', ')})" if times or ago else ""


def endings_of_pods(case: Case, known: str) -> Lines:
    """How the containers of the newest attempt ended, except what `known` says already."""
    ended = [pod for pod in case.current_pods if pod.exit_code]
    lines = [line for pod in ended if (line := _ending(pod)) and (not pod.said or pod.said.message[:80] not in known)]
    return lines[:SHOWN_EVENTS]


def _ending(pod: Pod) -> str:
    code = pod.exit_code or 0
    info = exitcodes.info(code)
    reason = pod.exit_reason if pod.exit_reason == "OOMKilled" else info.reason
    words = quoted(pod.said.message, MAX_WORDS) if pod.said and pod.said.message else info.meaning
    where = f" on node {pod.node}" if pod.node else ""
    return f"Pod {pod.name}{where} ended with {reason} (exit code {code}): {words}"


def notes(case: Case) -> Lines:
    """Conditions that are worth knowing beside the state of the job."""
    status = case.status
    lines = list(case.unread)
    for type_ in (c.VOLUME_NEARLY_FULL, c.VOLUME_TOO_SMALL):
        found = c.find(status.conditions, type_)
        if found is not None and found.status == "True":
            lines.append(f"{type_}: {found.message}")
    for type_ in (c.RESIZED, c.PUSHED, c.MIRRORED):
        found = c.find(status.conditions, type_)
        if found is not None and found.status == "False" and found.reason not in (c.PUSH_PENDING, c.MIRROR_PENDING):
            lines.append(f"{found.reason}: {found.message}")
    if case.generation > status.observed_generation > 0:
        lines.append("The operator has not yet acted on the newest change of the spec.")
    if status.dataset is not None and status.dataset.dropped_rows:
        dropped = status.dataset
        reasons = ", ".join(f"{reason} {count}" for reason, count in list(dropped.dropped.items())[:3])
        lines.append(f"Prepare left out {dropped.dropped_rows} rows ({reasons}) and kept {dropped.train_pairs} pairs.")
    return lines

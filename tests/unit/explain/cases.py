"""Jobs as the operator's own planning makes them, for the situations of `why`."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.diagnosis import MEANINGS, Code, Figure, Finding
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.explain.case import Case, Place
from dpo_operator.planning.findings import as_status
from dpo_operator.planning.objects import ChildPod, Notice
from tests.unit.planning.build import NOON, a_child, a_job, a_status, a_view, decide, termination_text

PLACE = Place("kubectl")
Raw = dict[str, Any]


class Situations(dict[str, Callable[[], Case]]):
    """Functions that make a case, by what the situation is called."""

    def add(self, make: Callable[[], Case]) -> Callable[[], Case]:
        """A decorator: the function's name is that of the situation."""
        self[make.__name__.replace("_", " ")] = make
        return make


def case(
    status: DPOJobStatus,
    job: DPOJob | None = None,
    *,
    pods: tuple[Raw, ...] = (),
    events: tuple[Raw, ...] = (),
    others: tuple[Raw, ...] = (),
    minutes: float = 3,
    findings: tuple[Finding, ...] = (),
    **metadata: Any,
) -> Case:
    """The case of a job some minutes after its status was written, read back from JSON as an API server has it."""
    raw = (job or a_job()).model_dump(mode="json", by_alias=True, exclude_none=True)
    raw["metadata"] |= {"creationTimestamp": "2026-01-01T11:30:00Z"} | metadata
    found = [as_status(finding, "train") for finding in findings]
    raw["status"] = status.model_copy(update={"findings": found}).to_dict()
    now = NOON + timedelta(minutes=minutes)
    return Case.from_raw(raw, now=now, place=PLACE, pods=pods, events=events, others=others, others_known=True)


def raw_pod(index: int = 0, of: str = "train", attempt: int = 1, node: str = "", **status: Any) -> Raw:
    """A pod as the API server has it."""
    phase = of
    name = f"pairs-{phase}-{attempt}-{index}"
    labels = {names.LABEL_PHASE: phase, names.LABEL_ATTEMPT: str(attempt), names.COMPLETION_INDEX: str(index)}
    owner = [{"uid": f"uid-pairs-{phase}-{attempt}", "controller": True}]
    metadata = {"name": f"{name}-x7k2p", "uid": f"uid-{name}", "labels": labels, "ownerReferences": owner}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": "Pending"} | status}


def unscheduled(words: str) -> Raw:
    return {"conditions": [{"type": "PodScheduled", "status": "False", "message": words}]}


def container(**state: Any) -> Raw:
    return {"containerStatuses": [{"name": names.CONTAINER, "state": state}]}


def ended(
    index: int,
    code: int,
    words: str = "",
    *,
    reason: str = "Error",
    phase: str = "train",
    attempt: int = 1,
    **more: Any,
) -> Raw:
    """A pod whose container ended."""
    text = termination_text(code, words, phase=phase, attempt=attempt, rank=index, **more) if words else ""
    end = {"exitCode": code, "reason": reason, "finishedAt": "2026-01-01T12:00:00Z", "message": text}
    return raw_pod(index, phase, attempt, node=f"gpu-{index}", **({"phase": "Failed"} | container(terminated=end)))


def event(about: str, reason: str, message: str, uid: str = "", count: int = 1) -> Raw:
    kind, name = about.split()
    return {
        "involvedObject": {"kind": kind, "name": name, "uid": uid},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "count": count,
        "lastTimestamp": "2026-01-01T12:02:00Z",
    }


def waits(
    *pods: Raw,
    job: DPOJob | None = None,
    events: tuple[Raw, ...] = (),
    claim: Any = "own",
    phase: Any = "train",
    **seen: Any,
) -> Case:
    """What planning says of pods that do not run, from the same objects."""
    children = [a_child(phase), *(ChildPod.from_raw(pod) for pod in pods)]
    notices = tuple(Notice.from_raw(each) for each in events)
    status = decide(a_status(phase), a_view(*children, claim=claim, notices=notices, **seen), job).status
    return case(status, job, pods=pods, events=events)


def fails(
    *pods: Raw, job: DPOJob | None = None, phase: Any = "train", status: DPOJobStatus | None = None, **seen: Any
) -> Case:
    """What planning says of pods that ended."""
    before = status or a_status(phase)
    after = decide(before, a_view(a_child(phase, before.attempt), *(ChildPod.from_raw(p) for p in pods), **seen), job)
    return case(after.status, job, pods=pods, minutes=0)


FIELDS = {
    Code.WRONG_REFERENCE: "model.reference", Code.NOT_THE_FINE_TUNED_MODEL: "model.name", Code.TEMPLATE_OR_BOUNDARY: "model.chatTemplate",
    Code.SWAPPED_LABELS: "data.train.columns", Code.GIBBERISH: "training.learningRate", Code.FLAT_LOSS: "training.learningRate",
    Code.NOISY_LABELS: "data.filters.minConfidence", Code.LIKELIHOOD_DISPLACEMENT: "method.nllWeight", Code.VERBOSITY: "method.name",
    Code.SHORTCUT: "data.filters", Code.OVER_REFUSING: "data.mixture", Code.OVERFITTING: "training.epochs",
    Code.SATURATED: "training.epochs", Code.REFERENCE_DRIFT: "method.beta", Code.DISTRIBUTION_MISMATCH: "data.train.source",
}  # fmt: skip


def a_finding(code: Code, severity: Any = "Unhealthy") -> Finding:
    """A finding as the rules make them: the meaning as its cause, with a field and a value."""
    return Finding(
        code=code,
        severity=severity,
        step=12,
        figures=(Figure(name="eval_rewards/margins", value=-0.84, limit=-0.2), Figure(name="eval_loss", value=1.227)),
        cause=MEANINGS[code],
        setting=FIELDS[code],
        suggestion=f"Change {FIELDS[code]}.",
    )

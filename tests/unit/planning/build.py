"""Small builders of jobs, statuses and what is seen, for tests of decisions."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import CheckpointRef, Metrics, Progress
from dpo_operator.api.status import ActiveJob, DPOJobStatus
from dpo_operator.api.statusparts.stored import VolumeStatus
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.pod import TrainerImage
from dpo_operator.planning.actions import Plan
from dpo_operator.planning.objects import ChildJob, ChildPod, Claim, Exit, Support, token_digest
from dpo_operator.planning.observed import Heartbeat, Observed, Startup, Turn
from dpo_operator.planning.plan import Settings, plan
from dpo_operator.planning.transitions import Moment, accepted, settled

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
UID = "3f0e2c1a-0000-4000-8000-000000000001"
SETTINGS = Settings(image=TrainerImage("registry.example/trainer:1"))
# Parts of what is seen, by their field.
PARTS: dict[str, Any] = {"turn": Turn, "startup": Startup, "heartbeat": Heartbeat}
TOKEN = "known to the operator alone"
BOTH = (Support("ConfigMap", UID), Support("Service", UID))


class AllHeld(dict[Any, float]):
    """Every fact was seen long ago for the first time."""

    def get(self, key: Any, default: Any = None) -> float:
        return 1000.0


def a_job(*, name: str = "pairs", generation: int = 1, metadata: dict[str, Any] | None = None, **spec: Any) -> DPOJob:
    """A valid job of two nodes; parts of the spec (camelCase) can be replaced."""
    least = {
        "model": {"name": "org/model"},
        "data": {"train": {"source": "org/pairs"}},
        "nodes": 2,
        "gpusPerNode": 1,
    }
    return DPOJob.model_validate(
        {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name, "namespace": "default", "uid": UID, "generation": generation} | (metadata or {}),
            "spec": least | spec,
        }
    )


def a_status(phase: names.Phase = "train", attempt: int = 1, *, created: bool = True, **fields: Any) -> DPOJobStatus:
    """Status of a job in the middle of an attempt. created: its Job was seen before."""
    at = Moment(NOON - timedelta(minutes=30), 1)
    status = accepted(DPOJobStatus(), at)
    attempts = {"prepare": 1, "train": 0, "export": 0} | {phase: attempt}
    if phase == "export":
        attempts["train"] = 1
    name = names.child_job_name("pairs", phase, attempt)
    defaults: dict[str, Any] = {
        "phase": phase,
        "attempts": status.attempts.model_copy(update=attempts),
        "active_job": ActiveJob(name=name, uid=f"uid-{name}") if created else None,
        "claim_tokens": [token_digest(TOKEN)],
        "volume": VolumeStatus(claim_name="pairs-work", claim_uid="uid-claim", folder=UID),
    }
    return settled(status.model_copy(update=defaults | fields), at)


def a_child(phase: names.Phase = "train", attempt: int = 1, **fields: Any) -> ChildJob:
    """The Job of an attempt."""
    name = names.child_job_name("pairs", phase, attempt)
    return ChildJob(
        **({"name": name, "uid": f"uid-{name}", "phase": phase, "attempt": attempt, "deleting": False} | fields)
    )


def a_pod(index: int = 0, phase: names.Phase = "train", attempt: int = 1, **fields: Any) -> ChildPod:
    """A running pod of an attempt."""
    name = f"{names.child_job_name('pairs', phase, attempt)}-{index}"
    defaults = {
        "name": name,
        "uid": f"uid-{name}",
        "phase": phase,
        "attempt": attempt,
        "index": index,
        "deleting": False,
        "pod_phase": "Running",
        "node": f"gpu-{index}",
        "ip": f"10.0.0.{index + 1}",
        "ready": True,
        "grace_seconds": 120 if fields.get("deleting") else 0,
    }
    return ChildPod(**(defaults | fields))


def ended(
    index: int, code: int, *, at: str = "12:00:00", text: str = "", reason: str = "Error", **fields: Any
) -> ChildPod:
    """A pod whose container ended. at: time of day by its node's clock."""
    end = Exit(code=code, reason="Completed" if code == 0 else reason, finished_at=f"2026-01-01T{at}Z", text=text)
    state = {"pod_phase": "Succeeded" if code == 0 else "Failed", "ready": False, "exit": end}
    return a_pod(index, **(state | fields))


def termination_text(
    code: int, message: str = "", *, phase: str = "train", attempt: int = 1, rank: int = 0, **more: Any
) -> str:
    """A termination message as the trainer writes it."""
    outcome = "Succeeded" if code == 0 else "Failed"
    said = {"phase": phase, "attempt": attempt, "outcome": outcome, "exit_code": code, "message": message, "rank": rank}
    return json.dumps(said | more)


def a_claim(**fields: Any) -> Claim:
    """The job's own claim, bound."""
    defaults = {"name": "pairs-work", "uid": "uid-claim", "bound": True, "deleting": False, "made_for": "pairs"}
    return Claim(**(defaults | {"access_modes": ("ReadWriteMany",), "token_digest": token_digest(TOKEN)} | fields))


def a_view(*children: ChildJob | ChildPod, claim: Claim | str | None = "own", **fields: Any) -> Observed:
    """What is seen: Jobs and pods, with the claim, Service and ConfigMap in place. fields: of Observed or of its parts."""
    parts = {
        name: part(**{f.name: fields.pop(f.name) for f in dataclasses.fields(part) if f.name in fields})
        for name, part in PARTS.items()
    }
    return Observed(
        jobs=tuple(c for c in children if isinstance(c, ChildJob)),
        pods=tuple(c for c in children if isinstance(c, ChildPod)),
        claim=a_claim() if isinstance(claim, str) else claim,
        support=fields.pop("support", BOTH),
        claim_token=TOKEN,
        held=fields.pop("held", AllHeld()),
        **parts,
        **fields,
    )


def with_heartbeat(view: Observed, **fields: Any) -> Observed:
    """The view with other signs of life."""
    return dataclasses.replace(view, heartbeat=dataclasses.replace(view.heartbeat, **fields))


def a_reading(step: int = 10, *, attempt: int = 1, checkpoint: int | None = None, **fields: Any) -> Progress:
    """Rank 0's answer."""
    ref = None
    if checkpoint is not None:
        time = NOON.timestamp()
        ref = CheckpointRef(
            step=checkpoint, path=f"checkpoints/{checkpoint}", digest="ab" * 32, attempt=attempt, time=time
        )
    defaults: dict[str, Any] = {
        "phase": "train",
        "attempt": attempt,
        "step": step,
        "max_steps": 100,
        "epoch": step / 100,
        "eta_seconds": 4350.0,
        "train": Metrics(loss=0.63123456, reward_margin=0.125, reward_accuracy=0.75),
        "checkpoint": ref,
    }
    return Progress(**(defaults | fields))


def decide(status: DPOJobStatus, seen: Observed, job: DPOJob | None = None, *, now: datetime = NOON) -> Plan:
    """plan() with the usual job and settings."""
    return plan(job or a_job(), status, seen, now, SETTINGS)


def condition(status: DPOJobStatus, type_: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = next(c for c in status.conditions if c.type == type_)
    return found.status, found.reason

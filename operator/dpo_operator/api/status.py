"""Status of a DPOJob: what `kubectl get` and `kubectl describe` show, and all persisted state of the operator.

Every list and text is bounded, so that the object stays small however long a job lives. Real numbers are text, as in
other Kubernetes APIs: printer columns can't show them otherwise.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal, TypedDict

from pydantic import Field, model_validator

from dpo_operator.api.conditions import TYPES, Condition, StatusModel, Time
from dpo_operator.api.diagnosis import MAX_FINDINGS, MOST_FINDINGS
from dpo_operator.api.iterative import MAX_ROUND_HISTORY
from dpo_operator.api.names import ANNOTATION_RETRY, Phase
from dpo_operator.api.phases import Step
from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord
from dpo_operator.api.statusparts.findings import AnnouncedFindings, FindingStatus
from dpo_operator.api.statusparts.gang import PlacementWait, StragglerStatus
from dpo_operator.api.statusparts.legs import LegStatus
from dpo_operator.api.statusparts.renames import with_current_names
from dpo_operator.api.statusparts.rounds import RoundStatus, UnitsStatus
from dpo_operator.api.statusparts.stored import (
    CheckpointStatus,
    ExportStatus,
    MirrorStatus,
    ResumedStatus,
    VolumeStatus,
)
from dpo_operator.api.statusparts.usage import UsageStatus
from dpo_operator.api.sweep.grid import MAX_LEGS

MAX_HISTORY = 10
MAX_HISTORY_MESSAGE = 512
MAX_EARLIER_JOBS = 10
MAX_CLAIM_TOKENS = 5

Counting = Literal["Counted", "Uncounted", "Planned"]


class State(StrEnum):
    """One word for the whole job, computed from the rest of the status."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    GENERATING = "Generating"
    JUDGING = "Judging"
    TRAINING = "Training"
    EXPORTING = "Exporting"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


FINAL_STATES = frozenset({State.COMPLETE, State.FAILED})


class Attempts(StatusModel):
    """Number of the current attempt of each phase; 0 before its first."""

    prepare: int = Field(default=0, ge=0, description="Attempts of prepare.")
    generate: int = Field(default=0, ge=0, description="Attempts of generating answers, over all rounds.")
    judge: int = Field(default=0, ge=0, description="Attempts of judging them, over all rounds.")
    train: int = Field(default=0, ge=0, description="Attempts of training, over all rounds.")
    export: int = Field(default=0, ge=0, description="Attempts of the export, over all rounds.")

    def of(self, phase: Phase) -> int:
        """Number of a phase's current attempt."""
        return int(getattr(self, phase))

    def next(self, phase: Phase) -> "Attempts":
        """With one more attempt of a phase."""
        return self.model_copy(update={phase: self.of(phase) + 1})


class Restart(StatusModel):
    """Why an attempt ended and the next one began."""

    time: Time = Field(description="When the restart was decided.")
    phase: Phase = Field(description="Phase that was running.")
    attempt: int = Field(ge=0, description="Attempt that ended.")
    round: int | None = Field(default=None, ge=1, description="Round that it was of; absent in jobs without rounds.")
    leg: int | None = Field(default=None, ge=1, description="Leg that it was of; absent in jobs without a sweep.")
    reason: str = Field(description="CamelCase reason.")
    counting: Counting = Field(
        description="Counted: counts against failurePolicy.maxRestarts. Uncounted: does not, because the job did not cause the failure or "
        "a rule says so. Planned: no failure, such as a change of nodes."
    )
    step: int = Field(default=0, ge=0, description="Optimizer steps finished before it ended.")
    message: str = Field(default="", description="What happened, and to which pod.")


class ProgressStatus(StatusModel):
    """Newest reading of rank 0."""

    attempt: int = Field(default=0, ge=0, description="Attempt that was read.")
    activity: str | None = Field(default=None, description="What is being done, such as 'reference log-probs'.")
    step: int = Field(default=0, ge=0, description="Finished optimizer steps.")
    max_steps: int = Field(default=0, ge=0, description="Optimizer steps of the whole run.")
    percent: str | None = Field(default=None, description="Share of the steps that are finished.")
    epoch: str | None = Field(default=None, description="Passes over the data so far.")
    eta: str | None = Field(default=None, description="Time left, such as 1h12m.")
    eta_seconds: int | None = Field(default=None, ge=0, description="Time left, seconds.")
    pairs_per_second: str | None = Field(default=None, description="Throughput of all ranks.")
    tokens: int | None = Field(default=None, ge=0, description="Tokens of prompts and answers trained on so far.")
    loss: str | None = Field(default=None, description="Training loss of the newest logged step, nats.")
    reward_margin: str | None = Field(default=None, description="Mean reward of chosen minus rejected answers, nats.")
    reward_margin_se: str | None = Field(default=None, description="Standard error of rewardMargin, nats.")
    reward_accuracy: str | None = Field(default=None, description="Share of pairs whose chosen answer wins.")
    accuracy: str | None = Field(
        default=None, max_length=64, description="rewardAccuracy; says so if the margin is within noise or near 0."
    )
    reward_chosen: str | None = Field(default=None, description="Mean reward of chosen answers, nats.")
    reward_rejected: str | None = Field(default=None, description="Mean reward of rejected answers, nats.")
    eval_loss: str | None = Field(default=None, description="Loss of the newest evaluation, nats.")
    eval_reward_margin: str | None = Field(default=None, description="Margin of the newest evaluation, nats.")
    eval_reward_margin_se: str | None = Field(default=None, description="Standard error of evalRewardMargin, nats.")
    eval_reward_accuracy: str | None = Field(default=None, description="Accuracy of the newest evaluation.")
    eval_accuracy: str | None = Field(default=None, max_length=64, description="evalRewardAccuracy, as accuracy is.")
    resumed_from_step: int | None = Field(
        default=None, ge=0, description="Step of the checkpoint that the attempt resumed from."
    )
    units: UnitsStatus | None = Field(
        default=None,
        description="While answers are generated or judged: how far that is. The figures of steps are the newest training's then.",
    )
    updated_time: Time | None = Field(default=None, description="When this was read.")


class DatasetStatus(StatusModel):
    """Result of the prepare phase."""

    train_pairs: int = Field(default=0, ge=0, description="Pairs to train on.")
    eval_pairs: int = Field(default=0, ge=0, description="Pairs to evaluate on.")
    dropped_rows: int = Field(default=0, ge=0, description="Rows left out.")
    dropped: dict[str, int] = Field(default={}, max_length=32, description="Rows left out, by reason.")
    truncated_pairs: int = Field(default=0, ge=0, description="Pairs that were truncated.")


class Workers(StatusModel):
    """Pods of the current phase."""

    desired: int = Field(default=0, ge=0, description="Pods that the phase needs.")
    started: int = Field(default=0, ge=0, description="Pods whose trainer runs or has ended.")


class FinalMetrics(StatusModel):
    """Values at the end of training; text, nats where they have a unit."""

    step: int = Field(default=0, ge=0, description="Optimizer steps.")
    loss: str | None = Field(default=None, description="Training loss.")
    reward_margin: str | None = Field(default=None, description="Reward margin.")
    reward_margin_se: str | None = Field(default=None, description="Standard error of rewardMargin.")
    reward_accuracy: str | None = Field(default=None, description="Reward accuracy, 0 to 1.")
    eval_loss: str | None = Field(default=None, description="Evaluation loss.")
    eval_reward_margin: str | None = Field(default=None, description="Evaluation's reward margin.")
    eval_reward_margin_se: str | None = Field(default=None, description="Standard error of evalRewardMargin.")
    eval_reward_accuracy: str | None = Field(default=None, description="Evaluation's reward accuracy, 0 to 1.")
    ending: str = Field(default="", max_length=512, description="How training ended, such as early, and why.")


class ActiveJob(StatusModel):
    """The batch/v1 Job of the current attempt, once it was seen."""

    name: str = Field(description="Name.")
    uid: str = Field(description="UID; the attempt ends when this Job is deleted.")


class DPOJobStatus(StatusModel):
    """Observed state of a DPOJob."""

    observed_generation: int = Field(default=0, ge=0, description="metadata.generation that was acted on.")
    state: State | None = Field(default=None, description="One word for the whole job.")
    phase: Phase | None = Field(default=None, description="Current phase, or the last one.")
    round: int = Field(default=0, ge=0, description="Round of the phase, from 1; 0 for phases of the whole job.")
    rounds: list[RoundStatus] = Field(
        default=[], max_length=MAX_ROUND_HISTORY, description="Newest rounds with figures, newest last."
    )
    leg: int = Field(
        default=0, ge=0, description="Leg of the phase, from 1, with spec.sweep; 0 for phases of the whole job."
    )
    legs: list[LegStatus] = Field(
        default=[], max_length=MAX_LEGS, description="Legs of the sweep that have ended, in their order."
    )
    message: str = Field(default="", description="What the job does or waits for, or why it failed.")
    attempts: Attempts = Field(default=Attempts(), description="Number of the current attempt of each phase.")
    active_job: ActiveJob | None = Field(default=None, description="Job of the current attempt.")
    earlier_jobs: list[ActiveJob] = Field(
        default=[],
        max_length=MAX_EARLIER_JOBS,
        description="Newest Jobs of earlier attempts, newest last. Their pods must be gone before the next attempt starts.",
    )
    restarts: int = Field(default=0, ge=0, description="Restarts of any kind.")
    counted_restarts: int = Field(
        default=0,
        ge=0,
        description="Restarts that counted against failurePolicy.maxRestarts, over the job's life. maxRestarts limits only those within "
        "windowSeconds.",
    )
    restarts_without_progress: int = Field(
        default=0, ge=0, description="Restarts since furthestStep last grew that counted or that a rule decided."
    )
    furthest_step: int = Field(default=0, ge=0, description="Largest optimizer step that any attempt reached.")
    counted_restart_times: list[int] = Field(
        default=[],
        max_length=10_001,
        description="Counted restarts within failurePolicy.windowSeconds, seconds since the epoch.",
    )
    restart_history: list[Restart] = Field(
        default=[], max_length=MAX_HISTORY, description="Newest restarts, newest last."
    )
    not_before: Time | None = Field(default=None, description="The next attempt does not start before this time.")
    placement_wait: PlacementWait | None = Field(
        default=None, description="How long a gang has waited for nodes; absent once it has them."
    )
    conditions: list[Condition] = Field(
        default=[],
        description=f"Types: {', '.join(TYPES)}. The last six appear only when relevant.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    start_time: Time | None = Field(default=None, description="When the job was accepted.")
    completion_time: Time | None = Field(default=None, description="When the job completed or failed.")
    active_since: Time | None = Field(
        default=None, description="Start of the current active time; absent while the job is suspended or queued."
    )
    active_seconds_before: int = Field(
        default=0,
        ge=0,
        description="Active time before activeSince, seconds. activeDeadlineSeconds limits this plus the time since activeSince.",
    )
    progress: ProgressStatus | None = Field(default=None, description="Newest reading of rank 0.")
    dataset: DatasetStatus | None = Field(default=None, description="Result of the prepare phase.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="Newest committed checkpoint.")
    recorded_checkpoints: list[CheckpointRecord] = Field(
        default=[],
        max_length=MAX_RECORDED,
        description="Checkpoints that pods reported, oldest first; the next attempt resumes from one of them.",
    )
    resumed_from: ResumedStatus | None = Field(
        default=None, description="Checkpoint of another job that training began with, with resumeFrom."
    )
    mirror: MirrorStatus | None = Field(default=None, description="Copies of checkpoints, with checkpoint.mirror.")
    workers: Workers = Field(default=Workers(), description="Pods of the current phase.")
    straggler: StragglerStatus | None = Field(
        default=None, description="A rank that is much slower than the others now. For information; no action is taken."
    )
    volume: VolumeStatus | None = Field(default=None, description="Where the job's files are.")
    claim_tokens: list[str] = Field(
        default=[],
        max_length=MAX_CLAIM_TOKENS,
        description="SHA-256 of the token on the claim that the operator is about to make, hex; empty once status.volume is set.",
    )
    last_handled_retry: str = Field(
        default="", max_length=256, description=f"Value of the annotation {ANNOTATION_RETRY} that was handled last."
    )
    export: ExportStatus | None = Field(default=None, description="The trained model.")
    final_metrics: FinalMetrics | None = Field(default=None, description="Values at the end of training.")
    usage: UsageStatus | None = Field(default=None, description="GPU time that the job has used.")
    findings: list[FindingStatus] = Field(
        default=[],
        max_length=MOST_FINDINGS,
        description=f"What is found about the job's learning and its data now, worst first; at most {MAX_FINDINGS} of a phase, and "
        f"{MOST_FINDINGS} of all.",
    )
    announced_findings: AnnouncedFindings | None = Field(
        default=None, description="Findings that have had their event in the newest attempt that has any."
    )

    @model_validator(mode="before")
    @classmethod
    def _with_current_names(cls, raw: Any) -> Any:
        return with_current_names(raw) if isinstance(raw, Mapping) else raw

    @property
    def is_final(self) -> bool:
        """Whether the job completed or failed; it runs again only when a failed one is retried."""
        return self.state in FINAL_STATES

    @property
    def step(self) -> Step:
        """The current phase with its round or leg. Only where there is a phase."""
        assert self.phase is not None
        return Step(self.phase, self.round, self.leg)

    @property
    def attempt(self) -> int:
        """Number of the current attempt of the current phase; 0 before the first."""
        return self.attempts.of(self.phase) if self.phase else 0

    def to_dict(self) -> dict[str, object]:
        """As written to the API server."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusFields(TypedDict, total=False):
    """Fields of `DPOJobStatus` by name, so that a type checker sees a misspelt one in `planning.transitions.changed`."""

    observed_generation: int
    state: State | None
    phase: Phase | None
    round: int
    rounds: list[RoundStatus]
    leg: int
    legs: list[LegStatus]
    message: str
    attempts: Attempts
    active_job: ActiveJob | None
    earlier_jobs: list[ActiveJob]
    restarts: int
    counted_restarts: int
    restarts_without_progress: int
    furthest_step: int
    counted_restart_times: list[int]
    restart_history: list[Restart]
    not_before: Time | None
    placement_wait: PlacementWait | None
    conditions: list[Condition]
    start_time: Time | None
    completion_time: Time | None
    active_since: Time | None
    active_seconds_before: int
    progress: ProgressStatus | None
    dataset: DatasetStatus | None
    checkpoint: CheckpointStatus | None
    recorded_checkpoints: list[CheckpointRecord]
    resumed_from: ResumedStatus | None
    mirror: MirrorStatus | None
    workers: Workers
    straggler: StragglerStatus | None
    volume: VolumeStatus | None
    claim_tokens: list[str]
    last_handled_retry: str
    export: ExportStatus | None
    final_metrics: FinalMetrics | None
    usage: UsageStatus | None
    findings: list[FindingStatus]
    announced_findings: AnnouncedFindings | None

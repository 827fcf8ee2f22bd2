"""Status of a DPOJob: what `kubectl get` and `kubectl describe` show, and all that a decision depends on.

Every list and text is bounded, so that the object stays small however long a job lives. Real numbers are text, as in
other Kubernetes APIs: printer columns can't show them otherwise.
"""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from dpo_operator.api.conditions import Condition, StatusModel, Time
from dpo_operator.api.names import ANNOTATION_RETRY, Phase
from dpo_operator.api.reports import MAX_RECORDED

MAX_HISTORY = 10
MAX_HISTORY_MESSAGE = 512


class State(StrEnum):
    """One word for the whole job, computed from the rest of the status."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    TRAINING = "Training"
    EXPORTING = "Exporting"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Attempts(StatusModel):
    """Number of the current attempt at each phase; 0 before its first."""

    prepare: int = Field(default=0, ge=0, description="Attempts at prepare.")
    train: int = Field(default=0, ge=0, description="Attempts at training.")
    export: int = Field(default=0, ge=0, description="Attempts at the export.")

    def of(self, phase: Phase) -> int:
        """Number of a phase's current attempt."""
        return int(getattr(self, phase))

    def next(self, phase: Phase) -> "Attempts":
        """With one more attempt at a phase."""
        return self.model_copy(update={phase: self.of(phase) + 1})


class Restart(StatusModel):
    """Why an attempt ended and the next was made."""

    time: Time = Field(description="When the restart was decided.")
    phase: Phase = Field(description="Phase that was running.")
    attempt: int = Field(ge=0, description="Attempt that ended.")
    reason: str = Field(description="CamelCase reason.")
    failure_class: Literal["infrastructure", "counted", "planned"] = Field(
        description="infrastructure: does not count against maxRestarts. planned: no failure, such as a change of nodes."
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
    epoch: str | None = Field(default=None, description="Passes over the data.")
    eta: str | None = Field(default=None, description="Time left, such as 1h12m.")
    eta_seconds: int | None = Field(default=None, ge=0, description="Time left, seconds.")
    pairs_per_second: str | None = Field(default=None, description="Throughput of all ranks.")
    loss: str | None = Field(default=None, description="Training loss of the newest logged step, nats.")
    reward_margin: str | None = Field(default=None, description="Mean reward of chosen minus rejected answers, nats.")
    reward_accuracy: str | None = Field(default=None, description="Share of pairs whose chosen answer wins.")
    reward_chosen: str | None = Field(default=None, description="Mean reward of chosen answers, nats.")
    reward_rejected: str | None = Field(default=None, description="Mean reward of rejected answers, nats.")
    eval_loss: str | None = Field(default=None, description="Loss of the newest evaluation, nats.")
    eval_reward_margin: str | None = Field(default=None, description="Margin of the newest evaluation, nats.")
    eval_reward_accuracy: str | None = Field(default=None, description="Accuracy of the newest evaluation.")
    resumed_from_step: int | None = Field(default=None, ge=0, description="Step of the checkpoint it started from.")
    updated_time: Time | None = Field(default=None, description="When this was read.")


class DatasetStatus(StatusModel):
    """What prepare found."""

    train_pairs: int = Field(default=0, ge=0, description="Pairs to train on.")
    eval_pairs: int = Field(default=0, ge=0, description="Pairs to evaluate on.")
    dropped_rows: int = Field(default=0, ge=0, description="Rows left out.")
    dropped: dict[str, int] = Field(default={}, max_length=32, description="Rows left out, by reason.")
    truncated_pairs: int = Field(default=0, ge=0, description="Pairs that were shortened.")


class CheckpointStatus(StatusModel):
    """Newest committed checkpoint."""

    step: int = Field(ge=0, description="Optimizer steps that it contains.")
    path: str = Field(max_length=1024, description="Folder, relative to the job's folder on the volume.")
    digest: str = Field(max_length=128, description="SHA-256 of its manifest, hex.")
    attempt: int = Field(ge=0, description="Attempt that wrote it.")
    time: Time = Field(description="When it was committed.")


class RecordedCheckpoint(StatusModel):
    """A checkpoint that an attempt committed, and by which it is known again."""

    step: int = Field(ge=0, description="Optimizer steps that it contains.")
    attempt: int = Field(ge=1, description="Attempt that wrote it.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of its manifest, hex.")


class Workers(StatusModel):
    """Pods of the current phase."""

    desired: int = Field(default=0, ge=0, description="Pods wanted.")
    ready: int = Field(default=0, ge=0, description="Pods that run.")


class StragglerStatus(StatusModel):
    """A rank that is much slower than the others."""

    attempt: int = Field(ge=1, description="Attempt at training.")
    rank: int = Field(ge=0, description="Rank among all processes.")
    ratio: str = Field(
        max_length=16, description="How many times as long as the others' median it takes for the same work."
    )
    pod: str = Field(default="", description="Its pod.")
    node: str = Field(default="", description="Node of that pod.")
    since: Time = Field(description="When it was noticed.")


class ExportStatus(StatusModel):
    """The trained model."""

    path: str = Field(max_length=1024, description="Folder, relative to the job's folder on the volume.")


class FinalMetrics(StatusModel):
    """Values at the end of training; text, nats where they have a unit."""

    step: int = Field(default=0, ge=0, description="Optimizer steps.")
    loss: str | None = Field(default=None, description="Training loss.")
    reward_margin: str | None = Field(default=None, description="Reward margin.")
    reward_accuracy: str | None = Field(default=None, description="Reward accuracy, 0 to 1.")
    eval_loss: str | None = Field(default=None, description="Evaluation loss.")
    eval_reward_margin: str | None = Field(default=None, description="Evaluation's reward margin.")
    eval_reward_accuracy: str | None = Field(default=None, description="Evaluation's reward accuracy, 0 to 1.")
    ending: str = Field(default="", max_length=512, description="How training ended, such as early, and why.")


class VolumeStatus(StatusModel):
    """Where the job's files are."""

    claim_name: str = Field(description="PersistentVolumeClaim.")
    claim_uid: str = Field(default="", description="Its UID; another one means that the job's files are gone.")
    folder: str = Field(description="Folder of this job on the volume: its UID.")
    capacity_bytes: int | None = Field(default=None, ge=0, description="Size of the file system, as rank 0 sees it.")
    free_bytes: int | None = Field(
        default=None, ge=0, description="Room that was left on it. Written when it changed by 5% of the size."
    )


class ActiveJob(StatusModel):
    """The batch/v1 Job of the current attempt, once it was seen."""

    name: str = Field(description="Name.")
    uid: str = Field(description="UID; when it is gone, so is the attempt.")


class Placement(StatusModel):
    """How long a gang has waited for nodes for all of its pods."""

    waiting_since: Time = Field(description="When it began to wait; who has waited longest goes first.")
    timeouts: int = Field(default=0, ge=0, description="Times that it gave its nodes back for want of more.")
    not_before: Time | None = Field(default=None, description="It asks for no further turn before this time.")


class DPOJobStatus(StatusModel):
    """Observed state of a DPOJob."""

    observed_generation: int = Field(default=0, ge=0, description="metadata.generation that was acted on.")
    state: State | None = Field(default=None, description="One word for the whole job.")
    phase: Phase | None = Field(default=None, description="Current phase, or the last one.")
    message: str = Field(default="", description="What the job does or waits for, or why it failed.")
    attempts: Attempts = Field(default=Attempts(), description="Number of the current attempt at each phase.")
    active_job: ActiveJob | None = Field(default=None, description="Job of the current attempt.")
    restarts: int = Field(default=0, ge=0, description="Restarts of any kind.")
    restarts_count_towards_max: int = Field(
        default=0, ge=0, description="Restarts that counted against failurePolicy.maxRestarts, over the job's life."
    )
    restarts_without_progress: int = Field(
        default=0, ge=0, description="Counted restarts since training last went further than ever before."
    )
    best_step: int = Field(default=0, ge=0, description="Most optimizer steps that any attempt finished.")
    counted_restart_times: list[int] = Field(
        default=[],
        max_length=10_001,
        description="Counted restarts within failurePolicy.windowSeconds, seconds since the epoch.",
    )
    restart_history: list[Restart] = Field(
        default=[], max_length=MAX_HISTORY, description="Newest restarts, newest last."
    )
    not_before: Time | None = Field(default=None, description="The next attempt is not made before this time.")
    placement: Placement | None = Field(
        default=None, description="A gang that waits for nodes; absent once it has them."
    )
    conditions: list[Condition] = Field(
        default=[],
        description="Suspended, Prepared, Running, Restarting, Complete, Failed.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    start_time: Time | None = Field(default=None, description="When the job was accepted.")
    completion_time: Time | None = Field(default=None, description="When the job completed or failed.")
    active_since: Time | None = Field(default=None, description="Start of the current time without suspension.")
    active_seconds: int = Field(default=0, ge=0, description="Time without suspension before activeSince, seconds.")
    progress: ProgressStatus | None = Field(default=None, description="Newest reading of rank 0.")
    dataset: DatasetStatus | None = Field(default=None, description="What prepare found.")
    checkpoint: CheckpointStatus | None = Field(default=None, description="Newest committed checkpoint.")
    recorded_checkpoints: list[RecordedCheckpoint] = Field(
        default=[],
        max_length=MAX_RECORDED,
        description="Checkpoints that were told of, oldest first; the next attempt goes on from one of them.",
    )
    workers: Workers = Field(default=Workers(), description="Pods of the current phase.")
    straggler: StragglerStatus | None = Field(
        default=None, description="A rank that is much slower than the others now; it is told of and left alone."
    )
    volume: VolumeStatus | None = Field(default=None, description="Where the job's files are.")
    retried: str = Field(
        default="", max_length=256, description=f"Value of the annotation {ANNOTATION_RETRY} that was acted on last."
    )
    export: ExportStatus | None = Field(default=None, description="The trained model.")
    final_metrics: FinalMetrics | None = Field(default=None, description="Values at the end of training.")

    @property
    def is_final(self) -> bool:
        """Whether the job completed or failed; it runs again only when a failed one is retried."""
        return self.state in (State.COMPLETE, State.FAILED)

    @property
    def attempt(self) -> int:
        """Number of the current attempt at the current phase; 0 before the first."""
        return self.attempts.of(self.phase) if self.phase else 0

    def to_dict(self) -> dict[str, object]:
        """As written to the API server."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

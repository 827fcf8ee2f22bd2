"""Messages from trainer to operator: the answer of /status and the termination message.

Both are small JSON documents. Times are seconds since the epoch (UTC); log-probabilities and rewards are in nats.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dpo_operator.api.diagnosis import MAX_FINDINGS, Finding
from dpo_operator.api.iterative import MAX_ROUNDS
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.names import Phase
from dpo_operator.api.sweep.report import LegReport
from dpo_operator.api.text import Words, shown

# Checkpoints whose digests are kept: as many as fit a termination message together with everything else.
MAX_RECORDED = 12

# The kubelet keeps 4,096 bytes of a termination message for a pod with one container.
MAX_TERMINATION_BYTES = 4096
# Characters of a mirror's message, of which each takes a few bytes at most.
MAX_MIRROR_MESSAGE = 800

# Pods belong to tenants: numbers in reports are bounded, so that later arithmetic and the API server accept them.
Count = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[int, Field(ge=1, le=2**53)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Value = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
# The year 9999, seconds since the epoch.
LATEST = 253_402_300_799


class _Report(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True, alias_generator=None)


class CheckpointRef(_Report):
    """A committed checkpoint."""

    step: Count = Field(description="Optimizer steps that the checkpoint contains.")
    path: Words = Field(description="Folder, relative to the job's work folder.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the manifest, hex.")
    attempt: Number = Field(description="Attempt that wrote it.")
    time: float = Field(ge=0, le=LATEST, allow_inf_nan=False, description="When it was committed.")


class CheckpointRecord(_Report):
    """Identity of a committed checkpoint."""

    model_config = ConfigDict(frozen=True)

    step: Count = Field(description="Optimizer steps that the checkpoint contains.")
    attempt: Number = Field(description="Attempt that wrote it.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the manifest, hex.")

    @property
    def age(self) -> tuple[int, int]:
        """Sort key by time of commit: a later attempt may go back some steps."""
        return self.attempt, self.step


class RecordedCheckpoints(_Report):
    """Checkpoints of earlier attempts, passed to the pods of an attempt in DPO_RECORDED_CHECKPOINTS.

    last_attempt: newest training attempt that may have committed anything; 0 before the first.
    """

    last_attempt: int = Field(ge=0)
    checkpoints: tuple[CheckpointRecord, ...] = ()


class Metrics(_Report):
    """Values of the newest logged step, or of an evaluation; None where not known."""

    loss: float | None = None
    reward_margin: float | None = None
    reward_margin_se: float | None = None
    reward_accuracy: float | None = None
    reward_chosen: float | None = None
    reward_rejected: float | None = None


class SlowestRank(_Report):
    """The rank that takes longest for the same work."""

    rank: int = Field(ge=0, le=2**20)
    ratio: float = Field(ge=0, le=1e6, description="How many times as long as the median of the other ranks.")


class VolumeReport(_Report):
    """The file system that the work folder is on, bytes."""

    total: int = Field(ge=1, le=2**63 - 1)
    free: int = Field(ge=0, le=2**63 - 1, description="What the trainer may still write.")
    checkpoint: int | None = Field(default=None, ge=0, le=2**63 - 1, description="Size of the newest checkpoint.")


# Why no further round is trained: too few pairs, a policy worse than the one before, or a judge's budget that is spent.
RoundsEnd = Literal["", "Saturated", "RoundsWorse", "BudgetSpent", "NoPrompts"]


class RoundReport(_Report):
    """Figures of a round. The win rates are known when the next round's judge has compared the policy that this round trained.

    round: from 1; one more than the rounds where policies are only compared.
    """

    round: int = Field(ge=1, le=MAX_ROUNDS + 1)
    prompts: Count = Field(default=0, description="Prompts that were answered.")
    answers: Count = Field(default=0, description="Answers to them.")
    ended_share: Share | None = Field(default=None, description="Share of the answers that the model ended itself.")
    judged: Count = Field(default=0, description="Prompts whose answers were judged.")
    ties: Count = Field(default=0, description="Judged prompts without a better answer.")
    pairs: Count = Field(default=0, description="Pairs that the round trains on.")
    left_out: dict[Annotated[Words, Field(max_length=64)], Count] = Field(
        default_factory=dict, max_length=16, description="Prompts without a pair, by reason."
    )
    judge_calls: Count = Field(default=0, description="Requests to the judge's endpoint.")
    judge_cached: Count = Field(default=0, description="Verdicts that were known from before.")
    judge_tokens: Count = Field(default=0, description="Tokens of the requests and verdicts.")
    order_agreement: Share | None = Field(
        default=None, description="Share of the comparisons with the same verdict in both orders."
    )
    longer_wins: Share | None = Field(default=None, description="Share of the verdicts for the longer answer.")
    score_mean: Value | None = Field(default=None, description="Mean score of the answers.")
    score_best: Value | None = Field(default=None, description="Mean score of the best answer to each prompt.")
    gap_median: Value | None = Field(default=None, description="Median gap between chosen and rejected answers.")
    generation_tokens: Count = Field(default=0, description="Tokens of the answers.")
    kl_to_initial: Value | None = Field(
        default=None, description="KL of the policy that answered from the initial one, nats an answer."
    )
    own_nll: Value | None = Field(
        default=None, description="Negative log-likelihood of its answers under itself, nats a token."
    )
    win_rate_previous: Share | None = Field(
        default=None, description="Share of prompts on which the trained policy beats the one before, ties half."
    )
    win_rate_initial: Share | None = Field(default=None, description="The same against the initial policy.")
    win_rate_error: Amount | None = Field(default=None, description="Standard error of win_rate_previous.")
    win_rate_length_controlled: Share | None = Field(
        default=None, description="win_rate_initial as it would be with answers of equal lengths."
    )
    ended: RoundsEnd = Field(default="", description="Why no further round is trained.")


class UnitsReport(_Report):
    """How far a generator is with its share of a round, or a judge with the round."""

    done: Count = Field(default=0, description="Units that are done, those of earlier attempts too.")
    total: Count = Field(default=0, description="Units that there are to do.")
    answers: Count = Field(default=0, description="Answers in the units that are done.")
    judge_calls: Count = Field(default=0, description="Requests to the judge's endpoint for the units that are done.")
    judge_cached: Count = Field(default=0, description="Verdicts on them that were known from before.")


class Progress(_Report):
    """Body of GET /status on every trainer pod; rank 0's is the one that counts."""

    phase: Phase
    attempt: int = Field(ge=1)
    activity: Words = Field(default="", description="What is being done now, such as 'reference log-probs'.")
    step: Count = 0
    max_steps: Count = 0
    epoch: Amount = 0.0
    started_at: float = 0.0
    last_step_at: float | None = Field(
        default=None,
        description="End of the newest finished optimizer step, or piece of work within one or between two.",
    )
    eta_seconds: Amount | None = None
    pairs_per_second: Amount | None = None
    tokens: Count | None = Field(
        default=None, description="Tokens of prompts and answers trained on, of all attempts' steps that count."
    )
    train: Metrics = Metrics()
    eval: Metrics = Metrics()
    checkpoint: CheckpointRef | None = None
    recorded: list[CheckpointRecord] = Field(
        default=[],
        max_length=MAX_RECORDED,
        description="Checkpoints on the volume that this or an earlier attempt committed.",
    )
    resumed_from_step: Count | None = None
    volume: VolumeReport | None = Field(default=None, description="None if the file system reports no sizes.")
    world_size: int = 1
    slowest: SlowestRank | None = None
    diagnosed_step: Count | None = Field(
        default=None, description="Step at which the rules last looked at the figures; None before the first time."
    )
    findings: tuple[Finding, ...] = Field(
        default=(),
        max_length=MAX_FINDINGS,
        description="What is found about the run's learning or its data now, worst first.",
    )
    findings_left_out: Count = Field(default=0, description="More that hold now and found no room here.")
    round: RoundReport | None = Field(default=None, description="The round that the phase is of, so far.")
    units: UnitsReport | None = Field(default=None, description="In generate and judge: how far it is.")


class TokenReport(_Report):
    """Lengths of the training pairs, in tokens: what a job's memory and time depend on."""

    prompt: float = Field(ge=0, le=1e9, description="Mean of the prompts.")
    chosen: float = Field(ge=0, le=1e9, description="Mean over all pairs of the chosen answers.")
    rejected: float = Field(ge=0, le=1e9, description="Mean over all pairs of the rejected answers.")
    longest: float = Field(ge=0, le=1e9, description="Most of any pair, its prompt once and both answers.")


class DatasetReport(_Report):
    """Result of prepare in numbers that fit a status, with what the job's needs are estimated from."""

    train_pairs: Count
    eval_pairs: Count
    dropped: dict[Words, Count] = Field(default_factory=dict, description="Dropped rows by reason.")
    truncated_pairs: Count = 0
    tokens: TokenReport | None = None
    model: ModelShape | None = Field(default=None, description="None if config.json does not say enough.")


class PushReport(_Report):
    """A model that was copied to an object store, a hub or a registry."""

    to: Words = Field(description="Its folder, repository or tag.")
    digest: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="SHA-256 of dpo_provenance.json, which has the digest of each file, hex."
    )
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        default=None, description="Commit in the hub repository."
    )
    manifest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        default=None, description="Digest of the manifest in the registry."
    )
    format: Literal["image", "artifact"] | None = Field(default=None, description="What it is in the registry.")


class ResumeReport(_Report):
    """A checkpoint of another job that training begins with."""

    source: Words = Field(description="Where it was read: the folder of checkpoints.")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of its manifest there, hex.")
    checkpoint: CheckpointRef = Field(description="The same on the job's own volume, as its first checkpoint.")


class MirrorReport(_Report):
    """Termination message of a mirror pod. checkpoint: the newest that the mirror has whole; None after a failure."""

    exit_code: int
    reason: Words = Field(default="", description="CamelCase, from the exit-code table.")
    message: Annotated[str, AfterValidator(lambda text: shown(text, MAX_MIRROR_MESSAGE))] = ""
    checkpoint: CheckpointRef | None = None

    def to_text(self) -> str:
        """JSON that fits a termination message."""
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def from_text(cls, text: str) -> "MirrorReport | None":
        """Parse a pod's termination message; None when it is another text."""
        try:
            return cls.model_validate_json(text)
        except ValueError:
            return None


# What a message keeps at least while there are findings, and what is cut with each try, characters.
_MESSAGE_BESIDE_FINDINGS, _CUT = 600, 16
# What a leg's message keeps, characters: the phase's own has the same words, and the settings are the sweep's.
_LEG_MESSAGE = 60


class Termination(_Report):
    """Termination message of a trainer container, written to the termination log."""

    phase: Phase
    attempt: int
    outcome: Literal["Succeeded", "Failed", "Stopped"]
    exit_code: int
    reason: Words = Field(default="", description="CamelCase, from the exit-code table.")
    message: Annotated[str, AfterValidator(lambda text: shown(text, MAX_TERMINATION_BYTES))] = ""
    rank: int = 0
    progress: Progress | None = None
    dataset: DatasetReport | None = None
    resumed: ResumeReport | None = Field(default=None, description="From prepare, with spec.resumeFrom.")
    export_path: Words | None = Field(
        default=None, description="Folder of the exported model, relative to the work folder."
    )
    pushed: PushReport | None = None
    round: RoundReport | None = Field(default=None, description="The round that the phase was of.")
    compared: RoundReport | None = Field(
        default=None, description="From a judge: the round before, complete with its win rates."
    )
    leg: LegReport | None = Field(default=None, description="The leg of a sweep that the training was.")

    def to_text(self) -> str:
        """JSON of at most 4,096 bytes: a round stands once; long messages are cut, then figures of findings, then the least of the findings."""
        if self.round is not None and self.progress is not None and self.progress.round is not None:
            return self.model_copy(update={"progress": self.progress.model_copy(update={"round": None})}).to_text()
        text = self.model_dump_json(exclude_none=True)
        excess = len(text.encode()) - MAX_TERMINATION_BYTES
        if excess <= 0:
            return text
        if self.leg is not None and len(self.leg.message) > _LEG_MESSAGE:
            cut = self.leg.model_copy(update={"message": shown(self.leg.message, _LEG_MESSAGE)})
            return self.model_copy(update={"leg": cut}).to_text()
        least = _MESSAGE_BESIDE_FINDINGS if self.progress is not None and self.progress.findings else 0
        if self.progress is not None and least and len(self.message) <= least + _CUT:
            return self.model_copy(update={"progress": _with_fewer_findings(self.progress)}).to_text()
        # Escapes such as \\n double in JSON, so cut by the excess and try again.
        keep = max(least, len(self.message) - excess - _CUT)
        shorter = self.model_copy(update={"message": self.message[:keep] + " […]" if keep else ""})
        return shorter.to_text() if keep else shorter.model_dump_json(exclude_none=True)

    @classmethod
    def from_text(cls, text: str | None) -> "Termination | None":
        """Parse a pod's termination message; None when the trainer did not write it (a log tail, another program)."""
        if not text:
            return None
        try:
            # Not json.loads: it gives up on deep nesting with an error of its own, and lets half of a surrogate pair pass.
            return cls.model_validate_json(text)
        except ValueError:
            return None


def _with_fewer_findings(progress: Progress) -> Progress:
    """Without the figures of the least finding that has some, else without the least finding, which is counted."""
    findings = list(progress.findings)
    last = next((number for number in reversed(range(len(findings))) if findings[number].figures), None)
    if last is None:
        left_out = progress.findings_left_out + 1
        return progress.model_copy(update={"findings": tuple(findings[:-1]), "findings_left_out": left_out})
    findings[last] = findings[last].model_copy(update={"figures": ()})
    return progress.model_copy(update={"findings": tuple(findings)})

"""What a run's figures say about its learning: findings and their codes. One table for trainer, operator and docs."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StringConstraints

from dpo_operator.api.base import ApiModel
from dpo_operator.api.text import shown

# Findings of one phase: in /status, in the termination message and in the job's status.
MAX_FINDINGS = 5
# Findings of all phases in the job's status.
MOST_FINDINGS = 2 * MAX_FINDINGS

Severity = Literal["Info", "Warning", "Unhealthy"]
"""Info: worth knowing. Warning: look at it. Unhealthy: the result is most likely of no use."""
# Worst first.
SEVERITIES: tuple[Severity, ...] = ("Unhealthy", "Warning", "Info")


class Code(StrEnum):
    """Findings about learning, in order of precedence: one silences those after it that it explains."""

    WRONG_REFERENCE = "WrongReference"
    NOT_THE_FINE_TUNED_MODEL = "NotTheFineTunedModel"
    TEMPLATE_OR_BOUNDARY = "TemplateOrBoundary"
    SWAPPED_LABELS = "SwappedLabels"
    GIBBERISH = "Gibberish"
    FLAT_LOSS = "FlatLoss"
    NOISY_LABELS = "NoisyLabels"
    LIKELIHOOD_DISPLACEMENT = "LikelihoodDisplacement"
    VERBOSITY = "Verbosity"
    SHORTCUT = "Shortcut"
    OVER_REFUSING = "OverRefusing"
    OVERFITTING = "Overfitting"
    SATURATED = "Saturated"
    REFERENCE_DRIFT = "ReferenceDrift"
    DISTRIBUTION_MISMATCH = "DistributionMismatch"


CODES: frozenset[str] = frozenset(Code)

MEANINGS: dict[Code, str] = {
    Code.WRONG_REFERENCE: "The reference is not the model that training starts from.",
    Code.NOT_THE_FINE_TUNED_MODEL: "The model does not know this kind of text: it was not fine-tuned on it, or it is the wrong model.",
    Code.TEMPLATE_OR_BOUNDARY: "The first tokens of the answers surprise the model: the chat template, or the place where prompt and answer meet, is not the one that it was tuned with.",
    Code.SWAPPED_LABELS: "The training pairs prefer what the evaluation pairs reject.",
    Code.GIBBERISH: "The policy writes text that is broken: repeated, endless or of words that nobody would write.",
    Code.FLAT_LOSS: "Nothing is learned: loss and policy stay where they started.",
    Code.NOISY_LABELS: "The labels contradict each other as often as they agree.",
    Code.LIKELIHOOD_DISPLACEMENT: "The policy makes the chosen answers less likely, too.",
    Code.VERBOSITY: "The policy's answers grow far longer than the reference's.",
    Code.SHORTCUT: "One feature of the answers, such as their length, tells chosen from rejected.",
    Code.OVER_REFUSING: "The policy refuses more prompts than the reference.",
    Code.OVERFITTING: "The held-out loss rises while the training loss falls.",
    Code.SATURATED: "All pairs are won and the gradient is gone: further steps change nothing.",
    Code.REFERENCE_DRIFT: "The policy's own answers are far from what the reference would say.",
    Code.DISTRIBUTION_MISMATCH: "The answers in the data are far from what the model itself would say.",
}


# Codes outside the table above: what prepare finds in the data, and what the trainer warns of.
WARNINGS: dict[str, str] = {
    "FewTrainingPairs": "So few training pairs that the result is noisy.",
    "FewEvaluationPairs": "So few evaluation pairs that an accuracy is noisy.",
    "RowsLeftOut": "Many rows are left out.",
    "NoSeparator": "Nothing stands between prompt and answer in plain text.",
    "RepeatedPrompt": "Answers begin with their prompt.",
    "LostReasoning": "The chat template leaves reasoning out.",
    "LengthBias": "Chosen answers are mostly the longer ones, or mostly the shorter ones.",
    "LongPrompts": "Most tokens are of prompts, from which little is learned.",
    "TruncatedPairs": "Many pairs are cut to data.maxLength.",
    "BoundaryMerges": "A token would span the end of the prompt in many pairs.",
    "NearIdenticalAnswers": "Both answers are nearly the same in many pairs.",
    "CopiedPairs": "Many pairs are copies of others.",
    "ContradictingPairs": "Pairs prefer what other pairs reject.",
    "SharedPrompts": "Prompts of the evaluation are in the training data, too.",
    "OneKindOfAnswer": "All examples are desirable, or all are undesirable.",
    "UnbalancedKinds": "Desirable and undesirable examples differ in number, and kto's weights do not balance them.",
    "AdapterBase": "The adapter was trained on another base model.",
    "FirstStepLoss": "The first loss is not that of a policy that equals its reference.",
    "FirstStepMargin": "The first margin is not 0.",
    "NonFinite": "Steps with NaN or infinite values were skipped.",
    "RolledBack": "Training went back to a checkpoint.",
    "CheckpointRefused": "A checkpoint was not loaded.",
    "CheckpointNotRecorded": "A checkpoint was loaded that the operator has no record of.",
    "SlowCheckpoint": "A save takes longer than the time between two.",
    "WholeLogits": "Log-probs need the logits of every token, which takes memory.",
    "NotPacked": "Pairs are trained in padded rows, which is slower.",
    "NoFlexAttention": "Packed pairs use a slower attention.",
    "NoVarlenAttention": "Packed pairs go through SDPA, pair by pair, which is slower.",
    "NoSamples": "No sample answers are written.",
    "ShortSamples": "Sample answers are cut short, because each token gathers the model's weights.",
    "NoEvaluation": "An evaluation was left out, because it ran out of memory.",
    "PairsSelected": "Only a part of the pairs is trained on, as training.selection asks.",
    "JudgeDisagrees": "The reward model that judges ranks the evaluation pairs no better than a coin.",
    "NoMetrics": "The trainer's port could not be opened.",
    "NoReport": "The report could not be written.",
    "NoDiagnosis": "The rules could not look at the run.",
}

# Of these, what prepare finds: everything before the first of the trainer's.
OF_PREPARE: frozenset[str] = frozenset(list(WARNINGS)[: list(WARNINGS).index("FirstStepLoss")]) | {"Dataset"}

OTHER = "Other"
_KNOWN = frozenset(Code) | WARNINGS.keys()


def label(code: str) -> str:
    """The code, or OTHER for one of neither table: pods belong to tenants, and values of metric labels are bounded."""
    return code if code in _KNOWN else OTHER


def _one_line(text: str) -> str:
    return shown(text, 300)


Sentence = Annotated[str, AfterValidator(_one_line)]
FigureName = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(_one_line)]


class Figure(BaseModel):
    """A measured value beside the limit that it passed; limit is None for a figure that only supports."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: FigureName
    value: float = Field(allow_inf_nan=False)
    limit: float | None = Field(default=None, allow_inf_nan=False)


class Finding(BaseModel):
    """One statement about a run.

    code: of the table here, or of a warning of prepare or the trainer, such as Dataset. step: when it was first stated; 0 is
    before the first update. cause: what most likely happened, with the figures in words. setting: the field of the spec to
    change; suggestion: to what.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$")]
    severity: Severity
    step: int = Field(default=0, ge=0, le=2**53)
    figures: tuple[Figure, ...] = Field(default=(), max_length=8)
    cause: Sentence
    setting: Annotated[str, AfterValidator(lambda text: shown(text, 100))] = ""
    suggestion: Sentence = ""

    @property
    def key(self) -> tuple[str, str]:
        """The same for findings that are one: the code, and the split for a warning about the data, which each split may have."""
        split = self.cause.partition(":")[0]
        return self.code, split if split in ("train", "eval") else ""

    @property
    def sentence(self) -> str:
        """The finding in words: the same in conditions, events, logs, `dpo why` and reports."""
        return f"{self.cause} {self.suggestion}".strip()


class Stated(Protocol):
    """Whatever has a code and a severity."""

    @property
    def code(self) -> str:
        """CamelCase word."""

    @property
    def severity(self) -> Severity:
        """How bad it is."""


_Stated = TypeVar("_Stated", bound=Stated)


def worst_first(findings: Iterable[_Stated]) -> list[_Stated]:
    """By severity, then by precedence of the code; codes outside the table come last, in their order."""
    order = {code.value: number for number, code in enumerate(Code)}
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order.get(f.code, len(order))))


class Diagnosis(ApiModel):
    """Rules that look at a run's figures and say why it does not learn."""

    enabled: StrictBool = Field(default=True, description="Look at the figures after each evaluation.")
    stop_on: tuple[Code, ...] = Field(
        default=(),
        max_length=len(Code),
        description="Findings that end the training, after a save, when they are Unhealthy. The job fails with reason StoppedByDiagnosis.",
    )
    thresholds: dict[str, Annotated[StrictFloat, Field(ge=-1e9, le=1e9)]] = Field(
        default={},
        max_length=64,
        description="Other limits for the rules, by name; docs/diagnosis.md lists them with their defaults.",
    )


# Chosen answers are preferred with a probability of 0.5025 at this margin: whatever the accuracy, nothing was learned.
SMALL_MARGIN = 0.01


def margin_note(margin: float | None, margin_se: float | None) -> str:
    """Why an accuracy says nothing, which counts signs alone; empty where the margin is large enough.

    margin: mean, nats. margin_se: its standard error, None if unknown.
    """
    if margin is None:
        return ""
    if margin_se is not None and abs(margin) < 2 * margin_se:
        return "margin within noise"
    return "margin near 0" if abs(margin) < SMALL_MARGIN else ""


def accuracy_text(accuracy: float | None, margin: float | None, margin_se: float | None) -> str | None:
    """An accuracy for people, with the note of margin_note; None without one."""
    if accuracy is None or not 0 <= accuracy <= 1:
        return None
    note = margin_note(margin, margin_se)
    return f"{accuracy:.2f} ({note})" if note else f"{accuracy:.2f}"

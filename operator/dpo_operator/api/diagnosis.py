"""What a run's figures say about its learning: findings and their codes. One table for trainer, operator and docs."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StringConstraints

from dpo_operator.api.base import ApiModel
from dpo_operator.api.text import shown

# Code of prepare's warnings about the data.
DATASET = "Dataset"
# Findings in /status, in the termination message and in the job's status.
MAX_FINDINGS = 5

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
        """The same for findings that are one: the code; for warnings about the data, of which there may be several, the text, too."""
        return self.code, self.cause if self.code == DATASET else ""

    @property
    def sentence(self) -> str:
        """The finding in words: the same in conditions, events, logs, `dpo why` and reports."""
        return f"{self.cause} {self.suggestion}".strip()


def worst_first(findings: list[Finding]) -> list[Finding]:
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
    thresholds: dict[str, StrictFloat] = Field(
        default={},
        max_length=64,
        description="Other limits for the rules, by name; docs/diagnosis.md lists them with their defaults.",
    )

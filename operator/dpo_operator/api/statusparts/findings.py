"""Findings in a job's status, and which of them have had their event."""

from pydantic import Field

from dpo_operator.api.conditions import StatusModel
from dpo_operator.api.diagnosis import Severity
from dpo_operator.api.names import Phase


class FindingStatus(StatusModel):
    """One statement about the job's learning or its data."""

    code: str = Field(
        max_length=64, description="CamelCase word for programs, such as FlatLoss; docs/diagnosis.md lists them."
    )
    severity: Severity = Field(
        description="Unhealthy: the result is most likely of no use. Warning: look at it. Info: worth knowing."
    )
    phase: Phase = Field(description="Phase that found it: prepare looks at the data, train at the figures.")
    step: int = Field(default=0, ge=0, description="Optimizer step at which it was first stated.")
    message: str = Field(max_length=640, description="Sentence for people: what happened, and what to try.")
    setting: str = Field(default="", max_length=100, description="Field of the spec to change.")
    figures: list[str] = Field(
        default=[], max_length=8, description="Measured values, such as 'eval_rewards/margins -0.84 (limit -0.2)'."
    )


class AnnouncedFindings(StatusModel):
    """Findings that have had their event."""

    phase: Phase = Field(description="Phase.")
    attempt: int = Field(ge=0, description="Attempt of the phase.")
    codes: list[str] = Field(default=[], max_length=64, description="Codes, of this attempt.")

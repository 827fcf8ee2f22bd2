"""Legs of a sweep in a job's status: counts as numbers, everything else as text, as in the rest of the status."""

from typing import Any, Self

from pydantic import Field

from dpo_operator.api.conditions import StatusModel
from dpo_operator.api.reports import CheckpointRecord
from dpo_operator.api.sweep.report import MAX_LEG_FINDINGS, FindingCode, LegReport, Outcome

# Of a leg: the newest, and the best.
MAX_LEG_CHECKPOINTS = 2
_FIGURES = ("loss", "accuracy", "margin", "drift", "kl")


class LegStatus(StatusModel):
    """What a leg has brought."""

    leg: int = Field(ge=1, description="Its number.")
    settings: str = Field(default="", max_length=256, description="Its values, such as beta 0.1, learningRate 5e-07.")
    outcome: Outcome = Field(
        description="Trained: it took its steps, or stopped early. Unhealthy: a finding about its learning, or numbers that are not finite, ended it."
    )
    message: str = Field(default="", max_length=512, description="How it ended.")
    steps: int = Field(default=0, ge=0, description="Optimizer steps that were finished.")
    step: int | None = Field(default=None, ge=0, description="Step of the checkpoint that it would export.")
    loss: str | None = Field(default=None, max_length=16, description="Loss of the evaluation of that checkpoint.")
    accuracy: str | None = Field(default=None, max_length=16, description="Its reward accuracy.")
    margin: str | None = Field(default=None, max_length=16, description="Its reward margin, nats.")
    drift: str | None = Field(
        default=None, max_length=16, description="Its absolute log-ratio to the reference, nats a token."
    )
    kl: str | None = Field(
        default=None,
        max_length=16,
        description="Its KL from the initial policy, from samples at temperature 1, nats an answer.",
    )
    findings: list[FindingCode] = Field(
        default=[], max_length=MAX_LEG_FINDINGS, description="Codes of what is found about its learning, worst first."
    )
    unhealthy: bool = Field(default=False, description="Whether one of all findings is Unhealthy.")
    chosen: bool = Field(default=False, description="Whether its model is exported.")
    checkpoints: list[CheckpointRecord] = Field(
        default=[],
        max_length=MAX_LEG_CHECKPOINTS,
        description="Checkpoints that pods reported and an export of the leg may use: the newest, and the best.",
    )

    @classmethod
    def of(cls, report: LegReport, settings: str, checkpoints: list[CheckpointRecord]) -> Self:
        """From a trainer's report. checkpoints: that the leg reported."""
        figures = {name: _text(getattr(report, name)) for name in _FIGURES}
        rest = report.model_dump(include={"leg", "outcome", "steps", "step", "unhealthy"})
        kept = checkpoints[-1:] if report.step is None else [c for c in checkpoints if c.step == report.step]
        newest = [record for record in checkpoints[-1:] if record not in kept]
        return cls(
            **rest, **figures, settings=settings[:256], message=report.message[:512], findings=list(report.findings),
            checkpoints=[*kept[-1:], *newest],
        )  # fmt: skip

    @property
    def report(self) -> LegReport:
        """What the trainer reported, as far as it is kept."""
        figures: dict[str, Any] = {name: float(text) for name in _FIGURES if (text := getattr(self, name)) is not None}
        rest = self.model_dump(
            include={"leg", "settings", "outcome", "message", "steps", "step", "findings", "unhealthy"}
        )
        return LegReport(**rest, **figures)


def _text(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}"

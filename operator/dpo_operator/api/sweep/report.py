"""What a leg of a sweep reports when it has ended, and which leg is exported."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dpo_operator.api.sweep.grid import MAX_LEGS, Measure
from dpo_operator.api.text import Words

# Findings of a leg that are kept, worst first.
MAX_LEG_FINDINGS = 5
# Characters of a leg's message: it stands in a termination message beside the phase's own.
MAX_LEG_MESSAGE = 300

# Trained: it took its steps, or stopped early by earlyStopping. Unhealthy: a finding about its learning, or numbers that are not finite, ended it.
Outcome = Literal["Trained", "Unhealthy"]
FindingCode = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,63}$")]
# Pods belong to tenants: their numbers are bounded.
_Figure = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=2**53)]


class LegReport(BaseModel):
    """Figures of a leg: those of the evaluation of the checkpoint that it would export; None where not measured."""

    model_config = ConfigDict(extra="ignore")

    leg: int = Field(ge=1, le=MAX_LEGS, description="Its number.")
    settings: Words = Field(default="", description="Its values, in words.")
    outcome: Outcome = Field(description="How it ended.")
    message: Words = Field(default="", description="How it ended, in words.")
    steps: _Count = Field(default=0, description="Optimizer steps that were finished.")
    step: _Count | None = Field(default=None, description="Step of the checkpoint that it would export.")
    loss: _Figure | None = Field(default=None, description="Loss of the evaluation.")
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Reward accuracy of the evaluation."
    )
    margin: _Figure | None = Field(default=None, description="Reward margin of the evaluation, nats.")
    drift: _Figure | None = Field(
        default=None, description="Absolute log-ratio to the reference on the evaluation's answers, nats a token."
    )
    kl: _Figure | None = Field(
        default=None,
        description="KL from the policy before its first update, from answers at temperature 1, nats an answer.",
    )
    findings: tuple[FindingCode, ...] = Field(
        default=(), max_length=MAX_LEG_FINDINGS, description="Codes of what is found about its learning, worst first."
    )
    unhealthy: bool = Field(default=False, description="Whether one of all findings is Unhealthy.")


def none_trained(legs: Sequence[LegReport]) -> str:
    """Why no leg of a sweep is exported, as sentences."""
    each = "; ".join(
        f"leg {leg.leg} ({leg.settings}): {', '.join(leg.findings) or 'not finite'} at step {leg.steps}" for leg in legs
    )
    return (
        f"No leg of the sweep is exported, because all {len(legs)} were unhealthy: {each}. Their checkpoints are kept, in legs/. "
        "Make another job with other values (a lower learningRate or a higher beta), or with sweep.stopUnhealthy false, which trains all legs to the end."
    )


_FIGURE: dict[Measure, tuple[str, float]] = {"eval_reward_accuracy": ("accuracy", -1.0), "eval_loss": ("loss", 1.0)}


def why_best(measure: Measure, leg: LegReport) -> str:
    """Why `best` found a leg, in words."""
    measured = getattr(leg, _FIGURE[measure][0]) is not None
    return f"the best by {measure}" if measured else f"the first, because no healthy leg has an {measure}"


def best(measure: Measure, legs: Sequence[LegReport]) -> LegReport | None:
    """The leg that is exported; None when no leg was trained.

    Healthy legs come before those with an Unhealthy finding (which end in Trained with stopUnhealthy: false alone); then the measure decides, then
    less drift from the reference, then the lower number. A leg without the measure comes last.
    """
    name, sign = _FIGURE[measure]

    def order(leg: LegReport) -> tuple[bool, float, float, int]:
        value, drift = getattr(leg, name), leg.drift
        cost = math.inf if value is None else sign * value
        return leg.unhealthy, cost, math.inf if drift is None else drift, leg.leg

    return min((leg for leg in legs if leg.outcome == "Trained"), key=order, default=None)

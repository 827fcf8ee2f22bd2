"""Rounds in a job's status: counts as numbers, everything else as text, as in the rest of the status."""

from typing import Self

from pydantic import Field

from dpo_operator.api.conditions import StatusModel
from dpo_operator.api.reports import RoundReport, RoundsEnd


class UnitsStatus(StatusModel):
    """How far the first generator is with its share of a round, or the judge with the round."""

    done: int = Field(default=0, ge=0, description="Units that are done.")
    total: int = Field(default=0, ge=0, description="Units that there are to do.")
    answers: int = Field(default=0, ge=0, description="Answers in the units that are done.")
    judge_calls: int = Field(default=0, ge=0, description="Requests to the judge's endpoint for them.")
    judge_cached: int = Field(default=0, ge=0, description="Verdicts on them that were known from before.")


class RoundStatus(StatusModel):
    """Figures of a round."""

    round: int = Field(ge=1, description="Its number.")
    prompts: int = Field(default=0, ge=0, description="Prompts that were answered.")
    answers: int = Field(default=0, ge=0, description="Answers to them.")
    judged: int = Field(default=0, ge=0, description="Prompts whose answers were judged.")
    ties: int = Field(default=0, ge=0, description="Judged prompts without a better answer.")
    pairs: int = Field(default=0, ge=0, description="Pairs that the round trains on.")
    judge_calls: int = Field(default=0, ge=0, description="Requests to the judge's endpoint.")
    judge_cached: int = Field(default=0, ge=0, description="Verdicts that were known from before.")
    judge_tokens: int = Field(default=0, ge=0, description="Tokens of the requests and verdicts.")
    generation_tokens: int = Field(default=0, ge=0, description="Tokens of the answers.")
    ended_share: str | None = Field(
        default=None, max_length=16, description="Share of the answers that the model ended itself."
    )
    order_agreement: str | None = Field(
        default=None, max_length=16, description="Share of the comparisons with the same verdict in both orders."
    )
    longer_wins: str | None = Field(
        default=None, max_length=16, description="Share of the verdicts for the longer answer."
    )
    score_mean: str | None = Field(default=None, max_length=16, description="Mean score of the answers.")
    score_best: str | None = Field(
        default=None, max_length=16, description="Mean score of the best answer to each prompt."
    )
    gap_median: str | None = Field(
        default=None, max_length=16, description="Median gap between chosen and rejected answers."
    )
    kl_to_initial: str | None = Field(
        default=None, max_length=16, description="KL of the policy that answered from the initial one, nats an answer."
    )
    own_nll: str | None = Field(
        default=None,
        max_length=16,
        description="Negative log-likelihood of its answers under itself, nats a token.",
    )
    win_rate_previous: str | None = Field(
        default=None,
        max_length=16,
        description="Share of prompts on which the policy that the round trained beats the one before, ties half.",
    )
    win_rate_initial: str | None = Field(
        default=None, max_length=16, description="The same against the initial policy."
    )
    win_rate_error: str | None = Field(default=None, max_length=16, description="Standard error of winRatePrevious.")
    win_rate_length_controlled: str | None = Field(
        default=None, max_length=16, description="winRateInitial as it would be with answers of equal lengths."
    )
    ended: RoundsEnd = Field(
        default="",
        description="Why no further round is trained. Saturated: too few pairs. RoundsWorse: the policy is worse than the one before. "
        "BudgetSpent: nothing is left of iterative.judge.budget.",
    )

    @classmethod
    def of(cls, report: RoundReport) -> Self:
        """From a trainer's report."""
        figures = {name: value for name, value in report if name in cls.model_fields and value is not None}
        return cls(**{name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()})

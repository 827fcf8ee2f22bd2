"""The preference losses and their settings."""

from enum import StrEnum
from typing import Literal

from pydantic import Field, StrictBool, StrictFloat

from dpo_operator.api.base import ApiModel


class MethodName(StrEnum):
    """Preference losses; docs/methods has a page on each.

    Papers: DPO 2305.18290, LD-DPO 2409.06411, LN-DPO 2411.15124 (Tülu 3), IPO 2310.12036, hinge (SLiC) 2305.10425, KTO
    2402.01306, ORPO 2403.07691, SimPO 2405.14734. reward-model (2203.02155, eq. 1) trains no policy but a classifier that scores answers.
    """

    DPO = "dpo"
    LD_DPO = "ld-dpo"
    LN_DPO = "ln-dpo"
    IPO = "ipo"
    HINGE = "hinge"
    KTO = "kto"
    ORPO = "orpo"
    SIMPO = "simpo"
    REWARD_MODEL = "reward-model"


_BETA = {MethodName.LN_DPO: 5.0, MethodName.SIMPO: 2.0, MethodName.REWARD_MODEL: 1.0}
REFERENCE_FREE = frozenset({MethodName.ORPO, MethodName.SIMPO, MethodName.REWARD_MODEL})


class Loss(ApiModel):
    """One preference loss. A setting that belongs to another loss is refused."""

    name: MethodName = Field(default=MethodName.DPO, description="Preference loss.")
    beta: StrictFloat | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Strength of the pull to the reference, 1/nats. 0.1 is stable; raise it (0.2 to 0.5) when the model drifts, lower it "
        "(0.01 to 0.05) when margins stay flat after the first epoch. For simpo the scale of the reward, for orpo the weight of the "
        "odds ratio; reward-model has none. Default: 0.1; 2 for simpo and 5 for ln-dpo, whose log-probs are means over tokens.",
    )
    weight: StrictFloat = Field(
        default=1.0, gt=0, le=1000, description="Factor of this loss, for combinations with plus."
    )
    label_smoothing: StrictFloat = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="Probability that a label is wrong (conservative DPO); for dpo, ld-dpo, ln-dpo and simpo.",
    )
    robust: StrictBool = Field(
        default=False,
        description="Unbiased loss under label noise of labelSmoothing (robust DPO, 2403.00409); for dpo, ld-dpo and ln-dpo.",
    )
    length_desensitization: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="For ld-dpo: weight of the tokens of the longer answer beyond the length of the shorter one. 1 is DPO. Default: 0.5.",
    )
    reduction: Literal["mean", "sum"] | None = Field(
        default=None,
        description="For ipo: log-ratios are means over an answer's tokens or sums of them. Default: mean, as the authors recommend; "
        "sum is the paper's formula as printed.",
    )
    margin_ratio: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=100,
        description="For simpo: target margin as a share of beta (gamma/beta). Default: 0.25, unless margin is set.",
    )
    margin: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=100,
        description="For simpo: the target margin gamma itself, as TRL has it; marginRatio is left out then. For reward-model: by how much the "
        "chosen answer's reward should be larger. Default there: 0.",
    )
    margin_per_score: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=100,
        description="For reward-model: by how much more the chosen answer's reward should be larger for each point by which its score in the data is "
        "above the rejected one's (Llama 2's margin by rating, 2307.09288). Needs scores of both answers of all pairs. Default: 0.",
    )
    desirable_weight: StrictFloat | None = Field(
        default=None, ge=0, le=100, description="For kto: weight of desirable (chosen) answers. Default: 1."
    )
    undesirable_weight: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=100,
        description="For kto: weight of undesirable (rejected) answers. Default: 1. With unequal numbers, desirableWeight × desirable "
        "should be 1 to 4/3 times undesirableWeight × undesirable.",
    )

    @property
    def strength(self) -> float:
        """beta, with the default of the loss."""
        return self.beta if self.beta is not None else _BETA.get(self.name, 0.1)

    @property
    def target_margin(self) -> float:
        """SimPO's gamma, nats; for reward-model the margin that is taken from the difference of rewards."""
        if self.margin is not None:
            return self.margin
        if self.name is MethodName.REWARD_MODEL:
            return 0.0
        return self.strength * (0.25 if self.margin_ratio is None else self.margin_ratio)

    @property
    def tail_weight(self) -> float:
        """LD-DPO's alpha: weight of the tokens beyond the shorter answer's length; 1 for every other loss."""
        if self.name is not MethodName.LD_DPO:
            return 1.0
        return 0.5 if self.length_desensitization is None else self.length_desensitization


class AddedLoss(Loss):
    """A loss that is added to the first one."""

    name: MethodName = Field(description="Preference loss; any but kto and reward-model.")


class Method(Loss):
    """The loss: one, or several with weights, plus an optional likelihood term of the chosen answer."""

    plus: list[AddedLoss] = Field(
        default=[],
        max_length=4,
        description="Losses that are added, each times its weight. Rewards and margins are those of the first loss.",
    )
    nll_weight: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Weight of the chosen answer's negative log-likelihood, mean over its tokens (RPO, 2404.19733). Keeps chosen "
        "log-probs from falling. Default: 0; 1 for orpo, which is built on it.",
    )
    nll_over: Literal["answer", "all"] = Field(
        default="answer",
        description="Tokens of that likelihood: the answer's alone, or the prompt's too, as TRL and the authors of ORPO have it.",
    )

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The first loss and the added ones."""
        return (self, *self.plus)

    @property
    def likelihood_weight(self) -> float:
        """Weight of the chosen answer's negative log-likelihood."""
        if self.nll_weight is not None:
            return self.nll_weight
        return 1.0 if self.name is MethodName.ORPO else 0.0

    @property
    def trains_reward_model(self) -> bool:
        """Whether a classifier that scores answers is trained, and no policy."""
        return self.name is MethodName.REWARD_MODEL

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses compares with a reference."""
        return any(loss.name not in REFERENCE_FREE for loss in self.losses)

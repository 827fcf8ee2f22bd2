"""The loss of spec.method as one object: what it needs, its value, and the rewards that are logged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_operator.api.method import REFERENCE_FREE, Loss, Method, MethodName
from dpo_trainer.losses import formulas


@dataclass(frozen=True)
class Logps:
    """Log-probs of some examples' answers, nats. Column 0 is the chosen (desirable) answer, column 1 the rejected one.

    A reward model has rewards in their place, without unit and without a reference.

    policy, reference: float64 [examples, 2], sums over the answer's tokens; 0 where an unpaired example has no such answer.
        reference is None for reference-free methods.
    policy_head, reference_head: the same over as many tokens as the shorter of the two answers has.
    tokens: int64 [examples, 2], the answers' lengths; 0 where there is none.
    prompt: float64 [examples], the policy's log-prob of the prompt's tokens but the first, or None when not asked for.
    prompt_tokens: int64 [examples], how many those are.
    score_gaps: float64 [examples], score of the chosen answer less that of the rejected one in the data, for a margin that depends on it.
    """

    policy: Tensor
    policy_head: Tensor
    tokens: Tensor
    reference: Tensor | None = None
    reference_head: Tensor | None = None
    prompt: Tensor | None = None
    prompt_tokens: Tensor | None = None
    score_gaps: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """Which answers there are: bool [examples, 2]."""
        return self.tokens > 0

    @property
    def log_ratios(self) -> Tensor:
        """Policy minus reference: [examples, 2], nats."""
        assert self.reference is not None, "a reference-free method asked for log-ratios"
        return self.policy - self.reference


class Objective:
    """The loss of spec.method.

    needs_reference: whether log-ratios enter the loss; without, no reference is ever computed.
    needs_kl: whether answers to other prompts are scored, for KTO's reference point.
    needs_prompt: whether the prompt's own log-prob enters the loss.
    predicts_tokens: whether there are log-probs of tokens; a reward model has none.
    starts_level: whether all rewards are 0 while the policy is the reference, because the first loss compares the two.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.needs_reference = method.needs_reference
        self.needs_kl = method.name is MethodName.KTO
        self.starts_level = method.name not in REFERENCE_FREE
        self.predicts_tokens = not method.trains_reward_model
        self.needs_prompt = method.likelihood_weight > 0 and method.nll_over == "all"

    def units(self, tokens: Tensor) -> int:
        """What a step's loss is the mean over: answers for KTO, pairs for all others. tokens: int64 [examples, 2]."""
        return int((tokens > 0).sum()) if self.needs_kl else len(tokens)

    def loss(self, logps: Logps, kl: Tensor | None = None) -> Tensor:
        """Loss of each example, [examples]; their sum divided by `units` is the loss of the batch.

        kl: scalar, see formulas.kto_kl; for KTO.
        """
        if self.needs_kl:
            assert kl is not None
            total = self.method.weight * _kto(self.method, logps, kl)
        else:
            total = torch.zeros_like(logps.policy[:, 0])
            for loss in self.method.losses:
                total = total + loss.weight * _PAIRED[loss.name](loss, logps)
        if self.method.likelihood_weight > 0:
            total = total + self.method.likelihood_weight * self.nll(logps)
        return total

    def nll(self, logps: Logps) -> Tensor:
        """Negative log-likelihood of the chosen answer per token, with the prompt's where the method has it: [examples]."""
        chosen, tokens = logps.policy[:, 0], logps.tokens[:, 0]
        if self.needs_prompt:
            assert logps.prompt is not None
            assert logps.prompt_tokens is not None
            chosen, tokens = chosen + logps.prompt, tokens + logps.prompt_tokens
        return formulas.nll_loss(chosen, tokens)

    def rewards(self, logps: Logps) -> Tensor:
        """Implicit rewards, [examples, 2]: beta times what the first loss compares, so that their margin is what it sees.

        A reward model's are its own. For DPO that is beta times the log-ratio (2305.18290, section 5). For ORPO, which compares log-odds, it is beta times
        the mean log-prob, as TRL has it: the larger log-prob has the larger odds.
        """
        return self.method.strength * _scores(self.method, logps)

    def gaps(self, logps: Logps) -> Tensor:
        """How far the chosen answer is ahead in what the first loss compares: [examples], nats per token of both answers, without beta.

        A reward model's is the difference of its rewards, which belong to whole answers.
        """
        gap = _margin(self.method, logps)
        if _is_per_token(self.method) or self.method.trains_reward_model:
            return gap
        return gap / logps.tokens.sum(dim=1).clamp(min=1)

    def first_loss(self, logps: Logps) -> Tensor:
        """Loss that these examples have while the policy is the reference: [examples]. For methods with a reference."""
        assert logps.reference is not None
        assert logps.reference_head is not None
        same = Logps(
            policy=logps.reference,
            policy_head=logps.reference_head,
            tokens=logps.tokens,
            reference=logps.reference,
            reference_head=logps.reference_head,
            prompt=logps.prompt,
            prompt_tokens=logps.prompt_tokens,
        )
        return self.loss(same, kl=torch.zeros((), dtype=logps.policy.dtype, device=logps.policy.device))


def _is_per_token(loss: Loss) -> bool:
    """Whether what a loss compares is a mean over an answer's tokens."""
    means = (MethodName.ORPO, MethodName.SIMPO, MethodName.LN_DPO)
    return loss.name in means or (loss.name is MethodName.IPO and loss.reduction != "sum")


def _scores(loss: Loss, logps: Logps) -> Tensor:
    """What a loss compares between the two answers: [examples, 2], nats, or nats per token."""
    match loss.name:
        case MethodName.ORPO | MethodName.SIMPO:
            return logps.policy / logps.tokens.clamp(min=1)
        case MethodName.REWARD_MODEL:
            return logps.policy
        case MethodName.LN_DPO:
            return logps.log_ratios / logps.tokens.clamp(min=1)
        case MethodName.IPO if loss.reduction != "sum":
            return logps.log_ratios / logps.tokens.clamp(min=1)
        case MethodName.LD_DPO:
            assert logps.reference_head is not None
            # On the reference too: otherwise the first margin would not be 0, and long answers would start ahead.
            head = logps.policy_head - logps.reference_head
            return formulas.desensitized(logps.log_ratios, head, tail_weight=loss.tail_weight)
        case _:
            return logps.log_ratios


def _margin(loss: Loss, logps: Logps) -> Tensor:
    scores = _scores(loss, logps)
    return scores[:, 0] - scores[:, 1]


def _dpo(loss: Loss, logps: Logps) -> Tensor:
    formula = formulas.robust_dpo_loss if loss.robust else formulas.dpo_loss
    return formula(_margin(loss, logps), beta=loss.strength, label_smoothing=loss.label_smoothing)


def _simpo(loss: Loss, logps: Logps) -> Tensor:
    return formulas.simpo_loss(
        _margin(loss, logps),
        beta=loss.strength,
        target_margin=loss.target_margin,
        label_smoothing=loss.label_smoothing,
    )


def _reward_model(loss: Loss, logps: Logps) -> Tensor:
    margin: float | Tensor = loss.target_margin
    if loss.margin_per_score:
        assert logps.score_gaps is not None
        # A pair whose scores contradict its labels is none that should be told apart the less.
        margin = margin + loss.margin_per_score * logps.score_gaps.clamp(min=0)
    return formulas.reward_model_loss(_margin(loss, logps), margin=margin)


def _kto(loss: Loss, logps: Logps, kl: Tensor) -> Tensor:
    each = formulas.kto_loss(
        logps.log_ratios,
        kl,
        beta=loss.strength,
        desirable_weight=1.0 if loss.desirable_weight is None else loss.desirable_weight,
        undesirable_weight=1.0 if loss.undesirable_weight is None else loss.undesirable_weight,
    )
    return torch.where(logps.present, each, 0.0).sum(dim=1)


_PAIRED: dict[MethodName, Callable[[Loss, Logps], Tensor]] = {
    MethodName.DPO: _dpo,
    MethodName.LD_DPO: _dpo,
    MethodName.LN_DPO: _dpo,
    MethodName.IPO: lambda loss, logps: formulas.ipo_loss(_margin(loss, logps), beta=loss.strength),
    MethodName.HINGE: lambda loss, logps: formulas.hinge_loss(_margin(loss, logps), beta=loss.strength),
    MethodName.ORPO: lambda loss, logps: formulas.orpo_loss(_scores(loss, logps), beta=loss.strength),
    MethodName.SIMPO: _simpo,
    MethodName.REWARD_MODEL: _reward_model,
}

"""The reward model: a sequence classifier with one output, which scores an answer by the state of its last token."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpo_trainer.batches.batch import MicroBatch
from dpo_trainer.model.load import causal_lm_of
from dpo_trainer.model.policy import transformer_name
from dpo_trainer.model.scorer import Scorer
from dpo_trainer.pretrained.reward import HEAD
from dpo_trainer.runtime.errors import invalid_configuration

# The seed of the vector that stands in for the head in trials.
_SEED: Final = 0


class RewardModel(Scorer):
    """Rewards of answers, in the place of the policy's log-probs: the engine, the loss and the metrics take them alike."""

    def __init__(self, model: nn.Module) -> None:
        classifier = causal_lm_of(model)
        prefix = transformer_name(classifier)
        head = classifier._modules.get(HEAD)
        # PEFT keeps the head that is trained beside the one that the model had.
        linear = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head
        if prefix not in classifier._modules or not isinstance(linear, nn.Linear) or linear.out_features != 1:
            raise invalid_configuration(
                f"spec.method.name: reward-model needs a classifier with a linear layer named {HEAD} on a transformer, found "
                f"{type(classifier).__name__}; use another model"
            )
        super().__init__(model, prefix)
        self._trial: Tensor | None = None
        self._head: tuple[Any, Any] = (head, linear)
        # On the instance, so that hooks around the module, which gather its weight, stay in place.
        vars(linear)["forward"] = self._score

    def _score(self, states: Tensor) -> Tensor:
        """Rewards in float32: two of bfloat16 near 5 differ by at least 0.03."""
        linear = self._head[1]
        weight = linear.weight if self._trial is None else self._trial.to(states.device)
        bias = None if linear.bias is None else linear.bias.float()
        return F.linear(states.float(), weight.float(), bias)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Within this context a fixed vector stands in for the head, which is zero before the first step and would hide any difference."""
        size = self._head[1].in_features
        drawn = torch.randn(1, size, generator=torch.Generator().manual_seed(_SEED))
        self._trial = drawn / size**0.5
        try:
            yield
        finally:
            self._trial = None

    def forward(
        self, batch: MicroBatch, *, whole_logits: bool = False, every_token: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Rewards of the batch's answers.

        whole_logits: by the model's own forward pass, answer by answer, in padded rows alone. every_token: for the policy's interface.
        Returns float64 [segments, 2], the reward twice, 0 where there is no answer; and float64 [3, 0]: it predicts no tokens.
        """
        if whole_logits:
            rewards = self._by_the_model(batch)
        else:
            _, states = self._states(batch, batch.ends.flatten())
            rewards = self._head[0](states).squeeze(1)
        present = (batch.answer_tokens > 0).flatten().to(rewards.device)
        both = torch.where(present, rewards.double(), 0.0)[:, None].expand(-1, 2)
        return both, torch.zeros(3, 0, dtype=torch.float64, device=rewards.device)

    def _by_the_model(self, batch: MicroBatch) -> Tensor:
        classifier, length = self._parts[0], batch.input_ids.shape[1]
        rewards = []
        for end, tokens in zip(batch.ends.flatten().tolist(), batch.answer_tokens.flatten().tolist(), strict=True):
            if not tokens:
                rewards.append(torch.zeros((), device=batch.input_ids.device))
                continue
            row = batch.input_ids[end // length, : end % length + 1]
            rewards.append(classifier(input_ids=row[None], use_cache=False).logits.flatten()[0])
        return torch.stack(rewards)

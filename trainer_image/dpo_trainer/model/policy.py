"""The policy: wraps a causal language model and returns the log-probs of given answers."""

from typing import Any

import torch
from torch import Tensor, nn

from dpo_trainer.batches.batch import MicroBatch
from dpo_trainer.model.head import OutputHead, stride, token_logps
from dpo_trainer.model.load import causal_lm_of
from dpo_trainer.model.routers import Routers
from dpo_trainer.model.scorer import Scorer
from dpo_trainer.runtime.errors import invalid_configuration


class Policy(Scorer):
    """Sums of answer log-probs under a causal language model, plain or with adapters.

    model: see Scorer. whole_logits: compute every position's logits by the model's own forward pass: slower and larger, for models that
        reach their output layer in an unusual way.
    head: from hidden states to log-probs.
    routers: of a model with experts whose routing is asked for; None otherwise.
    """

    def __init__(self, model: nn.Module) -> None:
        causal_lm = causal_lm_of(model)
        prefix = transformer_name(causal_lm)
        if prefix not in causal_lm._modules or causal_lm.get_output_embeddings() is None:
            raise invalid_configuration(
                f"spec.model: expected a causal language model with a transformer and an output layer, found {type(causal_lm).__name__}"
            )
        super().__init__(model, prefix)
        self.head = OutputHead(causal_lm, prefix)
        self.whole_logits = False
        self.routers: Routers | None = None

    def forward(
        self, batch: MicroBatch, *, whole_logits: bool = False, every_token: bool = False, routing: bool = False
    ) -> tuple[Tensor, ...]:
        """Log-probs of the batch's answers (and prompts, where it scores them), summed over their tokens.

        whole_logits: as the attribute, for this call. every_token: sample every scored token, not only some.
        routing: also return what the routers did.
        Returns float64 [segments, 2], nats: sums over all tokens of each segment, and over those of its head; float64
        [3, sampled], see head.token_logps; and with routing float32 [2, experts], see Routers.sums.
        """
        if routing:
            assert self.routers is not None
            with self.routers.recording() as logits:
                scored = self._score(batch, whole_logits=whole_logits, every_token=every_token)
            return *scored, self.routers.sums(logits, batch.copies)
        return self._score(batch, whole_logits=whole_logits, every_token=every_token)

    def _score(self, batch: MicroBatch, *, whole_logits: bool, every_token: bool) -> tuple[Tensor, Tensor]:
        every = 1 if every_token else stride(len(batch.scored_targets))
        if whole_logits or self.whole_logits:
            logits = self._parts[0](**self._inputs(batch)).logits.flatten(0, 1)[batch.scored_positions]
            logps, sampled = token_logps(logits, batch.scored_targets, every)
        else:
            # Only answer rows enter the head: prompts and padding would cost most of the logits' memory.
            output, rows = self._states(batch, batch.scored_positions)
            logps, sampled = self.head(output, rows, batch.scored_targets, every)
        # Sums in float64: near -600 nats float32 has steps of 6e-5, and DPO subtracts two such sums from two others.
        both = torch.stack([logps.double(), logps.double() * batch.scored_head], dim=1)
        sums = torch.zeros(batch.segments, 2, dtype=torch.float64, device=logps.device)
        return sums.index_add(0, batch.scored_segment, both), sampled


def transformer_name(causal_lm: Any) -> str:
    """Name of the transformer inside a causal language model; empty without one.

    It is the model's prefix, but where that is the name of the whole in a larger model, as with Llama 4.
    """
    prefix: str = getattr(causal_lm, "base_model_prefix", "")
    if prefix in causal_lm._modules:
        return prefix
    return next((name for name, part in causal_lm.named_children() if hasattr(part, "get_input_embeddings")), "")

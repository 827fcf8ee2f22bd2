"""A DeepSpeed ZeRO-3 engine around the policy: the same code on GPUs over NCCL and on CPUs over gloo.

Nothing is compiled at start-up, so a pod needs no compiler and starts fast.
"""

import gc
import logging
import math
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.batches.batch import MicroBatch
from dpo_trainer.distributed.memory import available, release_free
from dpo_trainer.distributed.world import World
from dpo_trainer.distributed.zero3_internals import (
    Zero3Internals,
    import_deepspeed,
    is_persistent,
    local_partition,
    whole_numel,
)
from dpo_trainer.engine.loading import own_slices
from dpo_trainer.engine.loss_scale import LossScale
from dpo_trainer.engine.optimizer import make_optimizer
from dpo_trainer.engine.update_size import update_squares
from dpo_trainer.engine.zero3_state import Zero3State
from dpo_trainer.engine.zero_config import widths_of, zero_config
from dpo_trainer.model import quantized
from dpo_trainer.model.attention import kernels
from dpo_trainer.model.head import stride
from dpo_trainer.model.load import causal_lm_of, load_model
from dpo_trainer.model.policy import Policy
from dpo_trainer.model.reward import RewardModel
from dpo_trainer.model.routers import Routers
from dpo_trainer.runtime.errors import invalid_configuration

log = logging.getLogger(__name__)

# What must be free to gather all weights, in relation to their size.
_ROOM = 1.25


@dataclass(frozen=True)
class Predictions:
    """The model's predictions of some of the tokens that a batch scores: [tokens], without gradients, on the model's device.

    logps: log-prob of the token, float64, nats. entropy: of the distribution that it is drawn from, float64, nats. top1: 1 where it is the
    most likely token, else 0; float64. segment: int64, see MicroBatch.scored_segment.
    """

    logps: Tensor
    entropy: Tensor
    top1: Tensor
    segment: Tensor


@dataclass(frozen=True)
class Scored:
    """Log-probs of a batch, float64, nats; a reward model's rewards in their place.

    answers: [pairs, 2, 2]: for the chosen and the rejected answer, the log-prob of all tokens and of the head; 0 where an
        unpaired example has no such answer.
    prompts: [pairs], or None if the batch does not score prompts.
    tokens: a sample of the scored tokens, spread evenly, or all of them.
    routing: [2, experts], see losses/balance.py; None where it was not asked for.
    """

    answers: Tensor
    prompts: Tensor | None
    tokens: Predictions
    routing: Tensor | None = None


class Engine:
    """A model over all ranks, its optimizer where it is trained, and the collective operations on them.

    Every method with "collective" in its description must be called by all ranks in the same order.
    """

    def __init__(
        self,
        spec: DPOJobSpec,
        model_folder: Path,
        world: World,
        *,
        trained: bool = True,
        before: Collection[str] = (),
        alive: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Load the model partitioned and make the optimizer. Collective. Raises TrainerError INVALID_CONFIGURATION.

        trained: false for a reference model, of which nothing but the weights is in memory; only log-probs are asked of it.
        before: names of the parameters in a checkpoint of the run, see targets.resolve.
        alive: called while the weights are read, with the number of weights that are there.
        """
        deepspeed = import_deepspeed()
        self.world = world
        kernels.configure(world.device)
        self._loss_scale: LossScale | None = None
        if spec.training.precision == "fp16":
            if not deepspeed.get_accelerator().is_fp16_supported():
                raise invalid_configuration(
                    f"spec.training.precision: fp16 needs a GPU, or a CPU with float16 arithmetic; found {world.device.type} without it. "
                    "Use bf16 or fp32"
                )
            self._loss_scale = LossScale()
        self.config: dict[str, Any] = {}

        def partitioned_loading(config: Any) -> Any:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            self.config = zero_config(spec, widths_of(config), world.device, world_size=world.world_size)
            return HfDeepSpeedConfig(self.config)

        torch.manual_seed(spec.training.seed)
        with own_slices(model_folder, alive):
            model = load_model(spec, model_folder, zero3=partitioned_loading, before=before, device=world.device)
        policy = RewardModel(model) if spec.method.trains_reward_model else Policy(model)
        if spec.adapter.type is AdapterType.QLORA:
            # Its model was not loaded in partitions. Left to itself, DeepSpeed would also cast the model's buffers to 16 bits.
            deepspeed.zero.Init(module=policy, config_dict_or_path=self.config)
        if isinstance(policy, Policy):
            policy.head.chunk_bytes = (spec.training.logits_chunk_mi_b << 20) or None
        if not trained:
            policy.requires_grad_(False)
        optimizer = make_optimizer(policy, spec) if trained else None
        self.deepspeed, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=self.config, dist_init_required=False
        )
        if not trained:
            return
        self.zero = Zero3Internals(self.deepspeed, world_size=world.world_size)
        self.zero.alias_equal_tensors()
        if world.world_size == 1:
            self.zero.remove_module_hooks()
        if isinstance(policy, Policy) and spec.training.router_aux_loss is not None:
            policy.routers = Routers(causal_lm_of(policy.model)).watch()
        self.allocate_optimizer_state()
        if world.device.type == "cpu":
            release_free()

    def allocate_optimizer_state(self) -> None:
        """Make Adam's state now and not in its first step, so that a job that does not fit into memory fails at its start."""
        adam = self.zero.inner_optimizer
        if not isinstance(adam, torch.optim.AdamW):
            return
        for flat in self.zero.master_weights:
            moments = {name: torch.zeros_like(flat.data) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}

    @property
    def module(self) -> Policy | RewardModel:
        """The policy, or the reward model; its parameters are partitioned."""
        policy: Policy | RewardModel = self.deepspeed.module
        return policy

    def close(self) -> None:
        """Give the memory of the weights back; the engine can't be used afterwards."""
        self.deepspeed.destroy()
        for parameter in self.module.parameters():
            local_partition(parameter).data = parameter.data = torch.empty(0)
        gc.collect()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            release_free()

    def state(self) -> Zero3State:
        """The trained weights and the optimizer state, for checkpoints. Parameter names are those of the Hugging Face or PEFT model."""
        return Zero3State(self.zero, self.module.model, rank=self.world.rank, world_size=self.world.world_size)

    def can_hold_whole_weights(self) -> bool:
        """Whether every rank has memory for all weights in addition to what it has now, and for answers. Collective."""
        whole = sum(whole_numel(p) * local_partition(p).element_size() for p in self.module.parameters())
        needed = _ROOM * whole if self.world.world_size > 1 else 0
        return not self.any_rank(needed > available(self.world.device))

    def whole_weights(self) -> AbstractContextManager[None]:
        """Within this context every rank has all weights, and scores and answers without the others. Collective."""
        return self.zero.whole_weights()

    def train(self, mode: bool) -> None:
        """Switch adapter dropout and activation checkpointing on or off."""
        self.deepspeed.train(mode)

    def score(
        self, batch: MicroBatch, *, whole_logits: bool = False, every_token: bool = False, routing: bool = False
    ) -> Scored:
        """Log-probs of a batch under the current weights. Collective; with gradients unless under torch.no_grad().

        routing: also Scored.routing, of a policy whose routers are watched.

        every_token: Scored.tokens has all of them, at the price of a pass over their distributions; the log-probs are the same.
        """
        batch = batch.to(self.world.device)
        asked = {"routing": True} if routing else {}
        sums, sampled, *routed = self.deepspeed(batch, whole_logits=whole_logits, every_token=every_token, **asked)
        pairs, every = len(batch.pairs), 1 if every_token else stride(len(batch.scored_segment))
        answers = sums[: 2 * pairs].view(pairs, 2, 2)
        logps, entropy, top1 = sampled
        return Scored(
            answers=answers,
            prompts=sums[2 * pairs :, 0] if batch.segments > 2 * pairs else None,
            # A reward model predicts none.
            tokens=Predictions(logps, entropy, top1, batch.scored_segment[::every][: len(logps)]),
            routing=routed[0] if routed else None,
        )

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of this rank's part of a step's loss. Collective.

        loss: scalar, the sum of this rank's pair losses divided by the pairs of the whole step. Summed over ranks and
            micro-batches that is the step's mean loss, for any split.
        last: true for the step's last micro-batch.
        """
        # DeepSpeed averages over ranks. The loss is part of a sum, so undo the average.
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss * self.world.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float | None:
        """Clip, update and clear the gradient. Collective.

        Returns the gradient's norm before clipping, or None when it is not finite; then no weight has changed, and in
        float16 the loss scale is halved.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        self.zero.alias_equal_tensors()
        applied = self.deepspeed.was_step_applied()
        if self._loss_scale is not None:
            self.loss_scale = self._loss_scale.after(applied=applied)
        return float(self.deepspeed.get_global_grad_norm()) if applied else None

    def update_ratio(self) -> float:
        """Norm of the last update over the norm of the trained weights. Collective; call it after a step that was applied."""
        update, weights = self.sum(update_squares(self.zero)).sqrt().tolist()
        return update / weights if weights else math.nan

    def abandon(self) -> None:
        """Discard the gradient of the step; no weight is changed."""
        self.zero.discard_gradients()

    @property
    def loss_scale(self) -> LossScale | None:
        """The factor of losses in float16; None in other precisions."""
        return self._loss_scale

    @loss_scale.setter
    def loss_scale(self, scale: LossScale) -> None:
        self._loss_scale = scale
        self.zero.set_loss_scale(scale.factor)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, on every rank's device. Collective. values: any shape; a copy is summed."""
        total = values.to(self.world.device, copy=True)
        dist.all_reduce(total)
        return total

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Collective."""
        return bool(self.sum(torch.tensor([float(flag)], dtype=torch.float64)).item())

    def partition_report(self) -> dict[str, int]:
        """Number of elements that this rank holds.

        held: elements of this rank's partitions, with their padding. trainable: the part of `held` that is trained.
        total: elements of the model. persistent: elements that are also kept in full on every rank (norms).
        four_bit, four_bit_bytes: elements of a 4-bit base, which every rank holds in addition, and what they take.
        """
        parameters = list(self.module.parameters())
        four_bit, four_bit_bytes = quantized.size(self.module)
        return {
            "held": sum(local_partition(p).numel() for p in parameters),
            "trainable": sum(local_partition(p).numel() for p in parameters if p.requires_grad),
            "total": sum(whole_numel(p) for p in parameters),
            "persistent": sum(whole_numel(p) for p in parameters if is_persistent(p)),
            "four_bit": four_bit,
            "four_bit_bytes": four_bit_bytes,
        }

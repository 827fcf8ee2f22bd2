"""The optimizer that DeepSpeed runs on each rank's partition of the fp32 master weights."""

from typing import Any

import torch
from torch import nn

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.distributed.zero3_internals import whole_shape
from dpo_trainer.runtime.errors import invalid_configuration


def make_optimizer(policy: nn.Module, spec: DPOJobSpec) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2017, 1711.05101), its state in float32 or in 8 bits (Dettmers et al. 2021, 2110.02861).

    Raises TrainerError INVALID_CONFIGURATION if there are no trainable parameters or bitsandbytes is missing.
    """
    training = spec.training
    settings: dict[str, Any] = {
        "lr": spec.learning_rate,
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
    }
    groups = _parameter_groups(policy, training.weight_decay)
    if training.optimizer == "adamw-8bit":
        return _adamw_8bit(groups, settings)
    # One pass over the state, without a temporary copy of it, on GPUs and CPUs.
    return torch.optim.AdamW(groups, fused=True, **settings)


def _adamw_8bit(groups: list[dict[str, Any]], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise invalid_configuration(
            f"spec.training.optimizer: adamw-8bit needs the package bitsandbytes, which can't be loaded here ({error}); use adamw, "
            "or an image that has it"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **settings)
    return optimizer


def _parameter_groups(policy: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters: matrices decay, norms and biases do not, as in Hugging Face's trainer."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    if not trained:
        raise invalid_configuration("spec.adapter: expected parameters to train, found none")
    dimensions = {id(p): len(whole_shape(p)) for p in trained}
    groups = [
        {"params": [p for p in trained if dimensions[id(p)] >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if dimensions[id(p)] < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]

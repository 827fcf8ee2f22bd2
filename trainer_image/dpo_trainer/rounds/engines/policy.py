"""The policy of a round as a whole model: the initial one, or what the round before exported."""

from pathlib import Path
from typing import Any

import torch

from dpo_operator.api.model import AdapterType
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.model.adapters import TRAINED
from dpo_trainer.model.load import load_model
from dpo_trainer.pretrained import adapters
from dpo_trainer.rounds.identity import exported_checkpoint
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.libraries import import_peft
from dpo_trainer.runtime.workdir import WorkDir


def load_policy(spec: DPOJobSpec, work: WorkDir, number: int, device: torch.device) -> Any:
    """A policy in evaluation mode on a device. number: as for policy_digest. Raises TrainerError when its files are not there."""
    plain = spec.model_copy(update={"training": spec.training.model_copy(update={"gradient_checkpointing": False})})
    adapted = spec.adapter.type is not AdapterType.NONE
    folder = work.model if adapted or not number else work.round(number).export
    if number:
        exported_checkpoint(work, number)  # a folder without it is no export
    model: Any = load_model(plain, folder, device=device)
    if adapted and number:
        _set_adapter(model, work.round(number).export)
    model.to(device)
    model.eval()
    return model


def _set_adapter(model: Any, folder: Path) -> None:
    """Give the trained adapter of a model the weights of an export."""
    from safetensors.torch import load_file

    weights = load_file(folder / adapters.WEIGHTS)
    result = import_peft().set_peft_model_state_dict(model, weights, adapter_name=TRAINED)
    missing = [key for key in result.missing_keys if ".lora_" in key and f".{TRAINED}" in key]
    if wrong := sorted([*missing, *result.unexpected_keys]):
        raise invalid_configuration(f"{folder}: the adapter does not fit spec.model: a difference in {wrong[0]}")

"""The policy of a round as a whole model: the initial one, or what the round before exported."""

from pathlib import Path
from typing import Any

import torch

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.model.adapters import TRAINED
from dpo_trainer.model.load import load_model
from dpo_trainer.pretrained import adapters
from dpo_trainer.rounds.identity import policy_files
from dpo_trainer.runtime.errors import invalid_configuration
from dpo_trainer.runtime.libraries import import_peft
from dpo_trainer.runtime.workdir import WorkDir


def load_policy(spec: DPOJobSpec, work: WorkDir, number: int, device: torch.device) -> Any:
    """A policy in evaluation mode on a device. number: as for policy_digest. Raises TrainerError when its files are not there."""
    plain = spec.model_copy(update={"training": spec.training.model_copy(update={"gradient_checkpointing": False})})
    files = policy_files(spec, work, number)
    model: Any = load_model(plain, files.model, device=device)
    if files.adapter is not None:
        _set_adapter(model, files.adapter)
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

"""The files of an export: all weights, an adapter, or the model with the adapter merged into it, as safetensors."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint.full import FullCheckpoint
from dpo_trainer.model.adapters import FROZEN, TRAINED, add_adapters, load_adapters
from dpo_trainer.model.load import bare_model, load_whole
from dpo_trainer.pretrained import adapters
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.libraries import import_peft

MERGED = "merged"
_SHARD_SIZE = "5GB"
# Not copied from the base model: transformers writes its own with the weights.
_OWN_FILES = ("config.json", "README.md")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".onnx")


def write_model(
    base: Path, checkpoint: FullCheckpoint, folder: Path, *, classifier: bool = False
) -> dict[str, torch.dtype]:
    """Write all weights in the model's own dtype; returns the dtype of each trained parameter. classifier: write a reward model."""
    model = load_whole(base, "auto", classifier=classifier)[0]
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name in checkpoint.manifest.parameters:
            if name not in own:
                raise bad_export(f"the checkpoint has a parameter {name}, which the model lacks")
            found = checkpoint.tensor(name)
            if found.shape != own[name].shape:
                raise bad_export(
                    f"the checkpoint has {name} of shape {[*found.shape]}, the model of {[*own[name].shape]}"
                )
            own[name].copy_(found)
    model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    return {name: own[name].dtype for name in checkpoint.manifest.parameters}


def write_adapter(job: DPOJob, base: Path, checkpoint: FullCheckpoint, folder: Path) -> dict[str, torch.dtype]:
    """Write the adapter alone, in float32: it is small, and merging it later should not round twice. Returns dtypes as write_model."""
    from safetensors.torch import load_file, save_file

    trained = {name: checkpoint.tensor(name) for name in checkpoint.manifest.parameters}
    # The second matrix of every adapter starts as zero. If all are still zero, nothing was learnt or the weights were lost. DoRA's
    # magnitudes may have changed even then, but the direction of the update is the product of the two matrices.
    if not any(tensor.any() for name, tensor in trained.items() if "lora_B" in name):
        raise bad_export(f"the adapter is empty or zero ({len(trained)} tensors)")
    tensors = {_peft_name(name): tensor.contiguous() for name, tensor in trained.items()}
    start = job.spec.model.adapter
    if start is not None and start.train == "same":
        before = load_file(base / adapters.FOLDER / adapters.WEIGHTS)
        if all(name in before and torch.equal(before[name].float(), tensor) for name, tensor in tensors.items()):
            raise bad_export("the adapter is the one that training started from, bit for bit")
    elif start is not None:
        # The trained adapter stands on this one, so an export without it could not be used.
        (folder / FROZEN).mkdir()
        for name in (adapters.CONFIG, adapters.WEIGHTS):
            shutil.copyfile(base / adapters.FOLDER / name, folder / FROZEN / name)
    save_file(tensors, folder / adapters.WEIGHTS, metadata={"format": "pt"})
    config = _peft_config(job, base, checkpoint)
    (folder / adapters.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    return dict.fromkeys(trained, torch.float32)


def _peft_name(name: str) -> str:
    """A parameter's name in an adapter file: without the adapter's own, and DoRA's magnitude without its module."""
    name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def write_merged(base: Path, folder: Path, *, classifier: bool = False) -> torch.dtype:
    """Merge the adapter in folder, with the one that it stands on, into the model; writes folder/merged in the base's own dtype and returns that dtype.

    Raises TrainerError BAD_EXPORT when that changes no weight, and what PEFT raises for layers that it can't merge.
    """
    peft = import_peft()
    model: Any = load_whole(base, "auto", classifier=classifier)[0]
    dtype: torch.dtype = model.dtype
    # The adapter stays in float32, so the sum is rounded once.
    model = load_adapters(model, folder)
    changed = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # merge_and_unload warns that each layer is merged already
        for layer in [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]:
            # Adapters on experts say which weight of their module is theirs.
            base_layer, weight = layer.get_base_layer(), getattr(layer, "parameter_name", "weight")
            if FROZEN in layer.active_adapters:
                layer.merge(safe_merge=True, adapter_names=[FROZEN])
            before = getattr(base_layer, weight).detach().clone()
            layer.merge(safe_merge=True)
            changed |= not torch.equal(before, getattr(base_layer, weight))
        merged = model.merge_and_unload()
    if not changed:
        raise bad_export(
            f"merging the adapter changes no weight, because {str(dtype).removeprefix('torch.')} is too coarse for so small an "
            "update; train longer, or use the adapter"
        )
    merged.save_pretrained(folder / MERGED, max_shard_size=_SHARD_SIZE)
    copy_small_files(base, folder / MERGED, adapter=False)
    return dtype


def _peft_config(job: DPOJob, base: Path, checkpoint: FullCheckpoint) -> dict[str, Any]:
    """adapter_config.json, from the same code that made the adapters, on a model without weights."""
    bare = bare_model(base, classifier=job.spec.method.trains_reward_model)
    wrapped: Any = add_adapters(bare, job.spec, base, checkpoint.manifest.parameters)
    config: dict[str, Any] = wrapped.peft_config[TRAINED].to_dict()
    config.update(base_model_name_or_path=job.spec.model.name, revision=job.spec.model.revision, inference_mode=True)
    return {key: _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    """Sets become sorted lists, enumerations their values."""
    if isinstance(value, set):
        return sorted(value)
    return value.value if hasattr(value, "value") else value


def copy_small_files(base: Path, folder: Path, *, adapter: bool) -> None:
    """Copy tokenizer, chat template and generation settings unchanged from the base model."""
    for entry in sorted(base.iterdir()):
        if not entry.is_file() or entry.name.endswith(_WEIGHTS) or entry.name in _OWN_FILES:
            continue
        if adapter and entry.name == "generation_config.json":
            continue  # belongs to the base model
        shutil.copyfile(entry, folder / entry.name)


def bad_export(message: str) -> TrainerError:
    """A TrainerError with exit code BAD_EXPORT."""
    return TrainerError(ExitCode.BAD_EXPORT, f"The export failed: {message}.")

"""The files of an export: all weights, an adapter, or the model with the adapter merged into it, as safetensors."""

import json
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJob
from dpo_trainer.checkpoint.full import FullCheckpoint
from dpo_trainer.checkpoint.shard import Entry, write_shard
from dpo_trainer.model.adapters import FROZEN, TRAINED, add_adapters, load_adapters, stored_name
from dpo_trainer.model.load import bare_model, load_whole
from dpo_trainer.model.weight_files import WeightFiles, have_the_models_names, stored_buffers
from dpo_trainer.pretrained import adapters
from dpo_trainer.pretrained.files import INDEX
from dpo_trainer.pretrained.reward import HEAD
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.libraries import import_peft

MERGED = "merged"
_SHARD_SIZE = "5GB"
FORMAT = {"format": "pt"}
# Not copied from the base model: transformers writes its own with the weights.
_OWN_FILES = ("config.json", "README.md")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".onnx")


def write_model(
    base: Path, checkpoint: FullCheckpoint, folder: Path, *, classifier: bool = False
) -> dict[str, torch.dtype]:
    """Write all weights in the model's own dtype; returns the dtype of each trained parameter. classifier: write a reward model.

    One tensor at a time is in memory, unless the base's files name or join their tensors in another way than the model does: then all are.
    """
    files = WeightFiles(base)
    model = bare_model(base, classifier=classifier)
    # A new head has no weights yet.
    names = files.names | ({f"{HEAD}.weight"} if classifier else set())
    if not have_the_models_names(model, names):
        return _write_whole(base, checkpoint, folder, classifier=classifier)
    dtype: torch.dtype = model.config.dtype or files.dtype or torch.float32
    model = bare_model(base, dtype, classifier=classifier)
    own = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    _check_parameters(checkpoint, own)
    entries = [
        Entry(name, dtype, math.prod(shape), partial(checkpoint.tensor, name, dtype), shape)
        for name, shape in own.items()
    ]
    for name in stored_buffers(model):
        tensor = files.tensor(name)
        entries.append(Entry(name, tensor.dtype, tensor.numel(), partial(files.tensor, name), tuple(tensor.shape)))
    _save_configuration(model, dtype, folder)
    parts = weight_shards(entries)
    for name, part in parts.items():
        write_shard(folder / name, part, metadata=FORMAT)
    if len(parts) > 1:
        write_index(parts, folder)
    return dict.fromkeys(own, dtype)


def _check_parameters(checkpoint: FullCheckpoint, own: Mapping[str, tuple[int, ...]]) -> None:
    """Raises TrainerError BAD_EXPORT when a checkpoint's parameters are not the model's."""
    for name, parameter in checkpoint.manifest.parameters.items():
        if name not in own:
            raise bad_export(f"the checkpoint has a parameter {name}, which the model lacks")
        if parameter.shape != own[name]:
            raise bad_export(f"the checkpoint has {name} of shape {[*parameter.shape]}, the model of {[*own[name]]}")
    if missing := sorted(own.keys() - checkpoint.manifest.parameters.keys()):
        raise bad_export(f"the checkpoint lacks the parameter {missing[0]}, which the model has")


def weight_shards(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Which tensors each weight file gets, by its name: files of at most 5 GB where no tensor is larger, as transformers writes them."""
    from huggingface_hub import split_torch_state_dict_into_shards

    tensors = {entry.name: torch.empty(entry.numel, dtype=entry.dtype, device="meta") for entry in entries}
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=_SHARD_SIZE)
    by_name = {entry.name: entry for entry in entries}
    return {file: [by_name[name] for name in names] for file, names in split.filename_to_tensors.items()}


def _save_configuration(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """config.json and generation_config.json, as transformers writes them beside weights."""
    model.config.dtype = str(dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def write_index(parts: Mapping[str, Sequence[Entry]], folder: Path) -> None:
    """The index of several weight files."""
    every = [(file, entry) for file, entries in parts.items() for entry in entries]
    sizes = {"total_parameters": sum(entry.numel for _, entry in every), "total_size": sum(e.size for _, e in every)}
    document = {"metadata": sizes, "weight_map": {entry.name: file for file, entry in every}}
    (folder / INDEX).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_whole(base: Path, checkpoint: FullCheckpoint, folder: Path, *, classifier: bool) -> dict[str, torch.dtype]:
    """Write a model whose weights have other names in files than in memory: transformers knows how."""
    model = load_whole(base, "auto", classifier=classifier)[0]
    own = dict(model.named_parameters())
    _check_parameters(checkpoint, {name: tuple(parameter.shape) for name, parameter in own.items()})
    with torch.no_grad():
        for name in checkpoint.manifest.parameters:
            own[name].copy_(checkpoint.tensor(name))
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
    tensors = {stored_name(name): tensor.contiguous() for name, tensor in trained.items()}
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

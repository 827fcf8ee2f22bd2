"""The export phase: from the last or the best checkpoint to a folder that transformers or PEFT loads, proved by loading it.

One process on the CPU, without DeepSpeed. The folder appears when it is complete and checked; running again finds it.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.training import AdapterType
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.adapters import import_peft
from dpo_trainer.checkpoint.full import FullCheckpoint, open_best, open_newest
from dpo_trainer.errors import TrainerError, input_not_found
from dpo_trainer.files import sha256, sync_folder
from dpo_trainer.modelcard import Made, model_card
from dpo_trainer.probe import check_probe, check_weights, load_exported
from dpo_trainer.stopping import METRICS
from dpo_trainer.versions import own_version
from dpo_trainer.workdir import WorkDir

PROVENANCE = "dpo_provenance.json"
MERGED = "merged"
_SHARD_SIZE = "5GB"
# Weights are written anew, and transformers writes these beside them.
_OWN_FILES = ("config.json", "README.md")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".onnx")

Progress = Callable[[str], None]


def run(job: DPOJob, work: WorkDir, *, progress: Progress) -> str:
    """Write, load and check the trained model or adapter; returns its folder, relative to the work folder.

    Raises TrainerError INPUT_NOT_FOUND when training has not finished, BAD_EXPORT when what was written does not give
    the trained policy's log-probs.
    """
    _quiet()
    spec, precision = job.spec, job.spec.training.precision
    checkpoint, why = _choose(spec, work.checkpoints, progress)
    relative = work.export.relative_to(work.root).as_posix()
    if _is_done(work.export, job, checkpoint):
        progress("already exported")
        return relative
    temporary = work.export.with_name(work.export.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    progress("writing the weights")
    adapter = spec.adapter.type is not AdapterType.NONE
    if adapter:
        stored = _write_adapter(job, work.model, checkpoint, temporary)
    else:
        stored = _write_model(work.model, checkpoint, temporary)
    _copy_small_files(work.model, temporary, adapter=adapter)

    progress("loading what was written")
    model = load_exported(work.model, temporary, precision)
    check_weights(model, checkpoint, stored, precision)
    progress("comparing its log-probs with the trained policy's")
    worst = {"": check_probe(model, work, checkpoint.state["probe"], set(stored.values()))}
    del model
    if adapter and spec.export.merge:
        progress("merging the adapter into the model")
        worst[MERGED] = _export_merged(work, checkpoint, temporary, precision)

    for folder, difference in worst.items():
        made = Made(why, difference, whole=folder == MERGED or not adapter, merged=MERGED in worst)
        (temporary / folder / "README.md").write_text(model_card(job, work, checkpoint, made), encoding="utf-8")
    _write_provenance(temporary, job, checkpoint, why, worst)
    _replace(temporary, work.export)
    progress(f"exported to {work.export}")
    return relative


def _choose(spec: DPOJobSpec, root: Path, progress: Progress) -> tuple[FullCheckpoint, str]:
    """The checkpoint that is exported, and why it."""
    progress("checking the last checkpoint")
    newest, refused = open_newest(root)
    if not newest.state.get("finished"):
        because = f" ({'; '.join(refused)})" if refused else ""
        raise input_not_found(
            f"Expected the checkpoint of the last step, found step {newest.manifest.step} of "
            f"{newest.state.get('total_steps', 'more')}{because}; train to the end first."
        )
    if not spec.exports_best:
        return newest, "the last step"
    progress("looking for the best checkpoint")
    best, passed = open_best(root, newest)
    for reason in passed:
        progress(f"passed over a better checkpoint: {reason}")
    if best is None:
        progress("exporting the last checkpoint: none that was evaluated is whole")
        return newest, "the last step, because no checkpoint with an evaluation is whole"
    cost = best.manifest.metrics["selection"] or 0.0
    value = -cost if METRICS[spec.selection_metric][1] else cost
    progress(f"exporting step {best.manifest.step}: {spec.selection_metric} {value:.4f}")
    without = f"; better ones are gone: {'; '.join(passed)}" if passed else ""
    return best, f"the best {spec.selection_metric}, {value:.4f}{without}"


def _quiet() -> None:
    """No progress bars in a log, and no search for a GPU by DeepSpeed, which transformers imports when it is there."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _write_model(base: Path, checkpoint: FullCheckpoint, folder: Path) -> dict[str, torch.dtype]:
    """All weights, in the model's own dtype; returns that of each trained parameter."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True, use_safetensors=True)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name in checkpoint.manifest.parameters:
            if name not in own:
                raise _bad_export(f"the checkpoint has a parameter {name}, which the model has not")
            own[name].copy_(checkpoint.tensor(name))
    model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    return {name: own[name].dtype for name in checkpoint.manifest.parameters}


def _write_adapter(job: DPOJob, base: Path, checkpoint: FullCheckpoint, folder: Path) -> dict[str, torch.dtype]:
    """The adapter alone, in float32: it is small, and merging it later should not round twice."""
    from safetensors.torch import save_file

    trained = {name: checkpoint.tensor(name) for name in checkpoint.manifest.parameters}
    # The second matrix of every adapter starts as zero; when all still are, nothing was learnt or all was lost. DoRA's
    # magnitudes may have moved even then, but they are no direction: the product of the two matrices is.
    if not any(tensor.any() for name, tensor in trained.items() if "lora_B" in name):
        raise _bad_export(f"the adapter is empty or zero ({len(trained)} tensors)")
    save_file(
        {_peft_name(name): tensor.contiguous() for name, tensor in trained.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config = _peft_config(job, base)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    return dict.fromkeys(trained, torch.float32)


def _peft_name(name: str) -> str:
    """A parameter's name in an adapter file: without the adapter's own, and DoRA's magnitude without its module."""
    return name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(".default.", ".")


def _export_merged(work: WorkDir, checkpoint: FullCheckpoint, folder: Path, precision: str) -> float:
    """Write, load and check the model with the adapter merged into it; returns the largest difference, nats.

    folder: holds the adapter already; the model goes into its folder `merged`, in the dtype that the base is kept in.
    """
    dtype = _write_merged(work.model, folder)
    _copy_small_files(work.model, folder / MERGED, adapter=False)
    model = load_exported(work.model, folder / MERGED, precision)
    return check_probe(model, work, checkpoint.state["probe"], {dtype})


def _write_merged(base: Path, folder: Path) -> torch.dtype:
    peft = import_peft()
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True, use_safetensors=True)
    dtype: torch.dtype = model.dtype
    # The adapter stays in float32, so the sum is rounded once.
    model = peft.PeftModel.from_pretrained(model, folder, torch_device="cpu")
    changed = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each layer is merged here, and merge_and_unload finds it merged
        for layer in [module for module in model.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]:
            before = layer.get_base_layer().weight.detach().clone()
            layer.merge(safe_merge=True)  # type: ignore[operator]
            changed |= not torch.equal(before, layer.get_base_layer().weight)
        merged = model.merge_and_unload()
    if not changed:
        raise _bad_export(
            f"merging the adapter changes no weight, because {str(dtype).removeprefix('torch.')} is too coarse for so small an "
            "update; set spec.export.merge to false and use the adapter, or train longer"
        )
    merged.save_pretrained(folder / MERGED, max_shard_size=_SHARD_SIZE)
    return dtype


def _peft_config(job: DPOJob, base: Path) -> dict[str, Any]:
    """adapter_config.json, from the same code that made the adapters, on a model without weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.model import add_lora

    with torch.device("meta"):
        bare: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, local_files_only=True))
        wrapped: Any = add_lora(bare, job.spec.adapter, seed=job.spec.training.seed)
    config: dict[str, Any] = wrapped.peft_config["default"].to_dict()
    config.update(base_model_name_or_path=job.spec.model.name, revision=job.spec.model.revision, inference_mode=True)
    return {key: _plain(value) for key, value in config.items()}


def _plain(value: Any) -> Any:
    """Sets become sorted lists, enumerations their values."""
    if isinstance(value, set):
        return sorted(value)
    return value.value if hasattr(value, "value") else value


def _copy_small_files(base: Path, folder: Path, *, adapter: bool) -> None:
    """Tokenizer, chat template, generation settings: as they were for training."""
    for entry in sorted(base.iterdir()):
        if not entry.is_file() or entry.name.endswith(_WEIGHTS) or entry.name in _OWN_FILES:
            continue
        if adapter and entry.name == "generation_config.json":
            continue  # belongs to the base model
        shutil.copyfile(entry, folder / entry.name)


def _is_done(folder: Path, job: DPOJob, checkpoint: FullCheckpoint) -> bool:
    """Whether the folder is this checkpoint's export, with all that the job wants, and its files are as they were written."""
    try:
        document = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        return (
            document["checkpoint"]["digest"] == checkpoint.ref.digest
            and document["spec"]["export"] == _plain_spec(job)["export"]
            and all(sha256(folder / name) == digest for name, digest in document["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _plain_spec(job: DPOJob) -> dict[str, Any]:
    return job.spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _write_provenance(folder: Path, job: DPOJob, checkpoint: FullCheckpoint, why: str, worst: dict[str, float]) -> None:
    """Where the folder comes from, with the digest of every file in it. worst: largest difference by folder."""
    document = {
        "job": job.metadata.name,
        "spec": _plain_spec(job),
        "checkpoint": {**checkpoint.ref.model_dump(), "chosen_as": why},
        "identity": checkpoint.manifest.identity,
        "probe": {**checkpoint.state["probe"], "largest_difference_nats": worst[""]},
        "versions": {**checkpoint.manifest.versions, "dpo-operator": own_version()},
        "files": {path.relative_to(folder).as_posix(): sha256(path) for path in _files(folder)},
    }
    if MERGED in worst:
        document["merged"] = {"largest_difference_nats": worst[MERGED]}
    (folder / PROVENANCE).write_text(json.dumps(document, indent=1), encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _replace(temporary: Path, target: Path) -> None:
    """Put a finished folder in the place of an older one; a crash leaves one of the two, and export runs again."""
    for path in _files(temporary):
        path.chmod(0o644)  # safetensors makes files that nobody else may read
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for folder in {path.parent for path in _files(temporary)}:
        sync_folder(folder)
    old = target.with_name(target.name + ".old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _bad_export(message: str) -> TrainerError:
    return TrainerError(ExitCode.BAD_EXPORT, f"The export failed: {message}.")

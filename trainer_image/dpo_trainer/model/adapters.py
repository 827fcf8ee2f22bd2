"""Adapters: a new one, one that the policy starts from, or a new one on top of that."""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from dpo_operator.api.model import Adapter
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.model.targets import Targets, refuse_shared_output, resolve, shortest
from dpo_trainer.model.weight_files import WeightFiles
from dpo_trainer.pretrained import adapters
from dpo_trainer.pretrained.adapters import AdapterFiles
from dpo_trainer.pretrained.reward import HEAD
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.libraries import import_peft

# Name of a frozen adapter inside PEFT; the trained one is PEFT's default.
FROZEN: Final = "start"
TRAINED: Final = "default"
_LABEL = "spec.model.adapter"


def add_adapters(model: nn.Module, spec: DPOJobSpec, folder: Path, before: Collection[str] = ()) -> Any:
    """A model with the adapters that the job wants, of which one is trained. folder: the prepared model's. before: see targets.resolve.

    The policy is the model with the start adapter, before the first update, whether that one is trained on or a new one is added. Works on
    a model without memory for its weights, too.
    Returns the PEFT model. Raises TrainerError when adapter and model do not fit.
    """
    start = spec.model.adapter
    if start is None:
        classifier = spec.method.trains_reward_model
        return add_lora(model, spec.adapter, seed=spec.training.seed, before=before, classifier=classifier)
    found = adapters.read(folder / adapters.FOLDER, _LABEL)
    refuse_shared_output(model, found.modules)
    if start.train == "same":
        return _loaded(model, found, folder, TRAINED, dropout=spec.adapter.dropout)
    targets = resolve(model, spec.adapter, before)
    _check_two(found, targets, spec.adapter)
    adapted = _loaded(model, found, folder, FROZEN, dropout=0.0)
    with _seeded(spec.training.seed):
        adapted.add_adapter(TRAINED, _lora_config(targets, spec.adapter), autocast_adapter_dtype=False)
    adapted.base_model.set_adapter([FROZEN, TRAINED])
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(f".{TRAINED}." in name)
    return adapted


def add_lora(
    model: nn.Module, adapter: Adapter, *, seed: int, before: Collection[str] = (), classifier: bool = False
) -> nn.Module:
    """Freeze a model and add low-rank adapters (Hu et al. 2021, 2106.09685) that start as no change.

    With dora each also has a magnitude for every output (2402.09353), at first the norm of the model's own weights; with
    rslora its scale is alpha/sqrt(rank) (2312.03732).
    before: see targets.resolve. classifier: the model is one, and its head is trained whole. Returns the PEFT model. Raises TrainerError, see
    there.
    """
    config = _lora_config(resolve(model, adapter, before), adapter, classifier=classifier)
    with _seeded(seed):
        # Adapters in the model's dtype: DeepSpeed's flat buffers hold one dtype, and keeps fp32 master weights anyway.
        adapted: nn.Module = import_peft().get_peft_model(model, config, autocast_adapter_dtype=False)
        return adapted


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers from a seed within this context, and as they were after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _lora_config(targets: Targets, adapter: Adapter, *, classifier: bool = False) -> Any:
    return import_peft().LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=list(targets.modules),
        target_parameters=list(targets.parameters) or None,
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
        task_type="SEQ_CLS" if classifier else "CAUSAL_LM",
        modules_to_save=[HEAD] if classifier else None,
    )


def _check_two(found: AdapterFiles, targets: Targets, adapter: Adapter) -> None:
    """Refuse what two adapters on one model can't be."""
    reasons = (
        (targets.parameters or found.parameters, "experts have one adapter"),
        (adapter.dora or found.dora, "DoRA scales a weight by one adapter"),
    )
    for used, reason in reasons:
        if used:
            raise invalid_configuration(
                f"{_LABEL}.train: new is not possible, because {reason}; use same, or merge the adapter into the model first"
            )


def _loaded(model: nn.Module, found: AdapterFiles, folder: Path, name: str, *, dropout: float) -> Any:
    """A model with the adapter from its files. Raises TrainerError when they don't fit the model."""
    from safetensors.torch import load_file

    peft = import_peft()
    config = peft.LoraConfig(
        r=found.rank,
        lora_alpha=found.alpha,
        lora_dropout=dropout,
        target_modules=list(shortest(set(found.modules), [module for module, _ in model.named_modules()])),
        target_parameters=list(found.parameters) or None,
        use_dora=found.dora,
        use_rslora=found.rslora,
        rank_pattern=dict(found.ranks),
        alpha_pattern=dict(found.alphas),
        task_type="CAUSAL_LM",
    )
    weights = load_file(folder / adapters.FOLDER / adapters.WEIGHTS)
    with warnings.catch_warnings():
        # A model without memory for its weights takes none, but their shapes are compared.
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        try:
            adapted = peft.get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
            result = peft.set_peft_model_state_dict(adapted, weights, adapter_name=name)
        except (ValueError, RuntimeError, KeyError) as error:  # other modules, other shapes
            raise _no_fit(str(error).strip()[:600]) from error
    missing = [key for key in result.missing_keys if ".lora_" in key and f".{name}" in key]
    if wrong := sorted([*missing, *result.unexpected_keys]):
        raise _no_fit(f"expected the same adapted modules, found a difference in {wrong[0]}")
    return adapted


def _no_fit(problem: str) -> TrainerError:
    return invalid_configuration(f"{_LABEL}: the adapter does not fit spec.model: {problem}")


@contextmanager
def without_trained(model: Any) -> Iterator[None]:
    """Within this context a PEFT model is what it was before its new adapter was trained; an adapter that is frozen stays on.

    PEFT's own switches would also change which weights are trained.
    """
    layer_type = import_peft().tuners.tuners_utils.BaseTunerLayer
    layers: list[Any] = [module for module in model.modules() if isinstance(module, layer_type)]
    before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
    has_frozen = FROZEN in model.peft_config
    for layer in layers:
        layer._disable_adapters, layer._active_adapter = not has_frozen, [FROZEN]
    try:
        yield
    finally:
        for layer, (disabled, active) in zip(layers, before, strict=True):
            layer._disable_adapters, layer._active_adapter = disabled, active


def load_adapters(base: Any, folder: Path) -> Any:
    """A plain model with the adapters of an exported folder on it, as a user would load them.

    On a model without memory for its weights the adapters have none either: PEFT makes them where the weights are.
    """
    peft = import_peft()
    options = {"autocast_adapter_dtype": False, "torch_device": "cpu"}
    if not (folder / FROZEN).is_dir():
        return peft.PeftModel.from_pretrained(base, folder, **options)
    model = peft.PeftModel.from_pretrained(base, folder / FROZEN, adapter_name=FROZEN, **options)
    model.load_adapter(folder, TRAINED, **options)
    model.base_model.set_adapter([FROZEN, TRAINED])
    return model


def stored_name(name: str) -> str:
    """A trained parameter's name in an adapter file: without the adapter's own, and DoRA's magnitude without its module."""
    name = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def adapter_reader(base: Callable[[str], Tensor], folder: Path) -> Callable[[str], Tensor]:
    """Tensors of a model with the adapters of an exported folder, by PEFT's names, from the files. base: those of the plain model."""
    parts = {TRAINED: WeightFiles(folder, adapters.WEIGHTS)}
    if (folder / FROZEN).is_dir():
        parts[FROZEN] = WeightFiles(folder / FROZEN, adapters.WEIGHTS)

    def read(name: str) -> Tensor:
        for adapter, files in parts.items():
            if f".{adapter}." in name:
                return files.tensor(name.replace(f".{adapter}.", "."))
        return base(name.removeprefix("base_model.model.").replace(".base_layer.", "."))

    return read

"""An adapter to start from: PEFT's two files, read as data. Neither is trusted, and nothing in them chooses code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dpo_trainer.pretrained.checks import check_weights
from dpo_trainer.pretrained.files import read_json, some
from dpo_trainer.runtime.errors import TrainerError, input_not_found, invalid_configuration

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Where it lies in the prepared model's folder.
FOLDER: Final = "adapter"
# Files that may hold the chat template that it was tuned with.
TEMPLATE_FILES = ("chat_template.jinja", "tokenizer_config.json")

_MAX_CONFIG_BYTES = 1 << 20
_MAX_RANK, _MAX_ALPHA, _MAX_NAMES, _MAX_NAME = 1024, 65536.0, 200_000, 256
_KEY = re.compile(
    r"base_model\.model\.(?P<module>[A-Za-z0-9_.-]+)\.lora_(?:[AB]\.weight|magnitude_vector(?:\.weight)?)"
)
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# What PEFT writes itself for part of a path. Other expressions could take for ever.
_PATTERN = re.compile(r"\^?(?:\.\*\\?\.)?[A-Za-z0-9_.\\-]+\$?")
# Initial matrices that leave the model's own weights as they are. PiSSA, OLoRA and others subtract their adapter from them, and its files fit only
# those changed weights.
_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
# Settings that say nothing about the weights, or are found in the weights themselves.
_NEUTRAL = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "peft_type", "peft_version",
        "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type", "use_dora",
        "use_rslora",
    }
)  # fmt: skip


@dataclass(frozen=True)
class AdapterFiles:
    """A LoRA adapter as its files describe it.

    modules: full names of the adapted modules. parameters: ends of the names of weights that are adapted in place. ranks, alphas: by
    part of a path, where they differ. base: the model that it names. template: chat template beside it, None without.
    """

    rank: int
    alpha: float
    dora: bool
    rslora: bool
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    base: str
    template: str | None


def file_names(sizes: Mapping[str, int], label: str) -> list[str]:
    """Names of the files to fetch. sizes: of all files of the source, by name. Raises TrainerError naming what is missing."""
    if CONFIG not in sizes:
        if "config.json" in sizes:
            raise invalid_configuration(
                f"{label}: expected an adapter ({CONFIG}), found a whole model; name it as spec.model.name"
            )
        raise input_not_found(f"{label}: no {CONFIG}; found {some(sizes)}")
    if sizes[CONFIG] > _MAX_CONFIG_BYTES:
        raise invalid_configuration(
            f"{label}: {CONFIG} has {sizes[CONFIG]} bytes; expected at most {_MAX_CONFIG_BYTES}"
        )
    if WEIGHTS not in sizes:
        pickled = [name for name in sizes if name.endswith((".bin", ".pt", ".pth"))]
        if pickled:
            raise invalid_configuration(
                f"{label}: expected {WEIGHTS}, found {some(pickled)}. Pickled weights run code when they are opened and are never read: load an "
                "adapter that you trust with PEFT on your own machine and save it with save_pretrained"
            )
        raise input_not_found(f"{label}: no {WEIGHTS}; found {some(sizes)}")
    return [
        CONFIG,
        WEIGHTS,
        *(name for name in TEMPLATE_FILES if sizes.get(name, _MAX_CONFIG_BYTES + 1) <= _MAX_CONFIG_BYTES),
    ]


def read(folder: Path, label: str) -> AdapterFiles:
    """Read and check an adapter's files. The weights' header is read, and no weight.

    Raises TrainerError INVALID_CONFIGURATION for what is no LoRA adapter of a causal language model, for settings that are not supported,
    and for files that contradict each other.
    """
    config = read_json(folder / CONFIG, label)
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA" or task not in (None, "CAUSAL_LM"):
        raise invalid_configuration(
            f"{label}: expected a LORA adapter of CAUSAL_LM, found {kind!r} of {task!r} in {CONFIG}"
        )
    if saved := config.get("modules_to_save"):
        raise invalid_configuration(
            f"{label}: {CONFIG} has whole copies of modules (modules_to_save: {str(saved)[:200]}); merge the adapter into its model first"
        )
    default = {"bias": ("none",)}
    for name in sorted(config.keys() - _NEUTRAL):
        if config[name] and config[name] not in default.get(name, ()):
            raise invalid_configuration(
                f"{label}: {name} in {CONFIG} is {str(config[name])[:200]}, which is not supported; merge the adapter into its model first"
            )
    _check_init(config.get("init_lora_weights"), label)
    shapes = check_weights(folder, [WEIGHTS], label).shapes
    holders = _modules(shapes, label)
    parameters = _names(config, "target_parameters", label)
    in_place = {name for name in holders if _is_in_place(name, parameters)}
    return AdapterFiles(
        rank=_number(config, "r", label, int, _MAX_RANK),
        alpha=_number(config, "lora_alpha", label, float, _MAX_ALPHA),
        dora=config.get("use_dora") is True,
        rslora=config.get("use_rslora") is True,
        modules=tuple(sorted(holders - in_place)),
        parameters=parameters,
        ranks=_patterns(config, "rank_pattern", label, int, _MAX_RANK),
        alphas=_patterns(config, "alpha_pattern", label, float, _MAX_ALPHA),
        base=str(config.get("base_model_name_or_path") or "")[:512],
        template=_template(folder, label),
    )


def differs_from_base(adapter: AdapterFiles, model: str) -> str:
    """Why the adapter may belong to another model than the job's; empty when their names agree, apart from owner and folder."""
    ours, theirs = (name.rstrip("/").rpartition("/")[2].casefold() for name in (model, adapter.base))
    if not theirs or ours == theirs:
        return ""
    return (
        f"spec.model.adapter: its {CONFIG} names the model {adapter.base}, and spec.model.name is {model}; the policy is right only if these "
        "are the same weights"
    )


def _check_init(value: Any, label: str) -> None:
    if (value.lower() if isinstance(value, str) else value) not in _INITS:
        raise invalid_configuration(
            f"{label}: init_lora_weights in {CONFIG} is {str(value)[:200]}, so the adapter fits changed weights of its model, not the model's own. "
            "Save it with path_initial_model_for_weight_conversion of PEFT's save_pretrained, which makes it an ordinary adapter, or merge it into "
            "the model that it was trained on"
        )


def _modules(shapes: Mapping[str, tuple[int, ...]], label: str) -> set[str]:
    found: set[str] = set()
    other: list[str] = []
    for key, shape in shapes.items():
        match = _KEY.fullmatch(key)
        if match is None or max(shape, default=0) > 1 << 28:
            other.append(key)
        else:
            found.add(match["module"])
    if other:
        raise invalid_configuration(
            f"{label}: expected the matrices of a LoRA adapter alone, found {some(other)} in {WEIGHTS}; merge the adapter into its model first"
        )
    return found


def _is_in_place(module: str, parameters: tuple[str, ...]) -> bool:
    """Whether matrices that lie at a module are those of one of its weights."""
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    holders = (name.rpartition(".")[0] or "experts" for name in parameters)
    return any(module == holder or module.endswith(f".{holder}") for holder in holders)


def _names(config: Mapping[str, Any], name: str, label: str) -> tuple[str, ...]:
    value = config.get(name) or []
    if not isinstance(value, list) or len(value) > _MAX_NAMES or not all(_is_name(item) for item in value):
        raise _wrong(label, name, "a list of names", value)
    return tuple(sorted(value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_NAME and _NAME.fullmatch(value) is not None


def _number(config: Mapping[str, Any], name: str, label: str, kind: type[int] | type[float], most: float) -> Any:
    value = config.get(name)
    allowed = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value <= most:
        raise _wrong(label, name, f"a number above 0 and at most {most:g}", value)
    return kind(value)


def _patterns(
    config: Mapping[str, Any], name: str, label: str, kind: type[int] | type[float], most: float
) -> dict[str, Any]:
    value = config.get(name) or {}
    if not isinstance(value, dict) or len(value) > _MAX_NAMES:
        raise _wrong(label, name, "numbers by module", value)
    for key in value:
        if len(key) > _MAX_NAME or not _PATTERN.fullmatch(key):
            raise _wrong(label, name, "names of modules", key)
    return {key: _number(value, key, label, kind, most) for key in value}


def _template(folder: Path, label: str) -> str | None:
    """Chat template beside the adapter; with several, the one that is called default."""
    file, settings = (folder / name for name in TEMPLATE_FILES)
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    found = read_json(settings, label).get("chat_template") if settings.is_file() else None
    if isinstance(found, list):
        found = next(
            (item.get("template") for item in found if isinstance(item, dict) and item.get("name") == "default"), None
        )
    return found if isinstance(found, str) and found else None


def _wrong(label: str, name: str, expected: str, found: Any) -> TrainerError:
    return invalid_configuration(f"{label}: {name} in {CONFIG}: expected {expected}, found {str(found)[:200]!r}")

"""Checks that a model can be trained: its configuration, and the headers of its weight files.

Nothing here loads weights or imports torch; a wrong model is refused before any GPU is held.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_trainer.pretrained.files import INDEX, read_json, some, weight_map
from dpo_trainer.runtime import safetensors_header
from dpo_trainer.runtime.errors import invalid_configuration

# Bytes of one element, by the names that safetensors uses.
_DTYPES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
           "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}  # fmt: skip
_TRAINABLE = {"F16", "BF16", "F32", "F64"}


def check_config(folder: Path, label: str) -> dict[str, Any]:
    """Read config.json and refuse models that can't be trained.

    Raises TrainerError: INVALID_CONFIGURATION as check_safe, and for an architecture that is no causal language model of the installed
    transformers.
    """
    config = check_safe(folder, label)
    _check_architecture(config, label)
    return config


def check_safe(folder: Path, label: str) -> dict[str, Any]:
    """Read config.json. Raises TrainerError INVALID_CONFIGURATION for code of its own, and for weights that are quantized."""
    config = read_json(folder / "config.json", label)
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists() and read_json(folder / name, label).get("auto_map"):
            raise invalid_configuration(
                f"{label}: {name} asks for code of its own (auto_map), and code that comes with a model is never run; use a "
                "model that transformers has built in. If it has this one, remove auto_map from a copy"
            )
    if config.get("quantization_config"):
        raise invalid_configuration(
            f"{label}: the weights are quantized (quantization_config in config.json); use the unquantized model"
        )
    return config


def _check_architecture(config: Mapping[str, Any], label: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config.get("model_type")
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type) if isinstance(model_type, str) else None
    if known is None:
        raise invalid_configuration(
            f"{label}: expected a causal language model that transformers has built in, found model_type {model_type!r} in "
            "config.json; use another model, or a trainer image with a newer transformers"
        )
    accepted = set(known) if isinstance(known, tuple | list) else {known}
    named = config.get("architectures") or []
    if named and not accepted & set(named):
        raise invalid_configuration(
            f"{label}: expected {' or '.join(sorted(accepted))}, found {', '.join(map(str, named))} in config.json; DPO needs "
            "a language model, not a classifier or reward model"
        )


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that the model's positions reach, with RoPE scaling; None when the configuration does not say."""
    if isinstance(config.get("text_config"), Mapping):
        config = config["text_config"]
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    lengths = (config.get(key) for key in keys)
    length = next((length for length in lengths if isinstance(length, int)), None)
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    factor = scaling.get("factor") if isinstance(scaling, Mapping) else None
    if length is None or not isinstance(factor, int | float):
        return length
    # Some configurations hold the length before scaling and some after it: the larger reading never refuses wrongly.
    return max(length, int(factor * (scaling.get("original_max_position_embeddings") or length)))


@dataclass(frozen=True)
class Weights:
    """Parameter count, dtypes, and the shape of each tensor, from the headers of the weight files."""

    parameters: int
    dtypes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)


def check_weights(folder: Path, names: Sequence[str], label: str) -> Weights:
    """Check the headers and sizes of weight files, and that they hold the tensors that the index names.

    Raises TrainerError: INVALID_CONFIGURATION with the file's name.
    """
    dtypes: set[str] = set()
    shapes: dict[str, tuple[int, ...]] = {}
    index = weight_map(folder, label) if (folder / INDEX).exists() else {}
    for name in names:
        tensors = _header(folder / name, label)
        absent = [tensor for tensor, file in index.items() if file == name and tensor not in tensors]
        if absent:
            raise invalid_configuration(f"{label}: {name} lacks tensors that {INDEX} puts there: {some(absent)}")
        shapes |= {key: tuple(tensor["shape"]) for key, tensor in tensors.items()}
        dtypes |= {tensor["dtype"] for tensor in tensors.values()}
    if not dtypes & _TRAINABLE:
        raise invalid_configuration(
            f"{label}: expected floating-point weights, found {', '.join(sorted(dtypes)) or 'none'}"
        )
    return Weights(sum(map(math.prod, shapes.values())), tuple(sorted(dtypes)), shapes)


def _header(path: Path, label: str) -> dict[str, dict[str, Any]]:
    """Tensors of a safetensors file, whose data must fill the file without gaps."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            header = safetensors_header.read(file)
            data = size - file.tell()
        end = 0
        for tensor in sorted(header.values(), key=lambda t: t["data_offsets"][0]):
            start, stop = tensor["data_offsets"]
            if start != end or stop - start != math.prod(tensor["shape"]) * _DTYPES[tensor["dtype"]]:
                raise ValueError("tensors overlap or leave gaps")
            end = stop
        if end != data:
            raise ValueError(f"{end} bytes of tensors announced, {data} there")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise invalid_configuration(
            f"{label}: {path.name} is not a whole safetensors file ({error}); copy or download it again"
        ) from error
    return header


def vocabulary_size(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding, None when the configuration does not say."""
    size = config.get("vocab_size")
    if size is None and isinstance(config.get("text_config"), Mapping):
        size = config["text_config"].get("vocab_size")
    return size if isinstance(size, int) else None


def end_tokens(folder: Path, config: Mapping[str, Any], label: str) -> list[int]:
    """End-of-sequence ids of a model, from config.json and generation_config.json, the usual one first."""
    generation = folder / "generation_config.json"
    values = [config.get("eos_token_id")]
    if generation.exists():
        values.append(read_json(generation, label).get("eos_token_id"))
    found: dict[int, None] = {}
    for value in values:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int):
                found[item] = None
    return list(found)

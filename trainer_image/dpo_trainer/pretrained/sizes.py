"""Do the sizes in config.json fit the weights? A model that can't be built is refused before any GPU is held.

A model is built from config.json before its weights are read, so a wrong number there asks for any amount of memory or time. What must be
equal is compared; of everything else only what no model with these weights can have is refused.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dpo_operator.api.models.config import ModelConfigError, shape_of
from dpo_operator.api.models.shape import MAX_WIDTH
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration

Shapes = Mapping[str, tuple[int, ...]]

# Most tokens that a position may have, by any model's configuration.
MAX_POSITIONS: Final = 2**31
# How many times more parameters config.json may describe than are stored: what repeats, such as an output layer, is stored once.
MOST_PARAMETERS: Final = 4

_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight")
_POSITIONS = re.compile(r"(?:^|\.)(?:wpe|embed_positions|position_embeddings)\.weight")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
# Names that say that the embedding has a width of its own.
_OTHER_WIDTHS = ("word_embed_proj_dim", "embedding_size")
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
# Each is a dimension of a weight, or divides one.
_DIMENSIONS = frozenset(
    {
        "hidden_size", "n_embd", "d_model", "vocab_size", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim",
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "moe_intermediate_size",
    }
)  # fmt: skip
_SIZE = re.compile(r"_(?:size|dim|rank|layers|heads|experts|groups)$|^(?:num|n|d)_")


def check_sizes(config: Mapping[str, Any], shapes: Shapes, label: str) -> None:
    """Compare the content of config.json with the shapes of all weights.

    Raises TrainerError INVALID_CONFIGURATION with the name, its value and what the weights have.
    """
    text = config.get("text_config")
    for part in (config, text) if isinstance(text, Mapping) else (config,):
        _check_bounds(part, max((size for shape in shapes.values() for size in shape), default=0), label)
    language = text if isinstance(text, Mapping) else config
    _check_layers(language, shapes, label)
    _check_embedding(language, shapes, label)
    _check_positions(language, shapes, label)
    _check_count(config, shapes, label)


def _check_bounds(config: Mapping[str, Any], largest: int, label: str) -> None:
    for name, value in _integers(config):
        if name in _LENGTHS:
            most, found = MAX_POSITIONS, f"positions up to {MAX_POSITIONS} are believed"
        elif name in _DIMENSIONS:
            most, found = largest, f"the largest dimension of the weights is {largest}"
        elif _SIZE.search(name) and name not in _LAYERS:
            most, found = max(largest, MAX_WIDTH), f"sizes up to {max(largest, MAX_WIDTH)} are believed"
        else:
            continue
        if value > most:
            raise _wrong(label, name, value, found)


def _check_layers(config: Mapping[str, Any], shapes: Shapes, label: str) -> None:
    """Weights may have more layers than the configuration, such as those that predict several tokens."""
    numbers = [int(found[1]) for name in shapes if (found := _LAYER.search(name))]
    most = max(numbers) + 1 if numbers else len(shapes)
    for name, value in _integers(config):
        if name in _LAYERS and not 0 < value <= most:
            raise _wrong(
                label, name, value, f"the weights have {most} layers" if numbers else f"the weights are {most} tensors"
            )


def _check_embedding(config: Mapping[str, Any], shapes: Shapes, label: str) -> None:
    found = [shape for name, shape in shapes.items() if _EMBEDDING.search(name) and len(shape) == 2]
    if not found:
        return
    expected = {"vocab_size": 0}
    if not any(config.get(name) is not None for name in _OTHER_WIDTHS):
        expected |= dict.fromkeys(_WIDTHS, 1)
    for name, axis in expected.items():
        value = config.get(name)
        if isinstance(value, int) and all(shape[axis] != value for shape in found):
            raise _wrong(label, name, value, f"the embedding in the weights is {found[0][0]} by {found[0][1]}")


def _check_positions(config: Mapping[str, Any], shapes: Shapes, label: str) -> None:
    rows = [shape[0] for name, shape in shapes.items() if _POSITIONS.search(name) and len(shape) == 2]
    for name in _LENGTHS:
        value = config.get(name)
        if rows and isinstance(value, int) and value > max(rows):
            raise _wrong(label, name, value, f"the weights have {max(rows)} positions")


def _check_count(config: Mapping[str, Any], shapes: Shapes, label: str) -> None:
    """Compare the number of parameters, for families whose parameters are counted by a rule of their own."""
    try:
        shape = shape_of(config)
    except ModelConfigError:
        return
    found = sum(map(math.prod, shapes.values()))
    if shape.exact and shape.parameters > MOST_PARAMETERS * found:
        raise invalid_configuration(
            f"{label}: the sizes in config.json describe a model of {shape.parameters} parameters, and the weights have {found}; use the "
            "config.json that belongs to these weights"
        )


def _integers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers of a configuration by name, also those in lists: some families have a size for each layer."""
    for name, value in config.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and not isinstance(item, bool):
                yield name, item


def _wrong(label: str, name: str, value: int, found: str) -> TrainerError:
    shown = str(value) if abs(value) < 10**24 else f"a number of {value.bit_length()} bits"
    return invalid_configuration(
        f"{label}: {name} in config.json is {shown}, and {found}; use the config.json that belongs to these weights"
    )

"""From a Hugging Face config.json to the dimensions that memory and time depend on.

Each family has a rule for its layer, whose parameters are counted to the last one. Other families are taken for Llamas, and the
shape says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dpo_operator.api.models.shape import MAX_LAYERS, MAX_WIDTH, Matrix, ModelShape, Reads


class ModelConfigError(ValueError):
    """A config.json that can't be used. The message says what was expected and what was found."""


@dataclass(frozen=True)
class _Family:
    """How a family of Llama's descent differs from Llama.

    qkv_bias, out_bias, mlp_bias: a name in config.json, or the answer. head_norm: of queries and keys: none, one vector for all
    heads, or as wide as all heads together. weightless: norms without parameters. experts: name of their number.
    default_head: width of a head where the configuration does not say.
    """

    qkv_bias: str | bool = "attention_bias"
    out_bias: str | bool = "attention_bias"
    mlp_bias: str | bool = False
    norms: int = 2
    head_norm: str = "none"
    weightless: bool = False
    fused: bool = False
    tied: bool = False
    experts: str | None = None
    default_head: int | None = None
    eager: bool = False


_FAMILIES: dict[str, _Family] = {
    "llama": _Family(mlp_bias="mlp_bias"),
    "mistral": _Family(qkv_bias=False, out_bias=False),
    "mixtral": _Family(qkv_bias=False, out_bias=False, experts="num_local_experts"),
    "qwen2": _Family(qkv_bias=True, out_bias=False),
    "qwen2_moe": _Family(qkv_bias="qkv_bias", out_bias=False, experts="num_experts"),
    "qwen3": _Family(head_norm="head"),
    "qwen3_moe": _Family(head_norm="head", experts="num_experts"),
    "gemma": _Family(tied=True, default_head=256),
    "gemma2": _Family(norms=4, tied=True, default_head=256, eager=True),
    "gemma3_text": _Family(norms=4, head_norm="head", tied=True, default_head=256),
    "granite": _Family(mlp_bias="mlp_bias"),
    "olmo": _Family(weightless=True),
    "olmo2": _Family(head_norm="full"),
    "phi3": _Family(qkv_bias=False, out_bias=False, fused=True),
    "smollm3": _Family(mlp_bias="mlp_bias", tied=True),
}
# What families with experts call the number of them.
_EXPERTS = frozenset({"n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"})
# Where the answer is yes unless the configuration says no.
_YES = frozenset({"qkv_bias"})


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The dimensions. config: the content of config.json; of a model with several parts the text model counts.

    Raises ModelConfigError.
    """
    if not isinstance(config, Mapping):
        raise ModelConfigError(f"config.json: expected an object, found {type(config).__name__}")
    outer, text = config, config.get("text_config")
    if isinstance(text, Mapping):
        config = {"dtype": outer.get("dtype", outer.get("torch_dtype"))} | dict(text)
        if "tie_word_embeddings" in outer:
            config["tie_word_embeddings"] = outer["tie_word_embeddings"]
        config.setdefault("model_type", outer.get("model_type"))
    family = str(config.get("model_type") or "unknown")[:64]
    family = {"gemma3": "gemma3_text"}.get(family, family)
    try:
        if family in _OTHERS:
            return _OTHERS[family](_Values(config, family))
        return _llama_like(_Values(config, family), _FAMILIES.get(family))
    except ValidationError as error:
        found = error.errors()[0]
        raise ModelConfigError(f"config.json: {'.'.join(map(str, found['loc']))}: {found['msg']}") from error


class _Values:
    """Values of config.json, checked as they are asked for."""

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self.config, self.family = config, family

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """A whole number under the first of the names that is there. Raises ModelConfigError."""
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_WIDTH:
                raise ModelConfigError(
                    f"config.json: {name}: expected a whole number from {least} to {MAX_WIDTH}, found {str(value)[:80]!r}"
                )
            return value
        if default is None:
            raise ModelConfigError(
                f"config.json: expected {' or '.join(names)}, found none (model_type {self.family}); is it the config.json of a "
                "decoder-only language model?"
            )
        return default

    def flag(self, name: str | bool, default: bool = False) -> bool:
        """A yes or no."""
        if isinstance(name, bool):
            return name
        value = self.config.get(name)
        return (default or name in _YES) if value is None else bool(value)

    @property
    def tied(self) -> Callable[[bool], bool]:
        return lambda default: self.flag("tie_word_embeddings", default)

    @property
    def file_bytes(self) -> int:
        """Of one element in the weight files."""
        name = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")
        return 2 if "16" in name else 4

    def layers(self) -> int:
        found = self.count("num_hidden_layers", "n_layer", "num_layers")
        if found > MAX_LAYERS:
            raise ModelConfigError(f"config.json: num_hidden_layers: expected at most {MAX_LAYERS}, found {found}")
        return found

    def head_width(self, hidden: int, heads: int, default: int | None = None) -> int:
        return self.count("head_dim", default=default or max(1, hidden // heads))


def _llama_like(values: _Values, family: _Family | None) -> ModelShape:
    if family is None and (experts := sorted(_EXPERTS & values.config.keys())):
        raise ModelConfigError(
            f"config.json: the family {values.family} has experts ({experts[0]}) and is not known here; to count it as a dense model would "
            "be wrong many times over"
        )
    rule = family or _Family(mlp_bias="mlp_bias")
    hidden, layers = values.count("hidden_size", "n_embd", "d_model"), values.layers()
    heads = values.count("num_attention_heads", "n_head")
    head = values.head_width(hidden, heads, rule.default_head)
    queries, keys = heads * head, values.count("num_key_value_heads", default=heads) * head
    qkv_bias, out_bias = values.flag(rule.qkv_bias), values.flag(rule.out_bias)
    if rule.fused:
        matrices = [_each("qkv_proj", "attention", hidden, queries + 2 * keys, layers, qkv_bias)]
    else:
        wide = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
        matrices = [_each(name, "attention", hidden, width, layers, qkv_bias) for name, width in wide]
    matrices.append(_each("o_proj", "context", queries, hidden, layers, out_bias))
    mlp, inner = _mlp(values, rule, hidden, layers)
    norm = 0 if rule.weightless else hidden
    head_norm = {"none": 0, "head": 2 * head, "full": queries + keys}[rule.head_norm]
    return ModelShape(
        family=values.family, exact=family is not None, layers=layers, hidden=hidden, heads=heads, queries=queries, keys=keys,
        inner=inner, norm="layer" if rule.weightless else "rms", norms=rule.norms, head_norm=head_norm > 0,
        eager=rule.eager, vocabulary=values.count("vocab_size"), tied=values.tied(rule.tied),
        small=layers * (rule.norms * norm + head_norm) + norm, file_bytes=values.file_bytes, matrices=(*matrices, *mlp),
    )  # fmt: skip


def _mlp(values: _Values, rule: _Family, hidden: int, layers: int) -> tuple[list[Matrix], int]:
    """Matrices of the MLPs, dense and of experts, and how wide the widest is as one token sees it."""
    if rule.experts is None:
        inner = values.count("intermediate_size", "n_inner", "ffn_dim")
        return _gated(rule, hidden, inner, layers, values.flag(rule.mlp_bias)), inner
    experts, used = values.count(rule.experts, "num_experts", "num_local_experts"), values.count("num_experts_per_tok")
    width = values.count("moe_intermediate_size", "intermediate_size")
    step, dense = values.count("decoder_sparse_step", default=1), values.config.get("mlp_only_layers") or []
    dense = set(dense) if isinstance(dense, list) and all(isinstance(item, int) for item in dense) else set()
    sparse = sum((number + 1) % step == 0 and number not in dense for number in range(layers))
    # All experts of a layer are one tensor, on which no adapter is put by name.
    found = [
        _each(
            "experts.gate_up_proj", "mlp", hidden, 2 * width, sparse * experts, active=sparse * used, adaptable=False
        ),
        _each("experts.down_proj", "inner", width, hidden, sparse * experts, active=sparse * used, adaptable=False),
        _each("gate", "router", hidden, experts, sparse, adaptable=False),
    ]
    inner = used * width
    if values.family == "qwen2_moe":
        shared = values.count("shared_expert_intermediate_size")
        found += _gated(rule, hidden, shared, sparse, False)
        found.append(_each("shared_expert_gate", "router", hidden, 1, sparse))
        inner += shared
    if dense_layers := layers - sparse:
        found += _gated(rule, hidden, values.count("intermediate_size"), dense_layers, False)
    return found, inner


def _gated(rule: _Family, hidden: int, inner: int, count: int, bias: bool) -> list[Matrix]:
    if rule.fused:
        up = [_each("gate_up_proj", "mlp", hidden, 2 * inner, count, bias)]
    else:
        up = [_each(name, "mlp", hidden, inner, count, bias) for name in ("gate_proj", "up_proj")]
    return [*up, _each("down_proj", "inner", inner, hidden, count, bias)]


def _each(
    name: str, reads: Reads, inputs: int, outputs: int, count: int, bias: bool = False, *,
    active: int | None = None, adaptable: bool = True,
) -> Matrix:  # fmt: skip
    return Matrix(
        name=name, reads=reads, inputs=inputs, outputs=outputs, count=count, bias=bias, adaptable=adaptable,
        active=count if active is None else active,
    )  # fmt: skip


def _plain(
    values: _Values, names: Mapping[str, str], hidden: int, inner: int, *, small: int, tied: bool, bias: bool = True,
    fused: bool = False, plain_activation: bool = True, norms: int = 2, keys: int | None = None,
) -> ModelShape:  # fmt: skip
    """A family with biases, LayerNorm and an MLP without a gate. names: what it calls its matrices."""
    layers, heads = values.layers(), values.count("num_attention_heads", "n_head")
    keys = hidden if keys is None else keys
    if fused:
        attention = [_each(names["qkv"], "attention", hidden, 3 * hidden, layers, bias)]
    else:
        wide = (("q", hidden), ("k", keys), ("v", keys))
        attention = [_each(names[part], "attention", hidden, width, layers, bias) for part, width in wide]
    return ModelShape(
        family=values.family, layers=layers, hidden=hidden, heads=heads, queries=hidden, keys=keys, inner=inner, gated=False,
        plain_activation=plain_activation, norm="layer", norms=norms, vocabulary=values.count("vocab_size"), tied=tied,
        small=small + layers * norms * 2 * hidden + 2 * hidden, file_bytes=values.file_bytes,
        matrices=(
            *attention,
            _each(names["out"], "context", hidden, hidden, layers, bias),
            _each(names["up"], "mlp", hidden, inner, layers, bias),
            _each(names["down"], "inner", inner, hidden, layers, bias),
        ),
    )  # fmt: skip


def _gpt2(values: _Values) -> ModelShape:
    hidden = values.count("n_embd", "hidden_size")
    positions = values.count("n_positions", "max_position_embeddings") * hidden
    plain = values.config.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_fast", "quick_gelu")
    names = {"qkv": "c_attn", "out": "c_proj", "up": "c_fc", "down": "c_proj"}
    inner = values.count("n_inner", default=4 * hidden)
    return _plain(
        values, names, hidden, inner, small=positions, tied=values.tied(True), fused=True, plain_activation=plain
    )


def _gpt_neox(values: _Values) -> ModelShape:
    hidden, inner = values.count("hidden_size"), values.count("intermediate_size")
    names = {"qkv": "query_key_value", "out": "dense", "up": "dense_h_to_4h", "down": "dense_4h_to_h"}
    shape = _plain(values, names, hidden, inner, small=0, tied=values.tied(False), fused=True)
    if values.flag("attention_bias", True):
        return shape
    # The biases that can be left out are those of attention.
    without = tuple(m.model_copy(update={"bias": m.bias and m.reads in ("mlp", "inner")}) for m in shape.matrices)
    return shape.model_copy(update={"matrices": without})


def _opt(values: _Values) -> ModelShape:
    hidden = values.count("hidden_size")
    if (narrow := values.count("word_embed_proj_dim", default=hidden)) != hidden:
        raise ModelConfigError(
            f"config.json: word_embed_proj_dim: expected {hidden} (hidden_size), found {narrow}; such an embedding is not estimated"
        )
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj", "up": "fc1", "down": "fc2"}
    positions = (values.count("max_position_embeddings") + 2) * hidden
    bias, inner = values.flag("enable_bias", True), values.count("ffn_dim", "intermediate_size")
    return _plain(values, names, hidden, inner, small=positions, tied=values.tied(True), bias=bias)


def _phi(values: _Values) -> ModelShape:
    hidden, inner = values.count("hidden_size"), values.count("intermediate_size")
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "dense", "up": "fc1", "down": "fc2"}
    heads = values.count("num_attention_heads")
    keys = values.count("num_key_value_heads", default=heads) * max(1, hidden // heads)
    # One norm in a layer, and a bias in the output layer.
    small, plain = values.count("vocab_size"), values.config.get("hidden_act", "gelu_new") != "gelu_new"
    return _plain(
        values, names, hidden, inner, small=small, tied=values.tied(False), norms=1, keys=keys, plain_activation=plain
    )


def _starcoder2(values: _Values) -> ModelShape:
    hidden, inner = values.count("hidden_size"), values.count("intermediate_size")
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj", "up": "c_fc", "down": "c_proj"}
    heads = values.count("num_attention_heads")
    keys = values.count("num_key_value_heads", default=heads) * max(1, hidden // heads)
    return _plain(
        values, names, hidden, inner, small=0, tied=values.tied(True), bias=values.flag("use_bias", True), keys=keys
    )


_OTHERS: dict[str, Callable[[_Values], ModelShape]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "phi": _phi,
    "starcoder2": _starcoder2,
}

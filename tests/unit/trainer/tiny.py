"""A tiny model folder made on the spot: byte-level tokenizer, configuration, safetensors of zeros."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "max_position_embeddings": 4096,
    "bos_token_id": 257,
    "eos_token_id": 258,
}


def tiny_model(
    folder: Path,
    *,
    bos: bool = True,
    eos: str | None = "</s>",
    template: str | None = None,
    config: dict[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """Write a model folder. Token ids: bytes 0 to 255, " w" as one token 256, then SPECIAL from 257 on."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"Ġw": 256}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "w")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {"eos_token": eos} if eos else {}
    settings |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    size = len(vocabulary) + len(SPECIAL)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": size} | (config or {})))
    _write_weights(folder, shards, size)
    return folder


def _write_weights(folder: Path, shards: int, size: int) -> None:
    tensors = {
        "model.embed_tokens.weight": np.zeros((size, 4), np.float32),
        "model.norm.weight": np.ones(4, np.float32),
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for number, (name, tensor) in enumerate(tensors.items(), start=1):
        file = f"model-{number:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, folder / file)
        weight_map[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path

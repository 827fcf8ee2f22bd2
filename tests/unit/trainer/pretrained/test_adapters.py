"""An adapter to start from is read as data: what it is, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.pretrained import adapters
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none", "target_modules": ["q_proj"],
    "base_model_name_or_path": "org/base", "use_dora": False, "use_rslora": True, "modules_to_save": None, "loftq_config": {},
    "lora_bias": False, "init_lora_weights": True, "megatron_core": "megatron.core", "layer_replication": None,
}  # fmt: skip
LAYER = "base_model.model.model.layers.0"


def an_adapter(
    folder: Path, *, modules: tuple[str, ...] = ("self_attn.q_proj",), more: tuple[str, ...] = (), **config: Any
) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    tensors = {f"{LAYER}.{m}.lora_{side}.weight": np.ones((4, 4), np.float32) for m in modules for side in "AB"}
    save_file(tensors | {name: np.ones(4, np.float32) for name in more}, folder / "adapter_model.safetensors")
    return folder


def test_targets_are_those_of_the_weights(tmp_path: Path):
    # An expression that a regular expression engine would work on for ever.
    found = adapters.read(an_adapter(tmp_path, target_modules="((a+)+)+b", rank_pattern={"q_proj": 4}), "a")
    assert (found.rank, found.alpha, found.dora, found.rslora) == (4, 8.0, False, True)
    assert found.modules == ("model.layers.0.self_attn.q_proj",)
    assert (found.parameters, dict(found.ranks), found.base, found.template) == ((), {"q_proj": 4}, "org/base", None)


@pytest.mark.parametrize("init", [None, False, "gaussian", "eva", "orthogonal"])
def test_initial_matrices_that_leave_the_model_alone_are_fine(tmp_path: Path, init: Any):
    assert adapters.read(an_adapter(tmp_path, init_lora_weights=init), "a").rank == 4


def test_experts_are_weights_that_are_adapted_in_place(tmp_path: Path):
    modules = ("self_attn.q_proj", "mlp.experts", "mlp.experts.base_layer", "mlp.shared_experts.up_proj")
    names = ["experts.down_proj", "experts.gate_up_proj", "shared_experts.up_proj.weight"]
    found = adapters.read(an_adapter(tmp_path, modules=modules, target_parameters=names), "a")
    assert found.modules == ("model.layers.0.self_attn.q_proj",)
    assert found.parameters == tuple(names)


def test_the_template_beside_it_is_found(tmp_path: Path):
    an_adapter(tmp_path)
    for value in ("settings", [{"name": "rag", "template": "no"}, {"name": "default", "template": "settings"}]):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        assert adapters.read(tmp_path, "a").template == "settings"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert adapters.read(tmp_path, "a").template == "file"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "IA3"}, "expected a LORA adapter of CAUSAL_LM, found 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "found 'LORA' of 'SEQ_CLS'"),
        ({"modules_to_save": ["lm_head"]}, "whole copies of modules .*lm_head.*; merge the adapter into its model first"),
        ({"bias": "all"}, "bias in adapter_config.json is all, which is not supported; merge"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config in adapter_config.json is"),
        ({"some_new_kind": {"file": "/etc/passwd"}}, "some_new_kind in adapter_config.json is"),
        ({"init_lora_weights": "pissa_niter_16"}, "is pissa_niter_16, so the adapter fits changed weights .*path_initial_model_for_weight_conv"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights in adapter_config.json is OLoRA, so .* or merge it into the model that it was trained on"),
        ({"init_lora_weights": ["pissa"]}, "init_lora_weights in adapter_config.json is"),
        ({"r": 10**9}, "r in adapter_config.json: expected a number above 0 and at most 1024, found '1000000000'"),
        ({"r": True}, "r in adapter_config.json: expected a number"),
        ({"lora_alpha": "8"}, "lora_alpha in adapter_config.json: expected a number"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern in adapter_config.json: expected names of modules"),
        ({"alpha_pattern": {"q_proj": -1}}, "q_proj in adapter_config.json: expected a number above 0"),
        ({"target_parameters": "experts.down_proj"}, "target_parameters in adapter_config.json: expected a list of names"),
        ({"modules": ()}, "expected floating-point weights, found none"),
        ({"more": (f"{LAYER}.lora_embedding_A",)}, "expected the matrices of a LoRA adapter alone, found .*lora_embedding_A"),
        ({"more": ("base_model.model.lm_head.weight",)}, "found base_model.model.lm_head.weight in adapter_model.safetensors"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], match: str):
    with pytest.raises(TrainerError, match=match) as caught:
        adapters.read(an_adapter(tmp_path, **change), "a")
    assert caught.value.exit_code is ExitCode.INVALID_CONFIGURATION


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"adapter_config.json": 9, "adapter_model.bin": 9}, r"found adapter_model\.bin\. Pickled weights run code"),
        ({"config.json": 9, "model.safetensors": 9}, r"found a whole model; name it as spec\.model\.name"),
        ({"README.md": 9}, r"no adapter_config\.json; found README\.md"),
        ({"adapter_config.json": 9}, r"no adapter_model\.safetensors"),
        ({"adapter_config.json": 2**21, "adapter_model.safetensors": 9}, "adapter_config.json has 2097152 bytes"),
    ],
)
def test_only_whole_safetensors_adapters_are_fetched(sizes: dict[str, int], match: str):
    with pytest.raises(TrainerError, match=match):
        adapters.file_names(sizes, "a")
    good = {
        "adapter_config.json": 9,
        "adapter_model.safetensors": 9,
        "adapter_model.bin": 9,
        "modeling.py": 9,
        "tokenizer_config.json": 9,
    }
    assert adapters.file_names(good, "a") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("base", ["org/base", "/old/place/base/", "BASE", ""])
def test_another_owner_or_folder_is_the_same_base(tmp_path: Path, base: str):
    found = adapters.read(an_adapter(tmp_path, base_model_name_or_path=base), "a")
    assert adapters.differs_from_base(found, "/models/base") == ""
    assert bool(adapters.differs_from_base(found, "org/other")) == bool(base)

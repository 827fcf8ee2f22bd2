"""Which weights targetModules mean, family by family, and that prepare refuses what a model lacks."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.model import Adapter
from dpo_trainer.runtime.errors import TrainerError
from tests.numerics.model.test_expert_adapters import MODELS, SIZES
from tests.numerics.ranks import on_ranks
from tests.unit.trainer.place import Place

pytestmark = pytest.mark.numerics

ATTENTION = {"k_proj", "o_proj", "q_proj", "v_proj"}
EXPERTS = {"experts.down_proj", "experts.gate_up_proj"}
QWEN = {"num_experts": 4, "moe_intermediate_size": 24, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    **MODELS,
    "llama": {"num_key_value_heads": 2},
    "llama-tied": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt2": {},
    "phi3": {"num_key_value_heads": 2},
    "qwen2_moe": {**QWEN, "shared_expert_intermediate_size": 16},
    "llama4_text": {**QWEN, "num_local_experts": 4, "head_dim": 8},
}


def resolved(cases: list[tuple[str, dict[str, Any]]], before: list[str] | None = None) -> list[Any]:
    """What each adapter covers on a model of a family, modules, parameters and left out, or the error's message."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.model.targets import resolve

    found: list[Any] = []
    for family, adapter in cases:
        config = AutoConfig.for_model(family.removesuffix("-tied"), **SIZES | FAMILIES[family], pad_token_id=0)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        try:
            targets = resolve(model, Adapter.model_validate({"type": "lora", **adapter}), before or ())
            found.append((set(targets.covered), targets.modules, targets.parameters, str(targets)))
        except TrainerError as error:
            found.append(f"{error.exit_code.name}: {error}")
    return found


def on(family: str, *targets: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return family, {"targetModules": list(targets), **more}


def test_all_linear_covers_layers_and_experts_alike():
    families = ["llama", "gpt2", "mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama4_text"]
    [found] = on_ranks(1, resolved, [on(family, "all-linear") for family in families])
    covered = {family: names for family, (names, *_) in zip(families, found, strict=True)}
    gated = {"down_proj", "gate_proj", "up_proj"}
    assert covered["llama"] == ATTENTION | gated
    assert covered["gpt2"] == {"c_attn", "c_proj", "c_fc"}
    assert covered["mixtral"] == covered["gpt_oss"] == ATTENTION | EXPERTS
    assert covered["qwen2_moe"] == ATTENTION | EXPERTS | {"shared_expert_gate"} | {f"shared_expert.{n}" for n in gated}
    shared = {f"shared_experts.{name}" for name in gated}
    assert covered["deepseek_v3"] > EXPERTS | gated | shared | {"kv_b_proj", "o_proj"}
    assert covered["llama4_text"] == ATTENTION | EXPERTS | {f"shared_expert.{name}" for name in gated}
    texts = {family: text for family, (*_, text) in zip(families, found, strict=True)}
    for family, router in (("mixtral", "gate"), ("gpt_oss", "router"), ("llama4_text", "router")):
        assert (
            f"output layer: lm_head; routers, whose least change sends tokens to other experts: {router})"
            in texts[family]
        )


def test_names_mean_layers_and_experts_by_the_end_of_their_path():
    cases = [
        on("mixtral", "q_proj", "w1", "w2", "w3"),
        on("deepseek_v3", "shared_experts.down_proj"),
        on("deepseek_v3", "model.layers.1.mlp.experts.down_proj"),
        on("mixtral", "gate"),
        on("llama", "self_attn.q_proj", "lm_head"),
    ]
    [found] = on_ranks(1, resolved, cases)
    assert [(modules, parameters) for _, modules, parameters, _ in found] == [
        (("q_proj",), ("experts.down_proj", "experts.gate_up_proj")),
        ((), ("shared_experts.down_proj.weight",)),
        ((), ("experts.down_proj",)),  # the only layer with experts
        ((), ("gate.weight",)),
        (("lm_head", "q_proj"), ()),
    ]


def test_what_can_not_be_adapted_is_refused_with_the_way_out():
    default = "q_proj (by default the targets are those of Llama); it has down_proj, gate_up_proj, o_proj, qkv_proj; name some of them"
    wanted = [
        (on("phi3", "q_proj", "v_proj"), default),
        (on("llama-tied", "q_proj", "lm_head"), "lm_head is the output layer, and its weights are the embedding's too"),
        (on("llama", "embed_tokens"), "model.embed_tokens is an embedding, and embeddings get no adapters; leave embed_tokens out"),
        (on("llama", "mlp"), "mlp is neither a linear layer nor experts; it has down_proj"),
        (on("llama", "norm"), "norm is neither a linear layer nor experts"),
        (on("mixtral", "w1"), "w1 is half of experts.gate_up_proj, which holds w1 and w3 of all experts; name both halves"),
        (on("mixtral", "all-linear", dropout=0.1), "spec.adapter.dropout: not possible for adapters on experts (experts.down_proj"),
        (on("mixtral", "w2", dora=True), "spec.adapter.dora: not possible for adapters on experts (experts.down_proj)"),
    ]  # fmt: skip
    [found] = on_ranks(1, resolved, [case for case, _ in wanted])
    for (case, text), message in zip(wanted, found, strict=True):
        assert message.startswith("INVALID_CONFIGURATION: "), case
        assert text in message, case


def test_a_run_goes_on_with_what_its_checkpoint_has():
    layers = [f"base_model.model.model.layers.{i}.self_attn.q_proj" for i in range(SIZES["num_hidden_layers"])]
    before = [f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"]
    # An earlier version took all-linear for the linear layers alone, with dropout too.
    [[(covered, modules, parameters, _)]] = on_ranks(1, resolved, [on("mixtral", "all-linear", dropout=0.1)], before)
    assert (covered, modules, parameters) == ({"q_proj"}, ("q_proj",), ())
    # Experts' names in a checkpoint do not tell which weights of the module they belong to.
    experts = ["base_model.model.model.layers.0.mlp.experts.lora_A.default.weight"]
    [[(covered, *_)]] = on_ranks(1, resolved, [on("mixtral", "all-linear")], experts)
    assert {"q_proj", "experts.down_proj"} <= covered


def prepare_phase(root: Path, targets: list[str]) -> tuple[int, str]:
    """Exit code and message of the prepare phase of a tiny Llama with an adapter."""
    from dpo_trainer import phases

    place = Place(root)
    document = json.loads(place.job().model_dump_json(by_alias=True, exclude_none=True))
    document["spec"]["adapter"] = {"type": "lora", "targetModules": targets}
    (root / "job.json").write_text(json.dumps(document))
    os.environ.update(DPO_METRICS_PORT="0", DPO_TERMINATION_LOG=str(root / "ended"))
    code = phases.run("prepare", root / "job.json", place.work.root)
    return code, (root / "ended").read_text()


def test_prepare_refuses_targets_that_the_model_lacks(tmp_path: Path):
    [(code, message)] = on_ranks(1, prepare_phase, tmp_path / "bad", ["c_attn"])
    assert code == ExitCode.INVALID_CONFIGURATION
    assert "the model has no module c_attn; it has" in message
    [(code, _)] = on_ranks(1, prepare_phase, tmp_path / "good", ["q_proj"])
    assert code == ExitCode.OK
    # A run that began under an earlier version continues.
    (tmp_path / "bad" / "work" / "checkpoints" / "step-00000010").mkdir(parents=True)
    [(code, _)] = on_ranks(1, prepare_phase, tmp_path / "bad", ["c_attn"])
    assert code == ExitCode.OK

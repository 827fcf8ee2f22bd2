"""Answer log-probs of many architectures: the short way through the head equals each answer scored on its own."""

from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import VOCABULARY, a_job, plain_training, some_pairs, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

COMMON = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "max_position_embeddings": 64, "initializer_range": 0.2}  # fmt: skip
GATED = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}

# What each has around its output layer, or unlike Llama before it.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**GATED, "model_type": "llama"},
    "llama, tied": {**GATED, "model_type": "llama", "tie_word_embeddings": True},
    "qwen2, attention bias": {**GATED, "model_type": "qwen2"},
    "gemma2, capped logits": {**GATED, "model_type": "gemma2", "final_logit_softcapping": 2.0, "head_dim": 8},
    "cohere, scaled logits": {**GATED, "model_type": "cohere", "logit_scale": 0.25},
    "granite, divided logits": {**GATED, "model_type": "granite", "logits_scaling": 4.0},
    "phi, head with bias": {**COMMON, "model_type": "phi", "intermediate_size": 48},
    "mixtral, experts": {**GATED, "model_type": "mixtral", "num_local_experts": 4, "router_jitter_noise": 0.1},
    "gpt2, learned positions": {"model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4,
                                "n_positions": 64, "initializer_range": 0.2},
    "bloom, no position ids": {"model_type": "bloom", "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2,
                               "n_head": 4, "initializer_range": 0.2},
}  # fmt: skip


def worst_differences() -> dict[str, tuple[float, float]]:
    """Architecture -> largest difference from answers scored alone, and from whole logits; nats."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.batches.batch import collate
    from dpo_trainer.model.load import turn_off_dropout
    from dpo_trainer.model.policy import Policy

    data = some_pairs(4)
    found = {}
    for name, settings in ARCHITECTURES.items():
        torch.manual_seed(1)
        config = AutoConfig.for_model(**settings)
        turn_off_dropout(config)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
        batch = collate(data, range(4))
        with torch.no_grad():
            short, whole = Policy(model)(batch)[0], Policy(model)(batch, whole_logits=True)[0]
            alone = []
            for pair in (data[i] for i in range(4)):
                for answer in (pair.chosen, pair.rejected):
                    ids = torch.tensor(np.concatenate([pair.prompt, answer])[None].astype(np.int64))
                    logps = model(ids).logits[0, :-1].double().log_softmax(-1)
                    answered = logps.gather(1, ids[0, 1:, None])[len(pair.prompt) - 1 :]
                    head = answered[: min(len(pair.chosen), len(pair.rejected))]
                    alone.append(torch.stack([answered.sum(), head.sum()]))
        expected = torch.stack(alone)
        found[name] = ((short - expected).abs().max().item(), (short - whole).abs().max().item())
    return found


@pytest.fixture(scope="module")
def differences() -> dict[str, tuple[float, float]]:
    return on_ranks(1, worst_differences)[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_answers_scored_alone(differences: dict[str, tuple[float, float]], name: str):
    alone, whole = differences[name]
    # Sums over up to 20 tokens of float32 log-probs, in batches of other shapes.
    assert alone < 1e-4
    assert whole < 1e-4


def head_calls() -> tuple[list[int], int]:
    """Rows that enter the output layer in the short way and with whole logits, and the answers' tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dpo_trainer.batches.batch import collate
    from dpo_trainer.model.policy import Policy

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ARCHITECTURES["llama"]))
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].flatten(0, -2).shape[0]))
    batch = collate(some_pairs(3), [0, 1, 2])
    with torch.no_grad():
        Policy(model)(batch)
        Policy(model)(batch, whole_logits=True)
    return rows, len(batch.scored_targets)


def test_only_answer_tokens_enter_the_head():
    [(rows, answer_tokens)] = on_ranks(1, head_calls)
    assert rows[0] == answer_tokens
    assert rows[1] > 2 * answer_tokens


def make_opt(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    settings = {**COMMON, "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 16, "init_std": 0.2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings)).save_pretrained(folder)


def test_a_model_that_bypasses_its_transformer_uses_whole_logits(tmp_path: Path):
    # OPT calls its decoder itself, so handing it hidden states has no effect; the first pair shows that.
    work = WorkDir(tmp_path)
    some_pairs(9).save(work.train_data)
    on_ranks(1, make_opt, work.model)
    document = a_job(maxSteps=4)
    got = on_ranks(2, train_on_rank, document, tmp_path)[0]
    [expected] = on_ranks(1, plain_training, document, work.model, some_pairs(9), 4)
    assert got["warnings"] == ["WholeLogits"]
    for line, plain in zip(got["steps"], expected["steps"], strict=True):
        assert line["loss"] == pytest.approx(plain["loss"], abs=1e-4)
        assert line["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)

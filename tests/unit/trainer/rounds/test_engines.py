"""Sampled answers: what draws them, and what happens when memory runs out."""

from typing import Any

import numpy as np
import pytest
import torch

from dpo_trainer.model.drawing import draw
from dpo_trainer.rounds.engines.engine import numbers, seed_of
from dpo_trainer.rounds.engines.transformers_engine import TransformersEngine, answer_logps
from dpo_trainer.rounds.units import Answer, Sampling

pytestmark = pytest.mark.unit

SAMPLING = Sampling(1.0, 1.0, 6, (2,))


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def same(left: list[tuple[Answer, ...]], right: list[tuple[Answer, ...]]) -> bool:
    return all(
        a.ids.tolist() == b.ids.tolist() and np.allclose(a.logps, b.logps, atol=1e-5)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_numbers_belong_to_a_round_a_prompt_and_a_sample():
    places = [(seed, r, prompt, sample) for seed in (0, 1) for r in (0, 1) for prompt in (0, 1) for sample in (0, 1)]
    drawn = {numbers(*place, 5).tobytes() for place in places}
    assert len(drawn) == len(places) == len({seed_of(*place) for place in places})
    assert all(0 <= seed_of(*place) < 2**63 for place in places)
    assert numbers(0, 1, 2, 3, 50)[:5].tolist() == numbers(0, 1, 2, 3, 5).tolist()


def test_draws_follow_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    by = torch.from_numpy(np.random.default_rng(0).random(4000))
    chosen, logps = draw(logits, by)
    shares = torch.bincount(chosen, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)
    assert torch.allclose(logps[chosen == 1], torch.tensor(0.3, dtype=torch.float64).log())
    # Of the most likely tokens that have 0.7 together there are two; log-probs stay those of the whole distribution.
    chosen, logps = draw(logits, by, top_p=0.7)
    assert set(chosen.tolist()) == {0, 1}
    assert torch.allclose(logps[chosen == 1], torch.tensor(0.3, dtype=torch.float64).log())
    cold, _ = draw(logits, by, temperature=0.05)
    assert set(cold.tolist()) == {0}


def test_answers_do_not_depend_on_what_else_is_answered(model: Any):
    prompts = [np.array(ids, dtype=np.int32) for ids in ([1, 5], [1, 7, 8, 9], [1, 4, 6])]
    cpu = torch.device("cpu")
    together = TransformersEngine(model, cpu, 3, batch=64).answer(prompts, [10, 11, 12], 3, SAMPLING, 1)
    alone = [
        TransformersEngine(model, cpu, 3, batch=2).answer([prompt], [place], 3, SAMPLING, 1)[0]
        for prompt, place in zip(prompts, (10, 11, 12), strict=True)
    ]
    assert same(together, alone)
    other_round = TransformersEngine(model, cpu, 3, batch=64).answer(prompts, [10, 11, 12], 3, SAMPLING, 2)
    assert not same(together, other_round)
    ends = {len(answer.ids) for answers in together for answer in answers if answer.ended}
    assert ends
    assert all(a.ended == (a.ids[-1] == 2) for answers in together for a in answers)


def test_log_probs_are_those_of_a_plain_pass(model: Any):
    prompts = [np.array(ids, dtype=np.int32) for ids in ([1, 5], [1, 7, 8, 9])]
    found = TransformersEngine(model, torch.device("cpu"), 0, batch=8).answer(prompts, [0, 1], 2, SAMPLING, 1)
    answers = [answer for one in found for answer in one]
    asked = [prompt for prompt in prompts for _ in range(2)]
    again = answer_logps(model, asked, [answer.ids for answer in answers], torch.device("cpu"), batch=3)
    assert again == pytest.approx([answer.logp for answer in answers], abs=1e-4)


def test_memory_that_runs_out_halves_the_batch(model: Any, monkeypatch: pytest.MonkeyPatch):
    prompts = [np.array([1, 5 + i], dtype=np.int32) for i in range(4)]
    whole = TransformersEngine(model, torch.device("cpu"), 0, batch=8).answer(prompts, [0, 1, 2, 3], 2, SAMPLING, 1)
    said: list[tuple[int, str]] = []
    small = TransformersEngine(model, torch.device("cpu"), 0, batch=8, fewer=lambda *words: said.append(words))
    generate = small._generate

    def few_fit(asked: Any, by: Any, sampling: Sampling) -> list[Answer]:
        if len(asked) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return generate(asked, by, sampling)

    monkeypatch.setattr(small, "_generate", few_fit)
    assert same(small.answer(prompts, [0, 1, 2, 3], 2, SAMPLING, 1), whole)
    assert small.batch == 2
    assert [batch for batch, _ in said] == [4, 2]
    assert "8 answers at once; from now on 4" in said[0][1]
    monkeypatch.setattr(small, "_generate", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        small.answer(prompts, [0, 1, 2, 3], 2, SAMPLING, 1)

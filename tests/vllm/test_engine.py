"""vLLM's answers and log-probs beside those of transformers, for the same model and prompts."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpo_trainer.rounds.engines.transformers_engine import TransformersEngine
from tests import tied
from tests.conftest import REPOSITORY
from tests.vllm.answers import GREEDY, ROUND, SAMPLES, SEED, TOKENS, prompts

pytestmark = pytest.mark.vllm

# Nats between the two most likely tokens, below which two engines may round to different ones.
NEAR_TIE = 1e-3
# Nats a token.
ALLOWED = 2e-2


@pytest.fixture(scope="module")
def found(python: str, model: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("answers") / "answers.json"
    paths = [REPOSITORY, REPOSITORY / "operator", REPOSITORY / "trainer_image"]
    done = tied.run(
        [python, "-m", "tests.vllm.answers", str(model), str(file), str(shared / "models" / "stories260K")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        cwd=REPOSITORY,
        stderr=sys.stderr,
        check=False,
    )
    assert done.returncode == 0
    answers: dict[str, Any] = json.loads(file.read_text())
    return answers


@pytest.fixture(scope="module")
def llama(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def logps_of(llama: Any, prompt: np.ndarray, ids: list[int]) -> torch.Tensor:
    """Log-probs of all tokens at the places of an answer: [tokens, vocabulary]."""
    whole = torch.tensor([[*prompt.tolist(), *ids]])
    with torch.no_grad():
        return llama(input_ids=whole).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)


def test_greedy_answers_are_equal_up_to_a_near_tie(found: dict[str, Any], llama: Any):
    engine = TransformersEngine(llama, torch.device("cpu"), SEED, batch=64)
    ours = engine.answer(prompts(), list(range(32)), 1, GREEDY, ROUND)
    theirs = [each[0]["ids"] for each in found["greedy"]]
    equal = 0
    for prompt, (one,), other in zip(prompts(), ours, theirs, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(one.ids, other, strict=False)) if a != b), None)
        if same is None:
            assert len(one.ids) == len(other)
            equal += 1
            continue
        best, second = logps_of(llama, prompt, one.ids.tolist())[same].topk(2).values
        assert best - second < NEAR_TIE, f"token {same} of an answer differs, and it is no near-tie"
    print(f"greedy: {equal} of 32 answers are the same to their end")
    assert equal >= 24
    ends = [each[0]["ended"] for each in found["greedy"]]
    assert ends == [other[-1] in GREEDY.end for other in theirs]


def test_log_probs_are_those_of_transformers(found: dict[str, Any], llama: Any):
    """At temperature 1 among all tokens, though the answers are drawn at 0.8 with top-p."""
    worst, sums = 0.0, []
    for prompt, answers in zip(prompts(), found["free"], strict=True):
        assert len(answers) == SAMPLES
        for answer in answers:
            assert len(answer["ids"]) == len(answer["logps"]) <= TOKENS
            own = logps_of(llama, prompt, answer["ids"]).gather(1, torch.tensor(answer["ids"])[:, None]).squeeze(1)
            worst = max(worst, float((own - torch.tensor(answer["logps"])).abs().max()))
            sums.append(float(own.sum()))
    print(f"log-probs: at most {worst:.1e} nats a token apart")
    assert worst < ALLOWED
    assert found["scored"] == pytest.approx(sums, abs=ALLOWED)


def test_draws_belong_to_a_seed_a_round_a_prompt_and_a_sample(found: dict[str, Any]):
    ids = [[answer["ids"] for answer in answers] for answers in found["free"]]
    assert [[answer["ids"] for answer in answers] for answers in found["alone"]] == ids[3:5]
    assert sum(first != second for first, second in ids) >= 24


def test_a_model_that_vllm_can_not_run_is_refused(found: dict[str, Any]):
    """Heads of 8."""
    assert "spec.iterative.generation.engine: vLLM can't work with this policy" in found["refusal"]
    assert "head_dim=8" in found["refusal"]
    assert "use engine transformers" in found["refusal"]

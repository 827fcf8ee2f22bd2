"""Units of answers: whole or not there, and of no other policy, prompts or settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpo_trainer.data.prompts import Prompt, PromptSet, Shares
from dpo_trainer.rounds.units import Answer, Sampling, Unit, load_unit, save_unit, unit_key

pytestmark = pytest.mark.unit

SAMPLING = Sampling(1.0, 1.0, 8, (2,))


def a_unit() -> Unit:
    rng = np.random.default_rng(0)

    def answer(length: int) -> Answer:
        ids = rng.integers(3, 90, length).astype(np.int32)
        return Answer(ids, -rng.random(length).astype(np.float32), bool(length % 2))

    return Unit(np.array([4, 0, 9]), tuple((answer(3), answer(5 + i)) for i in range(3)))


def test_a_unit_is_read_as_it_was_written(tmp_path: Path):
    unit, path = a_unit(), tmp_path / "generated" / "unit-00000.safetensors"
    save_unit(path, unit, "key")
    found = load_unit(path, "key")
    assert found is not None
    assert found.digest == unit.digest
    assert found.rows.tolist() == [4, 0, 9]
    assert found.answers[1][1].logp == unit.answers[1][1].logp
    assert [answer.ended for answer in found.answers[2]] == [True, True]
    assert found.answers[2][0].content.tolist() == unit.answers[2][0].ids[:-1].tolist()


def test_another_key_or_a_damaged_file_is_no_unit(tmp_path: Path):
    path = tmp_path / "generated" / "unit-00000.safetensors"
    assert load_unit(path, "key") is None
    save_unit(path, a_unit(), "key")
    assert load_unit(path, "other") is None
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert load_unit(path, "key") is None
    path.write_bytes(content[:100])
    assert load_unit(path, "key") is None


def test_the_key_changes_with_whatever_answers_depend_on():
    prompts = [Prompt(np.array([i, 5], dtype=np.int32), i, "q") for i in range(4)]
    made = PromptSet.of(prompts, Shares(1, None, 1, reuse=False), seed=0)
    other = PromptSet.of([replace(p, ids=p.ids + 1) for p in prompts], Shares(1, None, 1, reuse=False), seed=0)
    two, three = np.array([0, 1]), np.array([0, 1, 2])
    keys = {
        unit_key("policy", made, two, 4, SAMPLING, (0, 1)),
        unit_key("other", made, two, 4, SAMPLING, (0, 1)),
        unit_key("policy", other, two, 4, SAMPLING, (0, 1)),
        unit_key("policy", made, three, 4, SAMPLING, (0, 1)),
        unit_key("policy", made, two, 5, SAMPLING, (0, 1)),
        unit_key("policy", made, two, 4, replace(SAMPLING, temperature=0.9), (0, 1)),
        unit_key("policy", made, two, 4, SAMPLING, (0, 2)),
        unit_key("policy", made, two, 4, SAMPLING, (1, 1)),
        unit_key("policy", made, two, 4, SAMPLING, (0, 1), "vllm"),
    }
    assert len(keys) == 9

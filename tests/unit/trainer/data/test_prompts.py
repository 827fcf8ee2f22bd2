"""Prompts of rounds: none in two shares, the same by seed, and damage is noticed."""

from pathlib import Path

import numpy as np
import pytest

from dpo_trainer.data.prompts import Prompt, PromptSet, Shares
from dpo_trainer.runtime.errors import TrainerError

pytestmark = pytest.mark.unit


def some(count: int) -> list[Prompt]:
    return [Prompt(np.array([7, i], dtype=np.int32), 10 * i, f"Question\u2028{i}", None) for i in range(count)]


def test_no_prompt_is_in_two_shares():
    made = PromptSet.of(some(50), Shares(3, None, 8, reuse=False), seed=1)
    shares = [made.compared, *(made.of_round(r, reuse=False) for r in (1, 2, 3))]
    assert [len(share) for share in shares] == [8, 14, 14, 14]
    assert len(np.unique(np.concatenate(shares))) == 50
    # More rounds were asked for since: none are left for another one.
    assert len(made.of_round(4, reuse=False)) == 0


def test_the_seed_alone_decides_the_shares():
    wanted = Shares(2, 10, 4, reuse=False)
    first, same, other = (PromptSet.of(some(40), wanted, seed) for seed in (1, 1, 2))
    assert first.digest == same.digest != other.digest
    assert first.compared.tolist() != other.compared.tolist()


def test_too_few_prompts_are_refused_unless_they_may_be_reused():
    with pytest.raises(TrainerError, match=r"20 prompts for each of 2 rounds and 4 for the win rates.*found 30"):
        PromptSet.of(some(30), Shares(2, 20, 4, reuse=False), seed=0)
    made = PromptSet.of(some(30), Shares(2, 20, 4, reuse=True), seed=0)
    first, second = (made.of_round(r, reuse=True) for r in (1, 2))
    assert len(first) == len(second) == 20
    assert not set(made.compared) & {*first, *second}
    with pytest.raises(TrainerError, match="found 3 different ones"):
        PromptSet.of(some(3), Shares(2, None, 4, reuse=True), seed=0)


def test_what_was_saved_is_read_again(tmp_path: Path):
    made = PromptSet.of(some(12), Shares(1, None, 2, reuse=False), seed=0)
    made.save(tmp_path / "prompts")
    again = PromptSet.open(tmp_path / "prompts")
    assert again.digest == made.digest
    number = int(again.of_round(1, reuse=False)[3])
    [prompt] = again.read([number])
    assert (prompt.row, prompt.prompt, prompt.ids.tolist()) == (10 * number, f"Question\u2028{number}", [7, number])


def test_changed_prompts_are_refused(tmp_path: Path):
    PromptSet.of(some(12), Shares(1, None, 2, reuse=False), seed=0).save(tmp_path / "prompts")
    texts = tmp_path / "prompts" / "texts.jsonl"
    texts.write_text(texts.read_text().replace("Question", "Answer", 1))
    with pytest.raises(TrainerError, match="changed since they were prepared"):
        PromptSet.open(tmp_path / "prompts")

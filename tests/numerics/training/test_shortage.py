"""An evaluation that runs out of memory is done with fewer tokens at a time, or left out; the run goes on."""

import os
from pathlib import Path
from typing import Any

import pytest

from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.jobs import a_job, make_model, some_pairs, train_on_rank
from tests.numerics.ranks import RankFailed, on_ranks

pytestmark = pytest.mark.numerics

# Tokens of the pairs are 3 to 41.
BUDGET = 160


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> WorkDir:
    work = WorkDir(tmp_path_factory.mktemp("prepared"))
    some_pairs(8).save(work.train_data)
    some_pairs(12, seed=1).save(work.eval_data)
    on_ranks(1, make_model, work.model)
    return work


def a_copy(prepared: WorkDir, root: Path) -> WorkDir:
    root.mkdir()
    for name in ("model", "data"):
        (root / name).symlink_to(prepared.root / name)
    return WorkDir(root)


def a_document() -> dict[str, Any]:
    document = a_job(maxSteps=2)
    document["spec"] |= {
        "evaluation": {"everySteps": 2, "samples": 0, "microBatchTokens": BUDGET, "microBatchSize": 12},
        "checkpoint": {"everySteps": 1},
    }
    return document


def short_of_memory(document: dict[str, Any], root: Path, most: int, attempt: int = 1) -> dict[str, Any]:
    """One rank of a run; the last one has memory for so many tokens in an evaluation."""
    import torch

    from dpo_trainer.training import evaluate

    forward = evaluate.forward_all

    def short(*args: Any, **settings: Any) -> Any:
        for batch, scored in forward(*args, **settings):
            if batch.input_ids.numel() > most and int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
                torch.empty(1 << 60, dtype=torch.uint8)
            yield batch, scored

    evaluate.forward_all = short
    return train_on_rank(document, root, attempt)


def test_one_rank_tries_again_with_fewer_tokens(prepared: WorkDir, tmp_path: Path):
    work, plenty = a_copy(prepared, tmp_path / "short"), a_copy(prepared, tmp_path / "plenty")
    [found] = on_ranks(1, short_of_memory, a_document(), work.root, 60)
    [expected] = on_ranks(1, train_on_rank, a_document(), plenty.root)

    assert (found["status"], found["warnings"]) == ("Succeeded", [])
    assert found["evals"][0]["eval_loss"] == pytest.approx(expected["evals"][0]["eval_loss"], rel=1e-6)
    assert (work.root / "shortage.json").read_text() == '{"evaluation": 2, "ranking": 0, "samples": false}'
    assert not (plenty.root / "shortage.json").exists()


def test_an_evaluation_that_never_fits_is_left_out(prepared: WorkDir, tmp_path: Path):
    work = a_copy(prepared, tmp_path / "run")
    [found] = on_ranks(1, short_of_memory, a_document(), work.root, 0)
    assert (found["status"], found["evals"], found["warnings"]) == ("Succeeded", [], ["NoEvaluation"])
    assert len(found["steps"]) == 2


def test_of_several_ranks_the_next_attempt_does_with_less(prepared: WorkDir, tmp_path: Path):
    work = a_copy(prepared, tmp_path / "run")
    text = rf"An evaluation ran out of memory: .* The next attempt evaluates with {BUDGET // 2} tokens at a time"
    with pytest.raises(RankFailed, match=text):
        on_ranks(2, short_of_memory, a_document(), work.root, 100, patience=0)

    ranks = on_ranks(2, short_of_memory, a_document(), work.root, 100, 2)
    assert [rank["status"] for rank in ranks] == ["Succeeded"] * 2
    assert [line["step"] for line in ranks[0]["evals"]] == [2]


def test_of_several_ranks_a_pair_that_never_fits_costs_three_attempts(tmp_path: Path):
    from dpo_operator.api.training import Budget
    from dpo_trainer.distributed.ranks import Ranks
    from dpo_trainer.runtime.errors import TrainerError
    from dpo_trainer.telemetry import Telemetry
    from dpo_trainer.training.shortage import Shortage

    tried: list[int] = []

    def evaluate(budget: Budget) -> None:
        import torch

        tried.append(budget.tokens)
        torch.empty(1 << 60, dtype=torch.uint8)

    def attempt(number: int) -> tuple[object, bool]:
        work = WorkDir(tmp_path)
        telemetry = Telemetry("train", number, work)
        found = Shortage.read(work, Ranks()).within(Budget(160, 12), evaluate, world_size=2, telemetry=telemetry)
        assert [one.code for one in telemetry.warnings] == ["NoEvaluation"]
        return found

    for number, words in enumerate(("evaluates with 80 tokens", "evaluates single pairs", "evaluates nothing"), 1):
        with pytest.raises(TrainerError, match=f"the next attempt {words}|The next attempt {words}"):
            attempt(number)
    assert attempt(4) == (None, False)
    assert tried == [160, 80, 1]
    # Ranking the pairs is another pass: what an evaluation needed says nothing of it.
    with pytest.raises(
        TrainerError, match=r"Ranking the pairs ran out of memory: .* The next attempt ranks with 80 tokens"
    ):
        Shortage.read(WorkDir(tmp_path), Ranks()).within(
            Budget(160, 12), evaluate, world_size=2, telemetry=Telemetry("train", 5, WorkDir(tmp_path)), of="ranking"
        )
    assert tried == [160, 80, 1, 160]


@pytest.mark.parametrize(
    "content", [None, "", "[]", '{"evaluation": -3, "samples": 0}', '{"evaluation": 1e999}', "{" * 9000]
)
def test_a_damaged_record_means_that_nothing_ran_out(tmp_path: Path, content: str | None):
    from dpo_trainer.distributed.ranks import Ranks
    from dpo_trainer.training.shortage import Shortage

    if content is not None:
        (tmp_path / "shortage.json").write_text(content)
    found = Shortage.read(WorkDir(tmp_path), Ranks())
    assert (found.halvings, found.samples) == ({"evaluation": 0, "ranking": 0}, False)

"""Whole runs: methods without a reference never make one, and KTO trains and evaluates on answers without counterparts."""

import math
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.training import Budget
from dpo_trainer.runtime.workdir import WorkDir
from tests.numerics.family import prepared
from tests.numerics.jobs import a_job, train_on_rank
from tests.numerics.ranks import on_ranks

pytestmark = pytest.mark.numerics

STEPS = 4


def watched(document: dict[str, Any], root: Path) -> dict[str, Any]:
    """A run: its lines, "passes" (of each forward pass, whether gradients were wanted of it) and "models" that were loaded."""
    import torch

    from dpo_trainer.engine import engine
    from dpo_trainer.model.policy import Policy

    passes, models, forward, load = [], [], Policy.forward, engine.load_model

    def counted(self: Policy, *args: Any, **kwargs: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return forward(self, *args, **kwargs)

    def counted_load(*args: Any, **kwargs: Any) -> Any:
        models.append(args)
        return load(*args, **kwargs)

    Policy.forward, engine.load_model = counted, counted_load  # type: ignore[method-assign]
    return {**train_on_rank(document, root), "passes": passes, "models": len(models)}


@pytest.mark.parametrize("method", ["orpo", "simpo", "dpo"])
def test_only_methods_with_a_reference_have_one(method: str, tmp_path: Path):
    # 9 pairs in micro-batches of 3, of which a step has one: 4 passes with gradients. Before them, 4 that look for the way to
    # the logits and for the layout, and 3 over the training pairs: of the reference, or without one a look at how the policy begins.
    # With a reference, there is 1 over the evaluation pairs.
    work = prepared(tmp_path, "=" * 9, "=" * 4)
    document = a_job(maxSteps=STEPS, globalBatchSize=3, microBatchSize=3)
    document["spec"] |= {"method": {"name": method}, "evaluation": {"everySteps": STEPS, "microBatchSize": 4}}
    [run] = on_ranks(1, watched, document, work.root)

    before = run["passes"].index(True)
    assert run["passes"][before : before + STEPS] == [True] * STEPS
    assert not any(run["passes"][before + STEPS :])
    assert run["models"] == 1
    assert math.isfinite(run["evals"][-1]["eval_loss"])
    if method == "dpo":
        assert before == 4 + 3 + 1
        assert work.reference.is_dir()
    else:
        assert before == 4 + 3
        assert not work.reference.exists()
        assert not any("logratio" in key for line in run["steps"] + run["evals"] for key in line)


def evaluation_that_is_stopped(document: dict[str, Any], root: Path, answers: list[bool]) -> tuple[bool, int]:
    """Whether an evaluation gave figures, and how many passes it made. answers: to whether to stop, after each pass."""
    from dpo_operator.api.types import DPOJob
    from dpo_trainer.distributed.world import join_world
    from dpo_trainer.engine.engine import Engine
    from dpo_trainer.losses.objective import Objective
    from dpo_trainer.training.evaluate import evaluate
    from dpo_trainer.training.examples import open_examples
    from dpo_trainer.training.passes import logps_table

    work, spec = WorkDir(root), DPOJob.model_validate(document).spec
    objective, engine = Objective(spec.method), Engine(spec, work.model, join_world("cpu"))
    split, _ = open_examples(work, objective)
    split.add_reference(lambda _, pairs: logps_table(engine, pairs, budget=Budget(10_000, 4)))
    asked = iter(answers)
    figures = evaluate(engine, split, objective, budget=Budget(10_000, 2), should_stop=lambda: next(asked))
    return figures is not None, len(answers) - len(list(asked))


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_evaluation_of_kto_can_be_stopped_after_each_pass(stop_after: int, tmp_path: Path):
    # 5 answers in passes of 2: three passes over answers to other prompts, then three over the evaluation's own.
    work = prepared(tmp_path, "+-+-+", "+-")
    document = a_job()
    document["spec"]["method"] = {"name": "kto"}
    answers = [number == stop_after for number in range(1, 7)]
    assert on_ranks(1, evaluation_that_is_stopped, document, work.root, answers) == [(False, stop_after)]


def test_kto_trains_and_evaluates_on_unpaired_answers(tmp_path: Path):
    work = prepared(tmp_path, "++-+-+-++-+--+++-", "+-++-")
    document = a_job(maxSteps=20, globalBatchSize=6, microBatchSize=2, learningRate=5e-3)
    document["spec"] |= {
        "method": {"name": "kto", "undesirableWeight": 1.5},
        "evaluation": {"everySteps": 5, "microBatchSize": 2},
    }
    run = on_ranks(2, train_on_rank, document, work.root)[0]

    assert run["status"] == "Succeeded"
    assert [line["step"] for line in run["steps"]] == list(range(1, 21))
    assert [line["step"] for line in run["evals"]] == [5, 10, 15, 20]
    for line in run["steps"]:
        assert all(math.isfinite(line[key]) for key in ("loss", "kl", "rewards/accuracies", "grad_norm")), line
    for line in run["evals"]:
        finite = ("loss", "kl", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "rewards/margins")
        assert all(math.isfinite(line[f"eval_{key}"]) for key in finite), line
    # While policy and reference are one, every value is half of its weight; that is no multiple of ln 2.
    share = [1.5 if label == "-" else 1.0 for label in "++-+-+-++-+--+++-"]
    assert 0.5 <= run["steps"][0]["loss"] <= 0.75
    assert run["steps"][0]["kl"] == pytest.approx(0, abs=1e-5)
    assert sum(line["loss"] for line in run["steps"][-3:]) / 3 < 0.9 * sum(share) / len(share) / 2
    assert run["steps"][-1]["rewards/accuracies"] == 1
    assert set(run["warnings"]) == {"NoSamples"}  # the small model has no tokenizer

from itertools import pairwise

import pytest

from dpo_operator.api import names
from dpo_operator.api.phases import FIRST, LAST, Step, following, is_asked
from dpo_operator.api.reports import RoundReport, RoundsEnd
from dpo_operator.api.statusparts.rounds import RoundStatus
from dpo_operator.api.types import DPOJobSpec
from tests.unit.planning.build import a_job

pytestmark = pytest.mark.unit

LENGTH = {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}


def a_spec(rounds: int = 2, **fields: object) -> DPOJobSpec:
    return a_job(iterative={"rounds": rounds, "judge": LENGTH, **fields}).spec


def life(spec: DPOJobSpec, ends: dict[Step, RoundsEnd] | None = None) -> list[str]:
    """The steps of a job, as text. ends: why a round ends the rounds, by the judge that says so; its export knows, too."""
    said = {step.round: end for step, end in (ends or {}).items()}
    steps, step = [], FIRST
    while step is not None:
        steps.append(f"{step.phase} {step.round}")
        judged = step.phase in ("judge", "export") and step.round
        step = following(spec, step, said.get(step.round, "") if judged else "")
    return steps


def test_a_job_without_rounds_has_three_phases() -> None:
    assert life(a_job().spec) == ["prepare 0", "train 0", "export 0"]


def test_legs_of_a_sweep_are_trained_one_after_another_and_one_is_exported() -> None:
    spec = a_job(data={"train": {"source": "t"}, "evalFraction": 0.1}, sweep={"beta": [0.1, 0.3], "seed": [1, 2]}).spec
    steps, step = [], FIRST
    while step is not None:
        steps.append(f"{step.phase} {step.folder}".rstrip())
        step = following(spec, step)
    assert steps == ["prepare", *(f"train legs/000{leg}" for leg in (1, 2, 3, 4)), "export"]


def test_rounds_are_compared_once_more_at_the_end() -> None:
    round_1 = ["generate 1", "judge 1", "train 1", "export 1"]
    round_2 = ["generate 2", "judge 2", "train 2", "export 2"]
    compared = ["generate 3", "judge 3"]
    assert life(a_spec()) == ["prepare 0", *round_1, *round_2, *compared, "export 0"]
    without = ["prepare 0", *round_1, *round_2, "export 0"]
    assert life(a_spec(evaluateLast=False)) == without
    assert life(a_spec(winRate={"prompts": 0})) == without


@pytest.mark.parametrize("end", ["Saturated", "RoundsWorse"])
def test_a_judge_may_end_the_rounds(end: RoundsEnd) -> None:
    steps = life(a_spec(3), {Step("judge", 2): end})
    assert steps[-3:] == ["generate 2", "judge 2", "export 0"]
    assert life(a_spec(), {Step("judge", 3): end})[-2:] == ["judge 3", "export 0"]


def test_a_spent_budget_trains_on_what_was_judged() -> None:
    steps = life(a_spec(3), {Step("judge", 2): "BudgetSpent"})
    assert steps[-4:] == ["judge 2", "train 2", "export 2", "export 0"]
    assert life(a_spec(), {Step("judge", 3): "BudgetSpent"})[-2:] == ["judge 3", "export 0"]


def test_more_rounds_follow_where_fewer_ended() -> None:
    assert following(a_spec(1, evaluateLast=False), Step("export", 1)) == LAST
    assert following(a_spec(2, evaluateLast=False), Step("export", 1)) == Step("generate", 2)


def test_each_phase_follows_in_the_order_of_their_names() -> None:
    order = {phase: number for number, phase in enumerate(names.PHASES)}
    steps = [step.split() for step in life(a_spec())]
    for (phase, number), (next_phase, next_number) in pairwise(steps[:-1]):
        assert number != next_number or order[next_phase] == order[phase] + 1  # type: ignore[index]


def test_a_comparison_becomes_a_round_when_rounds_were_raised() -> None:
    done = Step("judge", 3)
    assert following(a_spec(2), done, asked=False) == LAST
    assert following(a_spec(3), done, asked=False) == Step("generate", 3)
    assert following(a_spec(3), done) == Step("train", 3)
    assert following(a_spec(3), done, "NoPrompts", asked=False) == LAST
    assert following(a_spec(3), done, "BudgetSpent", asked=False) == LAST


@pytest.mark.parametrize(("end", "prompts", "pairs", "asked"), [("", 9, 0, True), ("", 0, 0, False), ("BudgetSpent", 9, 0, False), ("BudgetSpent", 9, 2, True)])  # fmt: skip
def test_a_round_is_trained_on_answers_and_after_the_budget_on_pairs(end: str, prompts: int, pairs: int, asked: bool):
    report = RoundReport(round=2, prompts=prompts, pairs=pairs, ended=end)
    assert is_asked(report) is is_asked(RoundStatus.of(report)) is asked

"""A round's judge on answers of known lengths: pairs, win rates, and how the rounds end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.reports import UnitsReport
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.data.dataset import PairDataset
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.judging import BUDGET_SPENT, Judge, Judged, Question, Spent, open_judge
from dpo_trainer.prepare import phase as prepare
from dpo_trainer.prepare.inputs import Inputs
from dpo_trainer.rounds import record
from dpo_trainer.rounds.judge import Verdict, run
from dpo_trainer.rounds.tasks import initial_path, tasks_of
from dpo_trainer.rounds.units import Answer, Unit, save_arrays, save_unit
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.telemetry import Telemetry
from tests.unit.trainer.place import Place, rows

pytestmark = pytest.mark.unit

END = 258
# Tokens of the four answers to each prompt; the judge wants 5.
VARIED = (2, 5, 8, 9)


class Rounds:
    """A prepared job, and answers that are made up. wanted: tokens of an answer that the judge likes best."""

    def __init__(self, root: Path, **iterative: Any) -> None:
        place = Place(root)
        place.train.write_text("".join(json.dumps(row) + "\n" for row in rows(50)))
        settings = {
            "rounds": 3, "promptsPerRound": 10, "winRate": {"prompts": 20},
            "generation": {"maxNewTokens": 16, "unitPrompts": 4, "samplesPerPrompt": 4},
            "judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}, **iterative,
        }  # fmt: skip
        document = place.job(maxLength=64).model_dump(mode="json", by_alias=True, exclude_defaults=True)
        document["spec"]["iterative"] = settings
        self.spec: DPOJobSpec = DPOJob.model_validate(document).spec
        self.work = place.work
        prepare.run(DPOJob.model_validate(document), self.work, Inputs(root))
        self.prompts = PromptSet.open(self.work.prompts)

    def answer(self, number: int, lengths: tuple[int, ...] = VARIED, compared: int = 5, ended: bool = True) -> None:
        """Make up the answers of a round. lengths: of the answers to each prompt. compared: of the one for the win rates."""
        if number > 1:
            self._export(number - 1)
        tasks = tasks_of(self.spec, self.work, self.prompts, number)
        for task in tasks.all:
            wanted = (compared,) if task in tasks.compared else lengths
            answers = [tuple(_answer(length, i, ended) for i, length in enumerate(wanted)) for _ in task.prompts]
            save_unit(task.path, Unit(task.prompts, tuple(answers)), task.key)
            if task in tasks.compared:
                logps = np.array([one.logp - 1.0 for answers_ in answers for one in answers_])
                save_arrays(initial_path(task), {"logp": logps}, task.key)

    def judge(self, number: int, judge: Judge | None = None) -> Verdict:
        work = self.work.round(number)
        self.telemetry = Telemetry("judge", 1, work)
        judge = judge or open_judge(self.spec.iterative.judge, self.work)  # type: ignore[union-attr]
        return run(self.spec, work, self.telemetry, judge, lambda ids: " ".join(map(str, ids)))

    def pairs(self, number: int) -> PairDataset:
        return PairDataset.open(self.work.round(number).train_data)

    def _export(self, number: int) -> None:
        folder = self.work.round(number).export
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint = {"step": 5, "digest": f"{number:064x}"}
        (folder / "dpo_provenance.json").write_text(json.dumps({"checkpoint": checkpoint}))


def _answer(length: int, number: int, ended: bool) -> Answer:
    ids = np.array([*[100 + number] * (length - 1), END if ended else 99], dtype=np.int32)
    return Answer(ids, np.full(length, -0.5, dtype=np.float32), ended)


@pytest.fixture
def rounds(tmp_path: Path) -> Rounds:
    return Rounds(tmp_path)


def test_pairs_are_made_of_the_sampled_ids(rounds: Rounds):
    rounds.answer(1)
    found = rounds.judge(1).report
    assert (found.prompts, found.answers, found.judged, found.pairs, found.left_out) == (10, 40, 10, 10, {})
    assert rounds.telemetry.progress.units == UnitsReport(done=3, total=3, answers=40)
    assert (found.ended_share, found.generation_tokens, found.gap_median) == (1.0, 10 * sum(VARIED), 4.0)
    assert (found.kl_to_initial, found.own_nll) == (1.0, 0.5)
    pairs = rounds.pairs(1)
    asked = rounds.prompts.of_round(1, reuse=False)
    for i in range(len(pairs)):
        assert pairs[i].prompt.tolist() == rounds.prompts.ids(int(asked[i])).tolist()
        assert pairs[i].chosen.tolist() == [101] * 4 + [END]
        assert pairs[i].rejected.tolist() == [103] * 8 + [END]
    logps = np.load(rounds.work.round(1).generator_logps)
    assert logps.tolist() == [[-2.5, -4.5]] * 10


def test_nothing_is_judged_twice_and_the_files_stay_the_same(rounds: Rounds):
    rounds.answer(1)
    first = rounds.judge(1)
    folder = rounds.work.round(1).judged
    before = {path: path.read_bytes() for path in folder.iterdir()}
    digest = rounds.pairs(1).digest
    assert rounds.judge(1, _Never()) == first
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    # A unit whose judgements were lost is judged again, and no other.
    min(before).unlink()
    counting = _Counting()
    assert rounds.judge(1, counting).report == first.report
    assert counting.asked == 4
    assert rounds.pairs(1).digest == digest


def test_a_policy_is_compared_with_the_one_before_and_the_first(rounds: Rounds):
    for number, compared in ((1, 9), (2, 7), (3, 6)):
        rounds.answer(number, compared=compared)
        verdict = rounds.judge(number)
    assert verdict.before is not None
    assert (verdict.before.round, verdict.before.win_rate_previous, verdict.before.win_rate_initial) == (2, 1.0, 1.0)
    assert record.read_report(rounds.work.round(2)) == verdict.before
    assert not rounds.work.chosen.exists()


def test_equal_answers_are_a_tie_without_a_question(rounds: Rounds):
    rounds.answer(1, compared=5)
    rounds.judge(1)
    rounds.answer(2, compared=5)
    counting = _Counting()
    verdict = rounds.judge(2, counting)
    assert counting.asked == 10  # the round's own prompts alone
    assert verdict.before is not None
    assert (verdict.before.win_rate_previous, verdict.before.win_rate_error) == (0.5, 0.0)


def test_a_worse_policy_ends_the_rounds_with_the_one_before(rounds: Rounds):
    for number, compared in ((1, 9), (2, 6), (3, 8)):
        rounds.answer(number, compared=compared)
        verdict = rounds.judge(number, None if number < 3 else _Comparing())
    assert verdict.report.ended == "RoundsWorse"
    assert verdict.report.pairs == 0
    assert verdict.before is not None
    assert (verdict.before.win_rate_previous, verdict.before.ended) == (0.0, "RoundsWorse")
    number, why = record.chosen(rounds.work)
    assert number == 1
    assert "the policy of round 2 is worse than that of round 1: win rate 0.00" in why
    assert not rounds.work.round(3).train_data.exists()


def test_a_first_round_that_made_it_worse_fails(rounds: Rounds):
    rounds.answer(1, compared=5)
    rounds.judge(1)
    rounds.answer(2, compared=9)
    with pytest.raises(TrainerError, match="round 1 is worse than the initial model") as failure:
        rounds.judge(2)
    assert failure.value.exit_code == ExitCode.INVALID_CONFIGURATION


def test_stop_when_worse_false_trains_on(tmp_path: Path):
    rounds = Rounds(tmp_path, stopWhenWorse=False)
    rounds.answer(1, compared=5)
    rounds.judge(1)
    rounds.answer(2, compared=9)
    verdict = rounds.judge(2)
    assert (verdict.report.ended, verdict.report.pairs) == ("", 10)
    assert verdict.before is not None
    assert verdict.before.win_rate_previous == 0.0


def test_too_few_pairs_end_the_rounds_with_the_last_policy(rounds: Rounds):
    rounds.answer(1)
    rounds.judge(1)
    rounds.answer(2, lengths=(5, 5, 5, 5))
    verdict = rounds.judge(2)
    assert (verdict.report.ended, verdict.report.pairs, verdict.report.left_out) == ("Saturated", 0, {"tie": 10})
    assert record.chosen(rounds.work) == (1, verdict_words(rounds))


@pytest.mark.parametrize(("most", "ended", "chosen"), [(0, "BudgetSpent", 1), (2, "BudgetSpent", 2)])
def test_a_budget_that_is_spent_is_no_saturation(rounds: Rounds, most: int, ended: str, chosen: int):
    """Also when the comparison before took all of it, so that nothing was judged and this round is not trained."""
    rounds.answer(1, compared=5)
    rounds.judge(1)
    rounds.answer(2, compared=5)
    verdict = rounds.judge(2, _Spent(most))
    assert (verdict.report.ended, verdict.report.pairs) == (ended, most)
    assert rounds.work.round(2).train_data.exists() is (most > 0)
    rounds._export(2)
    assert record.chosen(rounds.work)[0] == chosen


def verdict_words(rounds: Rounds) -> str:
    why: str = json.loads(rounds.work.chosen.read_text())["why"]
    assert why.startswith("Saturated: 0 of 10 prompts give a pair, and iterative.pairs.minPairs asks for 10% (tie 10)")
    return why


def test_a_first_round_without_a_verdict_fails(rounds: Rounds):
    rounds.answer(1, lengths=(5, 5, 5, 5))
    with pytest.raises(TrainerError, match="the judge says the same of all answers to 100% of the prompts"):
        rounds.judge(1)


def test_a_first_round_without_pairs_says_why(rounds: Rounds):
    rounds.answer(1, ended=False)
    with pytest.raises(TrainerError, match=r"nothing to train on: 0 of 10 .*unfinished 10"):
        rounds.judge(1)


def test_the_last_comparison_makes_no_pairs(tmp_path: Path):
    rounds = Rounds(tmp_path, rounds=1)
    rounds.answer(1, compared=9)
    rounds.judge(1)
    rounds.answer(2, compared=5)
    verdict = rounds.judge(2)
    assert (verdict.report.round, verdict.report.prompts, verdict.report.ended) == (2, 0, "")
    assert verdict.before is not None
    assert verdict.before.win_rate_initial == 1.0
    assert not rounds.work.round(2).train_data.exists()
    assert record.chosen(rounds.work) == (1, "the last round")


def test_pairs_of_the_data_are_mixed_into_the_first_round(tmp_path: Path):
    rounds = Rounds(tmp_path, mixOffline=0.5)
    rounds.answer(1)
    assert rounds.judge(1).report.pairs == 10
    data = PairDataset.open(rounds.work.train_data)
    assert len(rounds.pairs(1)) == 10 + 25
    assert np.isnan(np.load(rounds.work.round(1).generator_logps)).all(axis=1).sum() == 25
    offline = {data[i].chosen.tobytes() for i in range(len(data))}
    assert all(rounds.pairs(1)[i].chosen.tobytes() in offline for i in range(10, 35))


def test_missing_answers_are_named(rounds: Rounds):
    rounds.answer(1)
    (rounds.work.round(1).generated / "unit-00001.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"unit-00001.*generate this round again"):
        rounds.judge(1)


class _Counting:
    """The length judge, which counts what it is asked."""

    scores, exhausted = True, False

    def __init__(self) -> None:
        self.asked = 0

    @property
    def spent(self) -> Any:
        raise AssertionError("not asked for")

    def judge(self, questions: list[Question], alive: Any) -> list[Judged]:
        self.asked += len(questions)
        from dpo_operator.api.iterative import Builtin
        from dpo_trainer.judging.builtin import BuiltinJudge

        found: list[Judged] = BuiltinJudge(Builtin.model_validate({"name": "length", "tokens": 5})).judge(
            questions, alive
        )
        return found

    def close(self) -> None: ...


class _Spent(_Counting):
    """Its budget is enough for so many questions."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def judge(self, questions: list[Question], alive: Any) -> list[Judged]:
        count = max(0, self.most - self.asked)
        return super().judge(questions[:count], alive) + [Judged(None, None, None, problem=BUDGET_SPENT)] * (
            len(questions) - count
        )


class _Never(_Counting):
    def judge(self, questions: list[Question], alive: Any) -> list[Judged]:
        assert not questions, "everything was judged before"
        return []


class _Comparing(_Counting):
    """Is asked for comparisons alone, because the rounds end."""

    def judge(self, questions: list[Question], alive: Any) -> list[Judged]:
        assert all(len(question.answers) == 2 for question in questions)
        return super().judge(questions, alive)


def more_rounds(rounds: Rounds, number: int) -> None:
    """As if spec.iterative.rounds had been raised since prepare."""
    assert rounds.spec.iterative is not None
    raised = rounds.spec.iterative.model_copy(update={"rounds": number})
    rounds.spec = rounds.spec.model_copy(update={"iterative": raised})


def test_rounds_end_where_no_prompts_are_left(tmp_path: Path):
    rounds = Rounds(tmp_path, rounds=1, promptsPerRound=20)
    rounds.answer(1, compared=9)
    rounds.judge(1)
    more_rounds(rounds, 3)
    rounds.answer(2, compared=5)
    verdict = rounds.judge(2)
    assert (verdict.report.ended, verdict.report.prompts) == ("NoPrompts", 0)
    assert record.chosen(rounds.work) == (1, "the last round")


def test_a_comparison_stays_one_when_rounds_are_raised_meanwhile(tmp_path: Path):
    rounds = Rounds(tmp_path, rounds=1)
    rounds.answer(1, compared=9)
    rounds.judge(1)
    rounds.answer(2, compared=5)
    more_rounds(rounds, 2)
    verdict = rounds.judge(2)
    assert (verdict.report.ended, verdict.report.prompts) == ("", 0)
    # Its answers are made afterwards, and then it is a round as any.
    rounds.answer(2, compared=5)
    assert rounds.judge(2).report.pairs == 10


def test_a_round_that_is_trained_after_all_takes_the_choice_back(rounds: Rounds):
    rounds.answer(1)
    rounds.judge(1)
    rounds.answer(2, lengths=(5, 5, 5, 5))
    assert rounds.judge(2).report.ended == "Saturated"
    rounds.answer(2)
    assert rounds.judge(2).report.ended == ""
    assert not rounds.work.chosen.exists()


def test_an_answer_that_can_not_be_judged_wins_no_comparison(rounds: Rounds):
    rounds.answer(1, compared=9)
    rounds.judge(1)
    rounds.answer(2, compared=5)
    verdict = rounds.judge(2, _Speechless())
    assert verdict.before is not None
    assert verdict.before.win_rate_previous is None


class _Speechless:
    """A judge that can score the second answer alone."""

    scores, exhausted = True, False
    spent = Spent(0, 0)

    def judge(self, questions: Any, alive: Any) -> list[Judged]:
        return [Judged(scores=(None, *range(1, len(q.answers))), best=None, worst=None) for q in questions]

    def close(self) -> None:
        pass

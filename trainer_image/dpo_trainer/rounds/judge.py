"""The judge phase: compares policies, judges a round's answers, and makes the pairs that the round trains on.

Everything it makes is a function of committed units and judgements: a run that was killed ends with the same files as one that was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpo_operator.api.reports import RoundReport, UnitsReport
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.data.tokens.tokenization import load_tokenizer
from dpo_trainer.judging import BUDGET_SPENT, Judge, Judged, Question, open_judge
from dpo_trainer.rounds import record
from dpo_trainer.rounds.answers import answered, divergence
from dpo_trainer.rounds.comparing import Comparison, compare
from dpo_trainer.rounds.figures import equal_share, of_pairs, scored
from dpo_trainer.rounds.judgements import Judgements, total
from dpo_trainer.rounds.labels import disagreement
from dpo_trainer.rounds.making import Made, make_pairs, save_pairs
from dpo_trainer.rounds.tasks import Tasks, initial_path, made, tasks_of
from dpo_trainer.rounds.units import LOGP, Task, Unit, load_arrays
from dpo_trainer.runtime.errors import input_not_found, invalid_configuration
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.sources.access import Access
from dpo_trainer.telemetry import Telemetry

# Share of prompts of which the judge says the same of all answers that is a mistake in the first round.
_NOTHING_SAID = 0.9


@dataclass(frozen=True)
class Verdict:
    """What a judge phase found. report: of this round. before: of the round before, complete with its win rates; None in the first round."""

    report: RoundReport
    before: RoundReport | None


def run(
    spec: DPOJobSpec,
    work: WorkDir,
    telemetry: Telemetry,
    judge: Judge,
    decode: Callable[[np.ndarray], str],
    observe: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Judge a round. work: its leg. decode: ids into text. observe: told of each file that was committed.

    Raises TrainerError: INPUT_NOT_FOUND when answers are missing; INVALID_CONFIGURATION when the first round gives nothing to train on; what
    the judge raises.
    """
    return _Judging(spec, work, telemetry, judge, decode, observe).run()


def run_phase(
    spec: DPOJobSpec,
    work: WorkDir,
    telemetry: Telemetry,
    access: Access,
    stop: StopRequest,
    observe: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """Open the judge that the job asks for, and judge a round. access: to an endpoint. stop: polled between its calls. observe: see run.

    Raises as run does, and Stopped.
    """
    assert spec.iterative is not None
    tokenizer = load_tokenizer(work.model, "spec.model", spec.model.chat_template)

    def decode(ids: np.ndarray) -> str:
        text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    judge = open_judge(spec.iterative.judge, work.round(0), access=access, template=spec.data.template, stop=stop)
    try:
        # An endpoint's answers would cost something, and a rule says what it is told to.
        if spec.iterative.judge.type == "rewardModel" and work.number == 1:
            problem = disagreement(judge, work, decode, telemetry.alive)
            if problem:
                telemetry.warning("JudgeDisagrees", problem)
        return run(spec, work, telemetry, judge, decode, observe)
    finally:
        judge.close()


class _Judging:
    def __init__(
        self,
        spec: DPOJobSpec,
        work: WorkDir,
        telemetry: Telemetry,
        judge: Judge,
        decode: Callable[[np.ndarray], str],
        observe: Callable[[str], None],
    ) -> None:
        assert spec.iterative is not None
        self._spec, self._rounds, self._work, self._telemetry = spec, spec.iterative, work, telemetry
        self._judge, self._decode = judge, decode
        self._prompts = PromptSet.open(work.prompts)
        self._number = work.number
        self._judgements = Judgements(work, spec.iterative.judge, observe)

    def run(self) -> Verdict:
        tasks = tasks_of(self._spec, self._work, self._prompts, self._number)
        # Before any question is asked: what is missing shows at once.
        asked = self._asked(tasks)
        training, compared = ([made(task) for task in some] for some in (asked, tasks.compared))
        figures: dict[str, Any] = answered(training) | self._divergence(tasks, compared)
        before, comparison = self._compared(compared)
        if before is not None and comparison is not None and self._is_worse(comparison):
            report = RoundReport(round=self._number, **figures, ended="RoundsWorse")
            before = before.model_copy(update={"ended": "RoundsWorse"})
            return self._end(report, before, self._number - 2, comparison.worse_words(self._number - 1))
        if not asked:
            spent = self._number <= self._rounds.rounds and not tasks.training
            ended: dict[str, Any] = {"ended": "NoPrompts"} if spent else {}
            return self._go_on(RoundReport(round=self._number, **figures, **ended), before)
        return self._train_on(asked, training, figures, before)

    def _asked(self, tasks: Tasks) -> tuple[Task, ...]:
        """The units to train on; none where this round was generated as the comparison after the last one, and rounds was raised since."""
        if self._number > 1 and not any(task.path.exists() for task in tasks.training):
            return ()
        return tasks.training

    def _train_on(
        self, tasks: Sequence[Task], units: Sequence[Unit], figures: dict[str, Any], before: RoundReport | None
    ) -> Verdict:
        judged = self._ask(tasks, units)
        if self._number == 1 and equal_share(judged) > _NOTHING_SAID:
            raise invalid_configuration(
                f"the judge says the same of all answers to {equal_share(judged):.0%} of the prompts, so there is nothing to learn from it; check "
                "iterative.judge, and what the answers look like in rounds/0001/judged"
            )
        found = make_pairs(self._spec, self._work, self._prompts, units, judged)
        figures |= scored(judged) | of_pairs([one.gap for one in found.chosen]) | self._counts(judged, found)
        exhausted = any(one.problem == BUDGET_SPENT for one in judged)
        asked = sum(one.problem != BUDGET_SPENT for one in judged) if exhausted else len(judged)
        report = RoundReport(round=self._number, **figures)
        self._telemetry.round(report)
        least = self._rounds.pairs.min_pairs * asked
        if len(found.chosen) < max(1.0, least):
            # With nothing judged, the answers are not to blame.
            return self._without_pairs(report, before, spent=exhausted and len(found.chosen) >= least)
        save_pairs(self._spec, self._work, found)
        ended = {"ended": "BudgetSpent"} if exhausted else {}
        return self._go_on(report.model_copy(update=ended), before)

    def _ask(self, tasks: Sequence[Task], units: Sequence[Unit]) -> list[Judged]:
        """Judgements of all answers of the round, each unit's committed as it is done."""
        found: list[Judged] = []
        for number, (task, unit) in enumerate(zip(tasks, units, strict=True)):
            there = self._judgements.read(task, unit)
            if there is None:
                self._telemetry.activity(f"judging: unit {number + 1} of {len(units)}")
                there = self._judge.judge(self._questions(unit), self._telemetry.alive)
                self._judgements.write(task, unit, there)
                self._telemetry.alive()
                self._telemetry.judged(len(there))
            found += there
            tally, answers = total(found), sum(one.count for one in units[: number + 1])
            done = {"done": number + 1, "total": len(units), "answers": answers}
            self._telemetry.units(UnitsReport(**done, judge_calls=tally.calls, judge_cached=tally.cached))
        return found

    def _questions(self, unit: Unit) -> list[Question]:
        asked = self._prompts.read(unit.rows.tolist())
        return [
            Question(
                prompt.prompt,
                tuple(self._decode(answer.content) for answer in answers),
                tuple(len(answer.ids) for answer in answers),
                prompt.expected,
                prompt.tools,
            )
            for prompt, answers in zip(asked, unit.answers, strict=True)
        ]

    def _compared(self, now: Sequence[Unit]) -> tuple[RoundReport | None, Comparison | None]:
        """The report of the round before with its win rates, and the comparison that they come from."""
        if self._number == 1:
            return None, None
        before = record.read_report(self._work.round(self._number - 1))
        if not now:
            return before, None
        earlier = {
            against: [made(task) for task in self._tasks_of_round(number).compared]
            for against, number in (("previous", self._number - 1), ("initial", 1))
        }
        there = self._judgements.read_comparison(now, earlier)
        if there is None:
            self._telemetry.activity("comparing policies")
            there = compare(self._judge, self._prompts, now, earlier, self._decode, self._telemetry.alive)
            self._judgements.write_comparison(now, earlier, there)
        report = before.model_copy(update=there.fields())
        return report, there

    def _tasks_of_round(self, number: int) -> Tasks:
        return tasks_of(self._spec, self._work.round(number), self._prompts, number)

    def _is_worse(self, comparison: Comparison) -> bool:
        found = comparison.previous
        return self._rounds.stop_when_worse and found is not None and found.is_worse

    def _divergence(self, tasks: Tasks, compared: Sequence[Unit]) -> dict[str, Any]:
        initial = []
        for task in tasks.compared:
            arrays = load_arrays(initial_path(task), LOGP, task.key)
            if arrays is None:
                raise input_not_found(
                    f"{initial_path(task)}: expected log-probs, found none; generate this round again"
                )
            initial.append(arrays["logp"])
        return divergence(compared, initial)

    def _counts(self, judged: Sequence[Judged], found: Made) -> dict[str, Any]:
        tally = total(judged)
        return {
            "judged": sum(not one.problem for one in judged),
            "ties": found.left_out.get("tie", 0),
            "left_out": found.left_out,
            "judge_calls": tally.calls,
            "judge_cached": tally.cached,
            "judge_tokens": tally.tokens,
            "order_agreement": tally.order_agreement,
            "longer_wins": tally.longer_wins_share,
        }

    def _without_pairs(self, report: RoundReport, before: RoundReport | None, *, spent: bool) -> Verdict:
        """The rounds end before this one is trained. spent: because of the judge's budget."""
        rounds = self._rounds
        words = (
            f"{report.judged} of {report.prompts} prompts were judged before iterative.judge.budget was spent, and give no pair"
            if spent
            else f"{report.pairs} of {report.prompts} prompts give a pair, and iterative.pairs.minPairs asks for {rounds.pairs.min_pairs:.0%}"
            f" ({_counted(report.left_out)})"
        )
        if self._number == 1:
            raise invalid_configuration(
                f"the first round has nothing to train on: {words}. Look at rounds/0001/judged, and check the judge, iterative.pairs and generation"
            )
        ended = {"ended": "BudgetSpent" if spent else "Saturated"}
        return self._end(report.model_copy(update=ended), before, self._number - 1, words)

    def _end(self, report: RoundReport, before: RoundReport | None, chosen: int, why: str) -> Verdict:
        """No further round is trained; the policy of round `chosen` is exported."""
        if chosen == 0:
            record.write_report(self._work, report)
            raise invalid_configuration(
                f"{why}, and there is no trained policy before it: check the judge, method.beta and training.learningRate. "
                "rounds/0001/export has what the first round trained; with iterative.stopWhenWorse false it is trained on"
            )
        self._telemetry.activity(f"the rounds end ({report.ended}): {why}; round {chosen} is exported")
        record.choose(self._work, chosen, f"{report.ended}: {why}")
        return self._written(report, before)

    def _go_on(self, report: RoundReport, before: RoundReport | None) -> Verdict:
        """The last round is exported. An earlier judge may have ended the rounds here, under other settings."""
        record.choose_last(self._work)
        return self._written(report, before)

    def _written(self, report: RoundReport, before: RoundReport | None) -> Verdict:
        """Commit the reports: the round before's with its win rates, and last this one's."""
        if before is not None:
            record.write_report(self._work.round(before.round), before)
        record.write_report(self._work, report)
        self._telemetry.round(report)
        return Verdict(report, before)


def _counted(left_out: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in left_out.items()) or "no prompts"

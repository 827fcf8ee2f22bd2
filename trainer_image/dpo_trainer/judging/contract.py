"""What a judge is asked, and what it says."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

# Judged.problem of answers that were not judged because the budget was spent.
BUDGET_SPENT = "the judge's budget is spent"

Chat = list[dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """A prompt, and answers to it; two answers make it a comparison of two policies.

    prompt: text, or chat messages. answers: texts without the token that ended them. tokens: how many tokens each answer has.
    expected: the right answer, for exactMatch; None where the row has none. tools: those that a chat offers.
    """

    prompt: str | Chat
    answers: tuple[str, ...]
    tokens: tuple[int, ...]
    expected: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Tally:
    """Counts of judging; the figures of many questions are the sum of theirs.

    calls: requests that were sent. cached: verdicts that an earlier call had given. tokens: of requests and verdicts.
    verdicts, unparsable: verdicts of a server, and those of them that could not be read.
    both_orders, same_in_both: comparisons that were asked in both orders and read, and those with the same verdict in both.
    decided, longer_wins: verdicts (comparisons, or best against worst) with a winner between answers of different length, and those in
        which the longer one won.
    """

    calls: int = 0
    cached: int = 0
    tokens: int = 0
    verdicts: int = 0
    unparsable: int = 0
    both_orders: int = 0
    same_in_both: int = 0
    decided: int = 0
    longer_wins: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    @property
    def order_agreement(self) -> float | None:
        """Share of comparisons with the same verdict in both orders; None without any."""
        return self.same_in_both / self.both_orders if self.both_orders else None

    @property
    def longer_wins_share(self) -> float | None:
        """Share of verdicts in which the longer answer won; None without any. Near 1, a ruler could replace the judge."""
        return self.longer_wins / self.decided if self.decided else None


@dataclass(frozen=True)
class Judged:
    """What a judge says about one question.

    scores: one for each answer, None for one that could not be judged; None as a whole from a judge that only compares.
    best, worst: numbers of answers. None for both: a tie, or not judged.
    comparisons: (a, b, winner) by numbers of answers, winner None for a tie; empty from a judge that scores.
    problem: why nothing was judged; "" otherwise.
    """

    scores: tuple[float | None, ...] | None
    best: int | None
    worst: int | None
    comparisons: tuple[tuple[int, int, int | None], ...] = ()
    problem: str = ""
    tally: Tally = Tally()


@dataclass(frozen=True)
class Spent:
    """What a judge has cost, over all rounds and attempts. tokens: of requests and verdicts."""

    calls: int = 0
    tokens: int = 0


class Judge(Protocol):
    """Who says which answer is better.

    scores: whether it gives scores; otherwise it only compares. exhausted: whether the budget is spent.
    """

    @property
    def scores(self) -> bool: ...

    @property
    def exhausted(self) -> bool: ...

    @property
    def spent(self) -> Spent: ...

    def judge(self, questions: Sequence[Question], alive: Callable[[], None]) -> list[Judged]:
        """Judge questions, in their order. alive: called as work goes on.

        Raises TrainerError; Stopped after a stop request, when no call is left in flight.
        """

    def close(self) -> None:
        """Give back files and connections."""


def by_scores(question: Question, scores: Iterable[float | None], *, tally: Tally | None = None) -> Judged:
    """What scores say: the highest is best, the lowest worst, the first of equal ones.

    All scores equal, or fewer than two of them, is a tie. A score that is not a finite number counts as none: as a number it would be
    above or below all others, or equal to none.
    """
    known = tuple(None if score is None or not math.isfinite(score) else float(score) for score in scores)
    assert len(known) == len(question.answers)
    there = [number for number, score in enumerate(known) if score is not None]
    tally = tally or Tally()
    if not there:
        return Judged(known, None, None, problem="no answer could be scored", tally=tally)
    best = max(there, key=lambda number: (known[number], -number))
    worst = min(there, key=lambda number: (known[number], number))
    if known[best] == known[worst]:
        return Judged(known, None, None, tally=tally)
    return Judged(known, best, worst, tally=tally + of_lengths(question, best, worst))


def of_lengths(question: Question, winner: int, loser: int) -> Tally:
    """The tally of one verdict: whether the longer answer won. Nothing for answers of one length."""
    ours, theirs = question.tokens[winner], question.tokens[loser]
    return Tally(decided=int(ours != theirs), longer_wins=int(ours > theirs))

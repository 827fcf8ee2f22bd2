"""The judge behind an endpoint: many requests at a time, within a budget, none of them twice."""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.iterative import Endpoint, JudgeBudget
from dpo_operator.api.text import quoted
from dpo_trainer.judging.contract import BUDGET_SPENT, Judged, Question, Spent, Tally, by_scores, of_lengths
from dpo_trainer.judging.endpoint import requests, verdicts
from dpo_trainer.judging.endpoint.journal import TEXT, Answer, Journal
from dpo_trainer.judging.endpoint.knockout import knock_out, together
from dpo_trainer.judging.endpoint.requests import Request
from dpo_trainer.judging.endpoint.transport import Failed, Refused, Said, Transport
from dpo_trainer.judging.endpoint.verdicts import Verdict
from dpo_trainer.runtime.errors import TrainerError, invalid_configuration
from dpo_trainer.runtime.stop import Stopped, StopRequest
from dpo_trainer.runtime.workdir import WorkDir

# Seconds before the first retry; each further one waits twice as long, at most LONGEST_WAIT, less a random part.
FIRST_WAIT = 1.0
LONGEST_WAIT = 60.0
# Verdicts below which a share says little: as many count as if there were so many.
FEWEST_VERDICTS = 100
EXAMPLES = 3
_POLL_SECONDS = 0.1


class _OutOfBudget(Exception):
    """The next call would not fit into the budget."""


class _Halted(Exception):
    """No more calls are sent: a stop was requested, or another call failed for good."""


@dataclass
class _Asked:
    """A question, and what it has cost so far. alive: called after each verdict."""

    question: Question
    alive: Callable[[], None]
    tally: Tally = field(default_factory=Tally)


class EndpointJudge:
    """Compares or scores answers by an OpenAI-compatible server.

    key: API key, None without one. stop: once it is set, no call begins, and judge raises Stopped when those in flight have ended.
    Raises OSError when the journal can't be opened.
    """

    def __init__(
        self, settings: Endpoint, budget: JudgeBudget, work: WorkDir, key: str | None, stop: StopRequest
    ) -> None:
        self._settings, self._budget, self._stop = settings, budget, stop
        self._journal = Journal(work.judge / "journal.jsonl")
        self._runner = asyncio.Runner()
        self._key = key
        self._transport: Transport | None = None
        # Most tokens that calls in flight can take.
        self._reserved = 0
        self._exhausted = False
        # Requests that are being answered, by key: a text that two questions have is asked about once.
        self._flying: dict[str, asyncio.Future[Answer]] = {}
        self._verdicts = self._unparsable = 0
        self._examples: list[str] = []

    @property
    def scores(self) -> bool:
        """Whether it gives scores; otherwise it only compares."""
        return self._settings.mode == "score"

    @property
    def exhausted(self) -> bool:
        """Whether the budget is spent."""
        return self._exhausted

    @property
    def spent(self) -> Spent:
        """Calls and tokens, over all rounds and attempts."""
        return self._journal.spent

    def judge(self, questions: Sequence[Question], alive: Callable[[], None]) -> list[Judged]:
        """Judge questions, many at a time. See contract.Judge.

        Raises TrainerError: ACCESS_DENIED, INPUT_NOT_FOUND, INVALID_CONFIGURATION (too many verdicts that can't be read, or a budget that
        is spent where that is a failure), SOURCE_UNAVAILABLE when retries are used up; Stopped.
        """
        judged = self._runner.run(self._all(questions, alive))
        if self._exhausted and self._budget.on_exhausted == "fail":
            raise invalid_configuration(
                f"spec.iterative.judge.budget: spent, with {self.spent.calls} calls and {self.spent.tokens} tokens; raise it, or set onExhausted to "
                "trainOnWhatThereIs"
            )
        if self._unparsable > self._settings.max_unparsable * max(self._verdicts, FEWEST_VERDICTS):
            raise invalid_configuration(
                f"spec.iterative.judge.endpoint: {self._unparsable} of {self._verdicts} verdicts can't be read, more than maxUnparsable "
                f"({self._settings.max_unparsable:.0%}), such as {'; '.join(self._examples)}. Use a model that follows the format, raise maxTokens "
                "if verdicts are cut, or shorten the rubric"
            )
        return judged

    def close(self) -> None:
        """Close the connections and the journal."""
        if self._transport is not None:
            self._runner.run(self._transport.close())
            self._transport = None
        self._runner.close()
        self._journal.close()

    async def _all(self, questions: Sequence[Question], alive: Callable[[], None]) -> list[Judged]:
        if self._transport is None:
            self._transport = Transport(self._settings, self._key)
        self._slots = asyncio.Semaphore(self._settings.concurrency)
        self._room = asyncio.Condition()
        self._halt = asyncio.Event()
        self._failure: Exception | None = None
        watch = asyncio.create_task(self._watch())
        ask = self._score if self.scores else self._compare
        try:
            return await together(ask(_Asked(one, alive)) for one in questions)
        except _Halted:
            if self._failure is not None:
                raise self._failure from None
            raise Stopped(self._stop.signal_name or "a stop request") from None
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """Halt when a stop is requested. Its signal only sets a flag."""
        while not self._stop.is_set():
            await asyncio.sleep(_POLL_SECONDS)
        self._halt.set()

    async def _compare(self, asked: _Asked) -> Judged:
        async def better(first: int, second: int) -> int | None:
            return await self._better(asked, first, second)

        try:
            best, worst, games = await knock_out(len(asked.question.answers), better)
        except _OutOfBudget:
            return Judged(None, None, None, problem=BUDGET_SPENT, tally=asked.tally)
        for first, second, winner in games:
            if winner is not None:
                asked.tally += of_lengths(asked.question, winner, second if winner == first else first)
        return Judged(None, best, worst, games, _problem(asked.tally), asked.tally)

    async def _better(self, asked: _Asked, first: int, second: int) -> int | None:
        """Which of two answers is better; None for a tie, and for verdicts that differ or can't be read."""
        question, answers = asked.question, asked.question.answers
        if answers[first] == answers[second]:
            return None
        # Where the two stand in the question must not matter, so their texts decide which one is shown first.
        one, other = sorted((first, second), key=lambda number: answers[number])
        orders = [(one, other), (other, one)]
        if not self._settings.both_orders:
            orders = [orders[int(requests.digest(answers[one], answers[other]), 16) % 2]]
        verdicts_ = await together(
            self._verdict(asked, requests.compare(self._settings, question, answers[a], answers[b])) for a, b in orders
        )
        if None in verdicts_:
            return None
        winners = [{"A": a, "B": b}.get(str(said)) for (a, b), said in zip(orders, verdicts_, strict=True)]
        same = len(set(winners)) == 1
        if self._settings.both_orders:
            asked.tally += Tally(both_orders=1, same_in_both=int(same))
        return winners[0] if same else None

    async def _score(self, asked: _Asked) -> Judged:
        question = asked.question
        try:
            found = await together(
                self._verdict(asked, requests.score(self._settings, question, answer)) for answer in question.answers
            )
        except _OutOfBudget:
            return Judged(None, None, None, problem=BUDGET_SPENT, tally=asked.tally)
        scores = [said if isinstance(said, float | int) else None for said in found]
        return by_scores(asked.question, scores, tally=asked.tally)

    async def _verdict(self, asked: _Asked, request: Request) -> Verdict | None:
        """The verdict on a request, from an earlier call or a new one; None when it can't be read."""
        answer = self._journal.find(request.key)
        flying = self._flying.get(request.key)
        if answer is not None:
            asked.tally += Tally(cached=1)
        elif flying is not None:
            answer = await flying
            asked.tally += Tally(cached=1)
        else:
            asking = asyncio.ensure_future(self._ask(asked, request))
            self._flying[request.key] = asking
            try:
                answer = await asking
            finally:
                del self._flying[request.key]
        asked.tally += Tally(verdicts=1, unparsable=int(answer.verdict is None))
        self._verdicts += 1
        if answer.verdict is None:
            self._unparsable += 1
            if len(self._examples) < EXAMPLES:
                self._examples.append(quoted(answer.text, 120))
        asked.alive()
        return answer.verdict

    async def _ask(self, asked: _Asked, request: Request) -> Answer:
        """Send a request until it is answered. Raises TrainerError, _OutOfBudget, _Halted."""
        words = ""
        async with self._slots:
            for attempt in range(self._settings.retries + 1):
                said = await self._call(asked, request)
                if not isinstance(said, Failed):
                    return said
                words = said.words
                wait = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)  # noqa: S311 Not a secret.
                if attempt < self._settings.retries:
                    await self._pause(max(said.wait, wait))
        raise self._failed(
            TrainerError(
                ExitCode.SOURCE_UNAVAILABLE,
                f"{self._settings.url}: no answer after {self._settings.retries + 1} tries: {words}; what was answered is kept, and the next attempt "
                "goes on from there",
            )
        )

    async def _call(self, asked: _Asked, request: Request) -> Answer | Failed:
        """Send a request once."""
        assert self._transport is not None
        await self._reserve(request.most)
        try:
            asked.tally += Tally(calls=1)
            number = await self._journal.call(request.key, request.estimate)
            try:
                said = await self._transport.send(request.body)
            except Exception as error:
                await self._journal.lost(number, 0)
                raise self._failed(error) from None
            if isinstance(said, Said):
                answer = self._read(said)
                tokens = said.tokens or request.estimate + len(said.text.encode("utf-8", "replace")) // 3
                await self._journal.answer(number, request.key, answer, said.text, tokens)
            else:
                tokens = request.estimate if isinstance(said, Failed) and said.costs else 0
                await self._journal.lost(number, tokens)
            asked.tally += Tally(tokens=tokens)
        finally:
            await self._release(request.most)
        if isinstance(said, Failed):
            return said
        # Not kept: another server, or another setting of it, may take the request.
        return Answer(None, said.words) if isinstance(said, Refused) else answer

    def _read(self, said: Said) -> Answer:
        found: Verdict | None = verdicts.score(said.text) if self.scores else verdicts.winner(said.text)
        if found is not None:
            return Answer(found)
        return Answer(None, (said.text[-TEXT:] or "no text") + (" (cut at maxTokens)" if said.cut else ""))

    async def _reserve(self, most: int) -> None:
        """Wait until a call of at most so many tokens fits into the budget. Raises _OutOfBudget when none will end that could make room."""
        async with self._room:
            await self._room.wait_for(lambda: self._halt.is_set() or self._fits(most) or self._reserved == 0)
            if self._halt.is_set():
                raise _Halted
            if not self._fits(most):
                self._exhausted = True
                raise _OutOfBudget
            self._reserved += most

    async def _release(self, most: int) -> None:
        async with self._room:
            self._reserved -= most
            self._room.notify_all()

    def _fits(self, most: int) -> bool:
        calls, tokens = self._budget.calls, self._budget.tokens
        spent = self._journal.spent
        return (calls is None or spent.calls < calls) and (
            tokens is None or spent.tokens + self._reserved + most <= tokens
        )

    def _failed(self, error: Exception) -> Exception:
        """Begin no more calls. The first error is the one that judge raises; the others may only follow from it."""
        self._failure = self._failure or error
        self._halt.set()
        return self._failure

    async def _pause(self, seconds: float) -> None:
        """Wait, unless the judge is halted meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._halt.wait(), seconds)


def _problem(tally: Tally) -> str:
    return "no verdict could be read" if tally.verdicts and tally.verdicts == tally.unparsable else ""

"""Two policies compared: the judge says whose answer to each prompt of the win rates is better."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpo_trainer.data.prompts import PromptSet
from dpo_trainer.judging import Judge, Judged, Question
from dpo_trainer.rounds.units import Answer, Unit
from dpo_trainer.rounds.winrates import WinRate, win_rate


@dataclass(frozen=True)
class Comparison:
    """A policy against the one before and the initial one.

    lines: for each prompt and each of the two its row, what it is against, the outcome (1 a win, 0.5 a tie, 0 a loss, None not judged) and the
    tokens of both answers.
    """

    lines: tuple[dict[str, Any], ...]
    previous: WinRate | None
    initial: WinRate | None

    @classmethod
    def of(cls, lines: Sequence[dict[str, Any]]) -> "Comparison":
        """Win rates of the lines."""
        rates = {}
        for against in ("previous", "initial"):
            some = [line for line in lines if line["against"] == against]
            lengths = [(int(line["tokens"][0]), int(line["tokens"][1])) for line in some]
            rates[against] = win_rate([line["outcome"] for line in some], lengths)
        return cls(tuple(lines), rates["previous"], rates["initial"])

    def fields(self) -> dict[str, Any]:
        """Fields of the RoundReport of the round that trained the policy."""
        found: dict[str, Any] = {}
        if self.previous is not None:
            found |= {"win_rate_previous": self.previous.rate, "win_rate_error": self.previous.error}
        if self.initial is not None:
            found |= {"win_rate_initial": self.initial.rate, "win_rate_length_controlled": self.initial.controlled}
        return found

    def worse_words(self, number: int) -> str:
        """How much worse the policy of a round is than the one before."""
        assert self.previous is not None
        rate = self.previous
        than = "the initial model" if number == 1 else f"that of round {number - 1}"
        return f"the policy of round {number} is worse than {than}: win rate {rate.rate:.2f} ± {rate.error:.2f} on {rate.count} prompts"


def compare(
    judge: Judge,
    prompts: PromptSet,
    now: Sequence[Unit],
    earlier: Mapping[str, Sequence[Unit]],
    decode: Callable[[np.ndarray], str],
    alive: Callable[[], None],
) -> Comparison:
    """Have the judge compare answers of a policy with those of earlier ones, by "previous" and "initial". Raises what the judge raises."""
    answers, rows = _flat(now), [int(row) for unit in now for row in unit.rows]
    asked = prompts.read(rows)
    lines: list[dict[str, Any]] = []
    known: dict[bytes, float | None] = {}
    for against, units in earlier.items():
        before = _flat(units)
        # Equal answers are a tie, and what was asked against one policy is not asked again against the same answers of the other.
        open_questions: dict[bytes, Question] = {}
        for prompt, row, ours, theirs in zip(asked, rows, answers, before, strict=True):
            key = _key(row, theirs)
            if not np.array_equal(ours.ids, theirs.ids) and key not in known:
                texts = (decode(ours.content), decode(theirs.content))
                lengths = (len(ours.ids), len(theirs.ids))
                open_questions[key] = Question(prompt.prompt, texts, lengths, prompt.expected, prompt.tools)
        judged = judge.judge(list(open_questions.values()), alive)
        for key, one in zip(open_questions, judged, strict=True):
            known[key] = _outcome(one)
        for row, ours, theirs in zip(rows, answers, before, strict=True):
            outcome = 0.5 if np.array_equal(ours.ids, theirs.ids) else known[_key(row, theirs)]
            lines.append(
                {"row": row, "against": against, "outcome": outcome, "tokens": [len(ours.ids), len(theirs.ids)]}
            )
    return Comparison.of(lines)


def _outcome(judged: Judged) -> float | None:
    """1 where the first of two answers is better, 0.5 for a tie; None where one of them could not be judged."""
    unknown = judged.scores is not None and None in judged.scores
    return None if judged.problem or unknown else {0: 1.0, 1: 0.0, None: 0.5}[judged.best]


def _flat(units: Sequence[Unit]) -> list[Answer]:
    """The one answer to each prompt."""
    return [answers[0] for unit in units for answers in unit.answers]


def _key(row: int, theirs: Answer) -> bytes:
    return f"{row}/".encode() + theirs.ids.tobytes()

"""Judges that are rules: no model, no calls, the same scores on every machine."""

import re
from collections.abc import Callable, Sequence

from dpo_operator.api.iterative import Builtin
from dpo_trainer.judging.contract import Judged, Question, Spent, by_scores
from dpo_trainer.runtime.errors import first_line, invalid_configuration

# Letters and digits, with apostrophes inside: don't is one word.
_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W_]+)*")

Rule = Callable[[Question], list[float | None]]


class BuiltinJudge:
    """Scores answers by a rule of spec.iterative.judge.builtin. Raises TrainerError INVALID_CONFIGURATION as check does."""

    scores = True
    exhausted = False
    spent = Spent()

    def __init__(self, settings: Builtin) -> None:
        check(settings)
        self._rule = _RULES[settings.name](settings)

    def judge(self, questions: Sequence[Question], alive: Callable[[], None]) -> list[Judged]:
        """Score all answers."""
        judged = []
        for question in questions:
            judged.append(by_scores(question, self._rule(question)))
            alive()
        return judged

    def close(self) -> None:
        """Nothing is held."""


def check(settings: Builtin) -> None:
    """Raise TrainerError INVALID_CONFIGURATION for settings that make no rule, with the field and the way out."""
    where = "spec.iterative.judge.builtin"
    match settings.name:
        case "distinctWords":
            if not settings.words and not settings.bad_words:
                raise invalid_configuration(f"{where}: distinctWords needs words or badWords, or all scores are 0")
            for name, words in (("words", settings.words), ("badWords", settings.bad_words)):
                for word in words:
                    if words_of(word) != {word.casefold()}:
                        raise invalid_configuration(
                            f"{where}.{name}: expected single words of letters and digits, found {word[:80]!r}, which no word of an answer "
                            "equals"
                        )
            if both := {word.casefold() for word in settings.words} & {word.casefold() for word in settings.bad_words}:
                raise invalid_configuration(f"{where}: {min(both)!r} is in words and in badWords; leave it out of one")
        case "length":
            if settings.tokens is None:
                raise invalid_configuration(f"{where}.tokens: length needs the wanted tokens of an answer")
        case "regex":
            if settings.pattern is None:
                raise invalid_configuration(f"{where}.pattern: regex needs a pattern in RE2 syntax")
            found(settings.pattern, ["x"])
        case "exactMatch":
            if settings.answer_column is None:
                raise invalid_configuration(
                    f"{where}.answerColumn: exactMatch needs the column of the right answer in the prompts"
                )


def words_of(text: str) -> set[str]:
    """Different words of a text, without case."""
    return set(_WORD.findall(text.casefold()))


def found(pattern: str, texts: Sequence[str]) -> list[bool]:
    """Whether a pattern is found in each text, by RE2, whose time grows in proportion to a text's length whatever the pattern.

    Raises TrainerError INVALID_CONFIGURATION for a pattern that RE2 does not know, such as one that looks back or ahead.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        # A lone surrogate, which no decoded answer has, would not be UTF-8.
        column = pa.array([text.encode("utf-8", "replace").decode() for text in texts], type=pa.large_string())
        matches: list[bool] = pc.match_substring_regex(column, pattern).to_pylist()
    except pa.ArrowInvalid as error:
        raise invalid_configuration(
            f"spec.iterative.judge.builtin.pattern: RE2 does not read it: {first_line(error)}; RE2 has no backreferences, no looking "
            "back or ahead, and at most 1000 repetitions"
        ) from error
    return matches


def _distinct_words(settings: Builtin) -> Rule:
    good = frozenset(word.casefold() for word in settings.words)
    bad = frozenset(word.casefold() for word in settings.bad_words)

    def rule(question: Question) -> list[float | None]:
        return [float(len(words & good) - len(words & bad)) for words in map(words_of, question.answers)]

    return rule


def _length(settings: Builtin) -> Rule:
    wanted = settings.tokens or 0
    return lambda question: [-float(abs(tokens - wanted)) for tokens in question.tokens]


def _regex(settings: Builtin) -> Rule:
    pattern = settings.pattern or ""
    return lambda question: [float(match) for match in found(pattern, question.answers)]


def _exact_match(_: Builtin) -> Rule:
    def rule(question: Question) -> list[float | None]:
        if question.expected is None:
            return [None] * len(question.answers)
        expected = question.expected.strip()
        return [float(answer.strip() == expected) for answer in question.answers]

    return rule


_RULES: dict[str, Callable[[Builtin], Rule]] = {
    "distinctWords": _distinct_words,
    "length": _length,
    "regex": _regex,
    "exactMatch": _exact_match,
}

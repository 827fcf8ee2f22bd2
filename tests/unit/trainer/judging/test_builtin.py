"""Rules that score answers: their numbers, and the settings that make no rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.iterative import Judge as Settings
from dpo_trainer.judging import Judged, Question, check_settings, open_judge
from dpo_trainer.runtime.errors import TrainerError
from dpo_trainer.runtime.workdir import WorkDir

pytestmark = pytest.mark.unit


def settings(**builtin: Any) -> Settings:
    return Settings.model_validate({"type": "builtin", "builtin": builtin})


def judged(question: Question, **builtin: Any) -> Judged:
    called: list[int] = []
    judge = open_judge(settings(**builtin), WorkDir(Path("nowhere")))
    [found] = judge.judge([question], lambda: called.append(1))
    judge.close()
    assert judge.scores
    assert called == [1]
    return found


def ask(*answers: str, expected: str | None = None) -> Question:
    return Question("Tell me.", answers, tuple(len(answer.split()) for answer in answers), expected)


def test_different_words_count_once_without_case() -> None:
    question = ask("Happy, happy HAPPY day", "a kind, happy cat", "sad; happy", "unhappy friends")
    found = judged(question, name="distinctWords", words=["happy", "Kind"], badWords=["sad"])
    assert found.scores == (1.0, 2.0, 0.0, 0.0)
    assert (found.best, found.worst) == (1, 2)


def test_words_are_letters_and_digits_with_apostrophes_inside() -> None:
    question = ask("Don't!", "dont 'do", "naïve_café x2", "ΣΊΣΥΦΟΣ")
    found = judged(question, name="distinctWords", words=["don't", "café", "x2", "σίσυφος"])
    assert found.scores == (1.0, 0.0, 2.0, 1.0)


def test_length_is_minus_the_distance_in_tokens() -> None:
    found = judged(ask("one two", "one two three", "one"), name="length", tokens=2)
    assert found.scores == (0.0, -1.0, -1.0)
    assert (found.best, found.worst) == (0, 1)


def test_regex_is_found_anywhere_and_dot_does_not_span_lines() -> None:
    question = ask("The answer is 42.", "the\nanswer is 42", "an answer: 4\n2")
    assert judged(question, name="regex", pattern=r"(?i)the answer is \d+").scores == (1.0, 0.0, 0.0)


def test_a_pattern_that_would_loop_elsewhere_takes_no_time() -> None:
    # With backtracking this is 2 to the power of 50,000 steps.
    assert judged(ask("x" * 50_000, "xxy"), name="regex", pattern="(x+x+)+y$").scores == (0.0, 1.0)


def test_exact_match_ignores_white_space_around_and_nothing_else() -> None:
    found = judged(ask(" 42\n", "42.", "4 2", expected="42"), name="exactMatch", answerColumn="answer")
    assert found.scores == (1.0, 0.0, 0.0)
    without = judged(ask("42", "43"), name="exactMatch", answerColumn="answer")
    assert (without.scores, without.problem) == ((None, None), "no answer could be scored")


@pytest.mark.parametrize(
    ("builtin", "message"),
    [
        ({"name": "distinctWords"}, "distinctWords needs words or badWords"),
        (
            {"name": "distinctWords", "words": ["thank you"]},
            "expected single words of letters and digits, found 'thank you'",
        ),
        ({"name": "distinctWords", "badWords": ["..."]}, "badWords: expected single words"),
        ({"name": "distinctWords", "words": ["Good"], "badWords": ["good"]}, "'good' is in words and in badWords"),
        ({"name": "length"}, "tokens: length needs"),
        ({"name": "regex"}, "pattern: regex needs a pattern"),
        ({"name": "regex", "pattern": "("}, "RE2 does not read it: Invalid regular expression: missing )"),
        ({"name": "regex", "pattern": r"(a)\1"}, "RE2 has no backreferences"),
        ({"name": "regex", "pattern": "a(?=b)"}, "invalid perl operator"),
        ({"name": "exactMatch"}, "answerColumn: exactMatch needs the column"),
    ],
)
def test_settings_that_make_no_rule_are_refused(builtin: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainerError) as refused:
        check_settings(settings(**builtin))
    assert refused.value.exit_code == ExitCode.INVALID_CONFIGURATION
    assert message in str(refused.value)


@pytest.mark.parametrize("check", [check_settings, lambda given: open_judge(given, WorkDir(Path("nowhere")))])
def test_the_part_that_type_names_must_be_there_alone(check: Callable[[Settings], Any]) -> None:
    given = Settings.model_validate({"type": "endpoint", "builtin": {"name": "length", "tokens": 3}})
    with pytest.raises(TrainerError, match="type is endpoint, so endpoint must be set and the others left out"):
        check(given)

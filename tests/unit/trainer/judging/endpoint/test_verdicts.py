"""Verdicts are read strictly: what is no verdict is never taken for one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_trainer.judging.endpoint import verdicts

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ('{"winner": "A"}', "A"),
        ('{"winner": "b"}', "B"),
        ('  {"winner": "tie"}\n', "tie"),
        ('{"reason": "A is short", "winner": "B"}', "B"),
        ("A", "A"),
        ("tie\n", "tie"),
        ('A says nothing, and B does.\n{"winner": "B"}', "B"),
        ('<think>A? No.</think>\n{"winner": "B"}', "B"),
        ('Because:\n```json\n{"winner": "A"}\n```', "A"),
        ('```\n{"winner": "A"}\n```', "A"),
    ],
)
def test_a_winner_is_an_object_or_the_only_word(text: str, winner: str) -> None:
    assert verdicts.winner(text) == winner


@pytest.mark.parametrize(
    "text",
    [
        "", "A is better", "The winner is A", "[[A]]", "C", '{"winner": "C"}', '{"winner": 1}', '{"winner": null}', '["A"]', '"A"',
        '{"winner": "A"} or so', '{"winner": "A", "winner": "B"}', '{"winner": "A"}\n{"winner"', '{"Winner": "A"}', "{" * 5000, "A B", "A\nB",
        '{"winner": "A"}\nNo, wait.', "``````", "```",
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_no_winner(text: str) -> None:
    assert verdicts.winner(text) is None


@pytest.mark.parametrize(
    ("text", "score"),
    [('{"score": 7}', 7.0), ('{"score": 1}', 1.0), ('{"score": 10}', 10.0), ('{"score": 6.5}', 6.5), ("8", 8.0), (" 10\n", 10.0),
     ('{"score": "4"}', 4.0), ('Clear, but 2 errors of 10.\n{"score": 6}', 6.0)],
)  # fmt: skip
def test_a_score_is_an_object_or_the_only_number(text: str, score: float) -> None:
    assert verdicts.score(text) == score


@pytest.mark.parametrize(
    "text",
    [
        "", "7/10", "Score: 7", "I give 7", "7 of 10", "0", "11", "-3", '{"score": 0}', '{"score": 11}', '{"score": true}', '{"score": NaN}',
        '{"score": 1e999}', '{"score": [7]}', "seven", "²", "٣", "1000000", '{"score": 3, "score": 9}',
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_no_score(text: str) -> None:
    assert verdicts.score(text) is None


@given(st.text(max_size=200), st.integers(1, 10))
def test_reasons_before_a_verdict_change_nothing(reasons: str, score: int) -> None:
    assert verdicts.score(f'{reasons}\n{{"score": {score}}}') == score


@given(st.text(max_size=200).filter(lambda text: len(text.split()) > 1 and "{" not in text))
def test_a_text_without_an_object_is_never_a_verdict(text: str) -> None:
    assert verdicts.score(text) is None
    assert verdicts.winner(text) is None

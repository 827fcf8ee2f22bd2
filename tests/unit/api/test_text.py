"""What strangers wrote, as people may read it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_operator.api.text import MAX_SHOWN, quoted, shown

pytestmark = pytest.mark.unit

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=200)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain words, “quoted” é 漢字 👍", "plain words, “quoted” é 漢字 👍"),
        ("two\nlines\r\n\tand\u2028more\u0085here", "two lines and more here"),
        ("\x1b[31mred\x9b0m", "�[31mred�0m"),
        ("a\u202eb\u2066c\u200bd\ufeffe\u200ff", "a�b�c�d�e�f"),
        ("a\U000e0041b\u3164c\ufe0fd\u2800e", "a�b�c�d�e"),
        ("half \ud83d of a pair", "half � of a pair"),
        ("Z" + "\u0336" * 50 + "!", "Z\u0336\u0336\u0336!"),
        ("  \n ", ""),
    ],
)
def test_strangers_write_one_line_of_visible_characters(text: str, seen: str):
    assert shown(text) == seen


@given(ANY_TEXT, st.integers(16, 80))
def test_what_was_shown_once_stays_as_it_is(text: str, limit: int):
    once = shown(text * 3, limit)
    assert len(once) <= limit
    assert once.isprintable()
    assert shown(once, limit) == once
    once.encode()


def test_the_end_of_a_long_text_is_kept():
    text = shown("why " + "x" * 10**6 + " so the job failed")
    assert len(text) <= MAX_SHOWN
    assert text.startswith("why x")
    assert text.endswith("so the job failed")


def test_nobody_closes_the_quotation_marks_around_his_words():
    assert quoted("it says ”done”, and “more‟") == '“it says "done", and "more"”'

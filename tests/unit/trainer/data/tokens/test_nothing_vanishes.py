"""Whatever a row holds is in the tokens at its place, or the row is refused with the way out: over all templates and formats."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_operator.api.data import Template
from dpo_trainer.data.tokens.tokenization import PairTokenizer
from dpo_trainer.data.tokens.truncation import Limits
from tests.unit.trainer.data.tokens import templates
from tests.unit.trainer.data.tokens.conversations import FORMATS, TEXT_FORMATS, Talk, Turn, refused_or_lost, talks

pytestmark = pytest.mark.unit

WIDE = Limits(1 << 20, None, "keep_end")
# What a refusal names: a setting, or what to change in the data.
WAYS_OUT = (
    "model.chatTemplate",
    "ignoreColumns",
    "columns.system",
    "data.template",
    "rename the role",
    "leave what the template writes",
)
_quiet = settings(deadline=None, suppress_health_check=[*HealthCheck])


@functools.cache
def pairs(name: str, keep: str = "all") -> PairTokenizer:
    return PairTokenizer(templates.tokenizer(name), WIDE, (), Template(keep_reasoning=keep))


def check(talk: Talk, layout: str, name: str) -> None:
    """The property."""
    rejection, lost = refused_or_lost(talk, layout, pairs(name), templates.tokenizer(name))
    assert not lost, f"{name}, {layout}: {lost}"
    if rejection is None:
        return
    assert any(way in rejection.detail for way in WAYS_OUT), rejection
    assert "§" not in rejection.detail, "a refusal never quotes the row"
    assert not talk.simple, f"{name} refuses a question and two answers: {rejection}"


@pytest.mark.parametrize("layout", FORMATS)
@settings(_quiet, max_examples=40)
@given(st.data())
def test_all_text_is_in_the_tokens_or_the_row_is_refused(layout, data):
    name = data.draw(st.sampled_from(templates.NAMES))
    check(data.draw(talks(text=layout in TEXT_FORMATS)), layout, name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", templates.NAMES)
@pytest.mark.parametrize("layout", FORMATS)
@settings(_quiet, max_examples=200)
@given(st.data())
def test_all_text_with_each_template_and_format(layout, name, data):
    check(data.draw(talks(text=layout in TEXT_FORMATS)), layout, name)


SIMPLE = Talk((Turn("user", "§1§ §2§"),), Turn("assistant", "§3§\n§4§"), Turn("assistant", "§5§"))


@pytest.mark.parametrize("name", templates.NAMES)
def test_a_question_and_two_answers_are_never_refused(name):
    assert refused_or_lost(SIMPLE, "messages", pairs(name), templates.tokenizer(name)) == (None, "")

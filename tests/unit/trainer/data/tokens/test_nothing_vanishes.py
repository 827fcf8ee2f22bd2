"""Whatever a row holds is in the tokens at its place, or the row is refused with the way out: over all templates and formats."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_operator.api.data import Columns, Template
from dpo_trainer.data.formats import chats, compose, normalize
from dpo_trainer.data.tokens.chat_template import ChatTemplate
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


ASK = Turn("user", "§1§")
CALL = {"type": "function", "id": "call00001", "function": {"name": "§7§", "arguments": {"§8§": "§9§"}}}
GOOD, BAD = Turn("assistant", "§3§"), Turn("assistant", "§4§")
TOOL = {"type": "function", "function": {"name": "§5§", "description": "§6§", "parameters": {}}}
# A mend, what takes it out, and a conversation with its format and template of which something is lost then.
FAULTS = {
    "the look for all texts, and a thought that R1 cuts": (
        [(ChatTemplate, "_check", lambda *_: False)], Talk((ASK,), Turn("assistant", "§3§", thought="§5§"), BAD), "messages", "deepseek_r1_distill",
    ),
    "the look for all texts, and a role that Qwen leaves out": (
        [(ChatTemplate, "_check", lambda *_: False)], Talk((Turn("critic", "§2§"), ASK), GOOD, BAD), "messages", "qwen2_5",
    ),
    "the look for all texts, and tools that Llama 3 ignores": (
        [(ChatTemplate, "_check", lambda *_: False)], Talk((ASK,), GOOD, BAD, tools=(TOOL,)), "whole conversations", "llama3",
    ),
    "the look for calls, and calls that Llama 3 ignores": (
        [(ChatTemplate, "_check_calls", lambda *_: None)],
        Talk((ASK, Turn("assistant", "§2§", calls=(CALL,)), Turn("tool", "§6§")), GOOD, BAD), "sharegpt", "llama3",
    ),
    "the look for roles, and one that a template takes for the user": (
        [(ChatTemplate, "_check_roles", lambda *_: None)], Talk((Turn("critic", "§2§"), ASK), GOOD, BAD), "messages", templates.TWO_ROLES,
    ),
    "reading reasoning": (
        [(chats, "_reasoning", lambda *_: "")], Talk((ASK,), Turn("assistant", "§3§", reasoning="§5§"), BAD), "messages", "qwen3",
    ),
    "reading tool calls": (
        [(chats, "tool_calls", lambda *_: ())], Talk((ASK,), Turn("assistant", "§3§", calls=(CALL,)), BAD), "messages", "qwen3",
    ),
    "reading tools": ([(compose, "tools_beside", lambda *_: ())], Talk((ASK,), GOOD, BAD, tools=(TOOL,)), "scored", "qwen3"),
    "reading the system column": ([(compose, "system_of", lambda *_: None)], Talk((ASK,), GOOD, BAD, "§2§"), "votes", "qwen2_5"),
    "refusing a system column beside text": (
        [(compose, "check_unread", lambda *_: None)], Talk((ASK,), GOOD, BAD, "§2§"), "pairs", "qwen2_5",
    ),
    "joining a prompt that is repeated": (
        [(compose, "_with_earlier", lambda given, prompt, _: chats.conversation(given.value, "prompt", "user") + prompt)],
        Talk((ASK,), GOOD, BAD), "conversations that repeat the prompt", "qwen2_5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_the_property_finds_a_fault_when_its_mend_is_out(monkeypatch, name):
    changes, talk, layout, template = FAULTS[name]
    check(talk, layout, template)  # kept or refused
    for place, attribute, instead in changes:
        monkeypatch.setattr(place, attribute, instead)
    with pytest.raises(AssertionError, match=r" of | in "):
        check(talk, layout, template)


def test_only_an_assistants_thoughts_may_be_left_out():
    """The template cuts a user's text as it cuts thoughts."""
    cutting = templates.TWO_ROLES.replace("m['content']", "m['content'].split('</think>')[-1]")
    tokenizer, hf = (
        PairTokenizer(templates.tokenizer(cutting), WIDE, (), Template(keep_reasoning="none")),
        templates.tokenizer(cutting),
    )
    thoughtful = Talk((ASK,), Turn("assistant", "§3§", thought="§5§"), BAD)
    assert "§5§" in refused_or_lost(thoughtful, "messages", tokenizer, hf)[1]
    rejection, _ = refused_or_lost(Talk((Turn("user", "§1§", thought="§5§"),), GOOD, BAD), "messages", tokenizer, hf)
    assert "text of message 1 (role user)" in rejection.detail


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "glm4moe", "nemotron_3_nano", "lfm2_2_5", "llama3"])
def test_thoughts_give_the_tokens_of_apply_chat_template(name, special):
    hf = templates.tokenizer(name, special_thoughts=special)
    said = ["<think>\nI think about it.\n</think>\n\nAn apple.", "<think>\nNo.\n</think>\n\nA carrot"]
    ask = {"role": "user", "content": "A fruit?"}
    row = {
        "prompt": [ask],
        **{
            side: [{"role": "assistant", "content": text}]
            for side, text in zip(("chosen", "rejected"), said, strict=True)
        },
    }
    ((_, found),) = PairTokenizer(hf, WIDE).run([(0, normalize(row, "messages", Columns()))])
    for ids, text in ((found.chosen, said[0]), (found.rejected, said[1])):
        whole = hf.apply_chat_template([ask, {"role": "assistant", "content": text}], tokenize=True)["input_ids"]
        ours = [*found.prompt.tolist(), *ids.tolist()]
        assert ours == whole[: len(ours)] or ours == [*whole, hf.eos_token_id]
        assert not hf.decode(whole[len(ours) :]).strip()

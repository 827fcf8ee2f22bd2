"""Rows of every shape become pairs, or a reason."""

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats import Format, Rejection, detect, normalize
from dpo_trainer.data.formats.detection import columns_read
from dpo_trainer.data.formats.pairs import Message, Reason, TextPair
from tests.unit.trainer.chats import chat_pair

pytestmark = pytest.mark.unit

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
RUDE = {"role": "assistant", "content": "What?"}
COLUMNS = Columns()


def reason(row, row_format, columns=COLUMNS):
    found = normalize(row, row_format, columns)
    return found.reason if isinstance(found, Rejection) else found


def test_pairs_keep_their_text_as_it_is():
    row = {"prompt": "Q: \u0000ä\n", "chosen": " yes ", "rejected": " no\t", "extra": 1}
    assert normalize(row, "pairs", COLUMNS) == TextPair("Q: \u0000ä\n", " yes ", " no\t")


def test_columns_can_have_other_names():
    row = {"question": "Q", "good": "a", "bad": "b"}
    assert normalize(row, "pairs", Columns(prompt="question", chosen="good", rejected="bad")) == TextPair("Q", "a", "b")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Spell it.", "input": "freind"}, "Spell it.\n\nfreind\n\n"),
        ({"instruction": "Spell it.", "input": ""}, "Spell it.\n\n"),
        ({"instruction": "Spell it.", "input": None}, "Spell it.\n\n"),
        ({"instruction": "Spell it."}, "Spell it.\n\n"),
        ({"prompt": "Q", "instruction": "not this"}, "Q"),
    ],
)
def test_instruction_and_input_make_a_prompt(row, prompt):
    assert normalize(row | {"chosen": "a", "rejected": "b"}, "pairs", COLUMNS) == TextPair(prompt, "a", "b")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1], Reason.NOT_AN_OBJECT),
        (None, Reason.NOT_AN_OBJECT),
        ({}, Reason.MISSING_COLUMN),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, Reason.MISSING_COLUMN),
        ({"prompt": "Q", "chosen": "a"}, Reason.MISSING_COLUMN),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, Reason.WRONG_TYPE),
        ({"prompt": "Q", "chosen": ["a"], "rejected": "b"}, Reason.WRONG_TYPE),
        ({"prompt": " \n", "chosen": "a", "rejected": "b"}, Reason.EMPTY_PROMPT),
        ({"prompt": "Q", "chosen": " \n", "rejected": "b"}, Reason.EMPTY_CHOSEN),
        ({"prompt": "Q", "chosen": "a", "rejected": ""}, Reason.EMPTY_REJECTED),
        ({"prompt": "Q", "chosen": "a", "rejected": "a\n"}, Reason.EQUAL_ANSWERS),
        ({"prompt": "Q", "chosen": "a\ud800", "rejected": "b"}, Reason.INVALID_TEXT),
    ],
)
def test_unusable_pairs_have_a_reason(row, expected):
    assert reason(row, "pairs") == expected


def test_rejections_do_not_quote_the_data():
    found = normalize({"prompt": "secret-p", "chosen": "secret-a", "rejected": "secret-a"}, "pairs", COLUMNS)
    assert isinstance(found, Rejection)
    assert "secret" not in found.detail


def test_dialogue_is_split_at_the_last_answer():
    start = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"
    assert normalize({"chosen": start + " yes", "rejected": start + " no"}, "dialogue", COLUMNS) == TextPair(
        start, " yes", " no"
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("\n\nHuman: A\n\nAssistant: x", "\n\nHuman: B\n\nAssistant: y", Reason.PROMPTS_DIFFER),
        ("\n\nHuman: A\n\nAssistant: x", "no marks", Reason.MALFORMED_DIALOGUE),
        ("\n\nAssistant: x", "\n\nAssistant: y", Reason.EMPTY_PROMPT),
    ],
)
def test_dialogues_that_do_not_fit(chosen, rejected, expected):
    assert reason({"chosen": chosen, "rejected": rejected}, "dialogue") == expected


def test_real_degenerate_dialogues_are_counted(shared):
    rows = [json.loads(line) for line in (shared / "data/hh_helpful_base/odd.jsonl").read_text().splitlines()]
    found = sorted(reason(row, "dialogue").value for row in rows)
    assert found == ["empty_rejected"] * 4 + ["equal_answers"] * 2 + ["prompts_differ"] * 2


def test_real_equal_answers_are_found_at_their_rows(shared):
    rows = json.loads((shared / "data/polite_rude/instruction-data-with-preference.json").read_text())
    rejected = [i for i, row in enumerate(rows) if isinstance(normalize(row, "pairs", COLUMNS), Rejection)]
    assert rejected == [122, 226, 400, 566, 628, 676]


PAIR = chat_pair((Message("user", "Hi"),), "Hello", "What?")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"prompt": [USER], "chosen": [BOT], "rejected": [RUDE]}, id="explicit prompt"),
        pytest.param({"chosen": [USER, BOT], "rejected": [USER, RUDE]}, id="implicit prompt"),
        pytest.param({"prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, RUDE]}, id="ultrafeedback_binarized"),
        pytest.param({"prompt": [USER], "chosen": [USER, BOT], "rejected": [USER, RUDE]}, id="prompt repeated"),
        pytest.param({"prompt": "Hi", "chosen": [BOT], "rejected": [RUDE]}, id="prompt as text"),
        pytest.param({"prompt": [USER], "chosen": "Hello", "rejected": "What?"}, id="answers as text"),
        pytest.param(
            {"prompt": None, "chosen": [USER | {"tool_calls": None}, BOT], "rejected": [USER | {"name": None}, RUDE]},
            id="columns that datasets filled with None",
        ),
        pytest.param(
            {
                "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
                "chosen": [BOT],
                "rejected": [RUDE],
            },
            id="content in parts",
        ),
    ],
)
def test_messages_in_every_shape_give_the_same_pair(row):
    assert normalize(row, "messages", COLUMNS) == PAIR
    assert detect([row], COLUMNS) == "messages"


def test_a_system_message_column_comes_before_whole_conversations():
    system = {"role": "system", "content": "Be kind."}
    row = {"prompt": [system], "chosen": [USER, BOT], "rejected": [USER, RUDE]}
    assert normalize(row, "messages", COLUMNS) == chat_pair(
        (Message("system", "Be kind."), Message("user", "Hi")), "Hello", "What?"
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"chosen": [USER, BOT], "rejected": [{"role": "user", "content": "Yo"}, RUDE]}, Reason.PROMPTS_DIFFER),
        ({"chosen": [USER, BOT, USER, BOT], "rejected": [USER, RUDE, USER, BOT]}, Reason.PROMPTS_DIFFER),
        ({"chosen": [USER, USER], "rejected": [USER, RUDE]}, Reason.MALFORMED_MESSAGES),
        ({"prompt": [USER, BOT], "chosen": [BOT], "rejected": [RUDE]}, Reason.MALFORMED_MESSAGES),
        ({"prompt": [], "chosen": [BOT], "rejected": [RUDE]}, Reason.EMPTY_PROMPT),
        ({"chosen": [BOT], "rejected": [RUDE]}, Reason.MISSING_COLUMN),
        ({"chosen": [], "rejected": [RUDE]}, Reason.MALFORMED_MESSAGES),
        ({"chosen": [USER, BOT | {"tool_calls": [{"id": "1"}]}], "rejected": [USER, RUDE]}, Reason.MALFORMED_MESSAGES),
        ({"chosen": [USER, {"role": "assistant", "content": None}], "rejected": [USER, RUDE]}, Reason.WRONG_TYPE),
        ({"chosen": ["Hi"], "rejected": [USER, RUDE]}, Reason.WRONG_TYPE),
        ({"chosen": [USER, BOT | {"content": " "}], "rejected": [USER, RUDE]}, Reason.EMPTY_CHOSEN),
        ({"chosen": [USER, BOT], "rejected": [USER, BOT]}, Reason.EQUAL_ANSWERS),
    ],
)
def test_messages_that_do_not_fit(row, expected):
    assert reason(row, "messages") == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "pairs"),
        ({"instruction": "Q", "chosen": "a", "rejected": "b"}, "pairs"),
        ({"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: A\n\nAssistant: y"}, "dialogue"),
        ({"chosen": "a", "rejected": "b"}, None),
        ({"text": "a"}, None),
        ("a", None),
    ],
)
def test_detection(row, expected):
    assert detect([row], COLUMNS) == expected


def test_one_odd_row_does_not_change_the_detected_format():
    assert detect([{"prompt": ["x"]}, *[{"prompt": "Q", "chosen": "a", "rejected": "b"}] * 3], COLUMNS) == "pairs"


def test_only_columns_of_formats_and_filters_are_decoded():
    table = ["question", "info", "meta", "chosen", "rejected", "model", "id", "score_chosen"]
    read = columns_read(table, Columns(prompt="info.post"), {"meta.lang"})
    assert read == ["question", "info", "meta", "chosen", "rejected", "score_chosen"]


NAMES = [
    "prompt", "chosen", "rejected", "instruction", "input", "question", "conversations", "messages", "completion", "label",
    "responses", "scores", "completions", "answers", "response_a", "response_b", "votes", "winner", "system", "score_chosen",
    "score_rejected", "nested", "nested.text",
]  # fmt: skip
KEYS = [
    "role", "content", "from", "value", "type", "text", "tool_calls", "score", "rank", "response", "messages", "a", "b", "tie",
    "vote",
]  # fmt: skip
WORDS = [
    "\n\nAssistant:",
    "\n\nHuman: a\n\nAssistant: b",
    "assistant",
    "gpt",
    "user",
    "Human",
    "a",
    "tie",
    "true",
    "0.7",
    "N/A",
]
_text = st.text(st.characters(), max_size=8) | st.sampled_from(WORDS)
_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | _text, inner, max_size=4),
    max_leaves=12,
)
_row = _value | st.dictionaries(st.sampled_from(NAMES), _value, max_size=8)
_columns = st.sampled_from([
    COLUMNS, Columns(system="system"), Columns(prompt="nested.text", chosen="nested.text"), Columns(responses="answers", scores="rank"),
])  # fmt: skip


@settings(max_examples=400)
@given(_row, st.sampled_from(get_args(Format)), _columns)
def test_any_row_is_a_pair_or_a_reason(row, row_format, columns):
    found = normalize(row, row_format, columns)
    detect([row], columns)
    if isinstance(found, Rejection):
        found.detail.encode()
        return
    answers = [answer for answer in (found.chosen, found.rejected) if answer is not None]
    assert len(answers) == (1 if row_format == "unpaired" else 2)
    assert len({answer.strip() for answer in answers} - {""}) == len(answers)
    "".join(answers).encode()
    assert found.agreement is None or 0.5 < found.agreement <= 1

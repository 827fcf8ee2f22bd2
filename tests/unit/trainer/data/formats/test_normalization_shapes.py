"""Rows as known data sets write them give the pair that a person would read out of them, through the operator's job file."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel

from dpo_operator.api.data import Columns
from dpo_trainer.data.formats import Rejection, detect, normalize, read_rows
from dpo_trainer.data.formats.pairs import Reason, TextPair
from dpo_trainer.data.formats.values import lookup
from tests.unit.trainer.chats import chat_pair
from tests.unit.trainer.data.formats.layouts import (
    ASK,
    BOT,
    DIALOGUE,
    RUDE,
    SHAPES,
    USER,
    in_the_job_file,
)

pytestmark = pytest.mark.unit


def through_the_job_file(columns: dict) -> Columns:
    """Columns of a job that maps these."""
    train = {"source": "org/pairs", "columns": columns}
    return in_the_job_file({"metadata": {"name": "x"}, "spec": {"model": {"name": "org/m"}, "data": {"train": train}}})


def read(row: dict, **columns):
    """Format as it is detected from the row alone, and what is read."""
    named = through_the_job_file(columns)
    row_format = detect([row], named)
    return row_format, None if row_format is None else normalize(row, row_format, named)


@pytest.mark.parametrize(("shape", "row", "columns", "expected"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_known_data_sets_are_detected_and_read(shape, row, columns, expected):
    found, pair = read(row, **columns)
    assert found == shape
    if isinstance(pair, Rejection):
        pytest.fail(str(pair))
    assert pair == type(expected)(
        expected.prompt, expected.chosen, expected.rejected,
        pytest.approx(expected.score_gap), pytest.approx(expected.agreement),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("label", "desirable"),
    [
        (True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False), ("true", True), ("False", False), ("1", True),
        ("0", False), ("yes", True), ("NO", False), (" good ", True), ("bad", False), ("desirable", True), ("undesirable", False),
        (0.7, None), (2, None), (-1, None), ("maybe", None), ("", None), ([True], None), ({"a": 1}, None), ("nan", None),
    ],
)  # fmt: skip
def test_an_ambiguous_label_is_rejected(label, desirable):
    found = normalize({"prompt": "Q", "completion": "a", "label": label}, "unpaired", Columns())
    if desirable is None:
        assert isinstance(found, Rejection)
        assert (found.reason, found.detail.split(":")[0]) == (Reason.WRONG_TYPE, "label")
    else:
        assert found == TextPair("Q", "a" if desirable else None, None if desirable else "a")


def scored(responses, **columns):
    return {"prompt": "Q", "responses": responses, **columns}


def voted(votes, a="x", b="y"):
    return {"prompt": "Q", "response_a": a, "response_b": b, "votes": votes}


def two(a, b, **columns):
    return {"prompt": "Q", "response_a": "x", "response_b": "y", "score_a": a, "score_b": b, **columns}


@pytest.mark.parametrize(
    ("row", "row_format", "reason", "expected"),
    [
        (scored(["a", "b"], scores=[1, 1.0]), "scored", Reason.TIE, "2 answers, of which no two have different scores"),
        (scored(["a"], scores=[1]), "scored", Reason.TIE, "1 answers"),
        (scored([], scores=[]), "scored", Reason.TIE, "0 answers"),
        (scored(["a", "b"], scores=[1]), "scored", Reason.BAD_SCORE, "scores: 1 scores for the 2 answers in responses"),
        (scored(["a", "b"], scores=[1, None]), "scored", Reason.BAD_SCORE, "scores of responses[1]: expected a finite number, found null"),
        (scored(["a", "b"], scores=[1, True]), "scored", Reason.BAD_SCORE, "found a boolean"),
        (scored(["a", "b"], scores=[1, float("nan")]), "scored", Reason.BAD_SCORE, "finite"),
        (scored(["a", "b"], scores=[1, "N/A"]), "scored", Reason.BAD_SCORE, "found text"),
        (scored(["a", "b"]), "scored", Reason.MISSING_COLUMN, "no list of scores in column scores"),
        (scored("a", scores=[1]), "scored", Reason.WRONG_TYPE, "responses: expected a list of answers, found text"),
        (scored([True, "b"], scores=[2, 1]), "scored", Reason.WRONG_TYPE, "responses[0]: expected text, found a boolean"),
        (scored([{"says": "a", "score": 2}, {"text": "b", "score": 1}]), "scored", Reason.WRONG_TYPE, "responses[0]: expected text, messages"),
        (scored([{"text": "a", "score": 2}, {"text": "b"}]), "scored", Reason.BAD_SCORE, "score of responses[1]"),
        (scored(["a ", "a"], scores=[2, 1]), "scored", Reason.EQUAL_ANSWERS, "same"),
        (voted("tie"), "votes", Reason.TIE, "as many votes for response_a as for response_b"),
        (voted(["a", "b"]), "votes", Reason.TIE, "as many votes"),
        (voted({"a": 1, "b": 1, "tie": 5}), "votes", Reason.TIE, "as many votes"),
        (voted([]), "votes", Reason.BAD_VOTE, "votes: no votes"),
        (voted({"a": 0}), "votes", Reason.BAD_VOTE, "votes: no votes"),
        (voted(2), "votes", Reason.BAD_VOTE, "found 2"),
        (voted(True), "votes", Reason.BAD_VOTE, "found a boolean"),
        (voted("gpt-4"), "votes", Reason.BAD_VOTE, "expected a, b or tie"),
        (voted({"a": -1, "b": 2}), "votes", Reason.BAD_VOTE, "expected a number of votes"),
        (voted("a", a=True), "votes", Reason.WRONG_TYPE, "response_a: expected text, found a boolean"),
        ({"prompt": "Q", "completion": True, "label": True}, "unpaired", Reason.WRONG_TYPE, "completion: expected text, found a boolean"),
        ({"prompt": "Q", "completion": "a", "label": None}, "unpaired", Reason.MISSING_COLUMN, "no value in column label"),
        ({"prompt": "Q", "completion": " ", "label": 0}, "unpaired", Reason.EMPTY_REJECTED, "rejected answer is empty"),
        ({"messages": [USER], "label": True}, "unpaired", Reason.MALFORMED_MESSAGES, "messages: the last message is not"),
        ({"messages": [USER, BOT, USER], "label": True}, "unpaired", Reason.MALFORMED_MESSAGES, "messages: the last message is not"),
        ({"prompt": "Q", "chosen": True, "rejected": "b"}, "pairs", Reason.WRONG_TYPE, "chosen: expected text, found a boolean"),
        ({"prompt": "Q", "chosen": {"text": "a"}, "rejected": "b"}, "pairs", Reason.WRONG_TYPE, "such as chosen.text goes into it"),
        ({"question": "Q", "context": "C", "chosen": "a", "rejected": "b"}, "pairs", Reason.MISSING_COLUMN, "set columns.prompt"),
        ({"prompt": "Q", "completion": "a", "label": 1}, "pairs", Reason.OTHER_FORMAT, "looks like unpaired, and the data are read as pairs"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b"}, "unpaired", Reason.OTHER_FORMAT, "looks like pairs"),
        ({"prompt": [USER], "chosen": [BOT], "rejected": [RUDE]}, "pairs", Reason.OTHER_FORMAT, "looks like messages"),
        (voted("a"), "scored", Reason.OTHER_FORMAT, "looks like votes"),
        ({"prompt": {"0": "Q", "1": "R"}, "chosen": {"0": "a", "1": "b"}, "rejected": {"0": "c", "1": "d"}}, "pairs", Reason.WRONG_TYPE,
         "prompt: expected text, found an object of a whole column, as to_json of pandas writes it; write one object for each row"),
        ({"chosen": f"{DIALOGUE} a\n\nHuman: More", "rejected": f"{DIALOGUE} b"}, "dialogue", Reason.MALFORMED_DIALOGUE,
         "chosen: the text continues with '\\n\\nHuman:' after the last answer"),
        (two(1, 1), "scored", Reason.TIE, "score_a and score_b: neither answer is better"),
        (two(1, None), "scored", Reason.MISSING_COLUMN, "no value in column score_b"),
        (two(1, True), "scored", Reason.BAD_SCORE, "score_b: expected a finite number, found a boolean"),
        (two(1, 0, response_b=" "), "scored", Reason.EMPTY_REJECTED, "empty"),
        ({"prompt": "Q", "response1": "a", "response2": "b", "overall_preference": 0}, "scored", Reason.TIE, "overall_preference: neither"),
        ({"prompt": "Q", "response1": "a", "response2": "b", "overall_preference": "1st"}, "scored", Reason.BAD_SCORE, "found text"),
        ({"prompt": '["Q"]', "chosen": '["a"]', "rejected": '["b"]'}, "pairs", Reason.OTHER_FORMAT,
         "looks like messages, and the data are read as pairs: prompt and chosen and rejected: text that holds a list of turns as JSON"),
        ({"prompt": '["Q"]', "chosen": '["a"]', "rejected": '["b", "c"]'}, "messages", Reason.MALFORMED_MESSAGES,
         "rejected: 2 answers to the 1 texts in prompt"),
        ({"prompt": '["Q", "R"]', "chosen": '["a", "b"]', "rejected": '["c", "b"]'}, "messages", Reason.PROMPTS_DIFFER,
         "differ before their last message"),
        ({"prompt": '["Q"]', "chosen": '["a"]', "rejected": "[null]"}, "messages", Reason.WRONG_TYPE,
         "rejected: expected text, found null"),
        ({"prompt": "Q", "chosen": json.dumps([USER, BOT]), "rejected": "a"}, "pairs", Reason.OTHER_FORMAT,
         "chosen: text that begins like chat messages and holds them as JSON; write the list itself, and set format to messages"),
        ({"prompt": "Q", "chosen": "[{'role': 'user' 'content': array(['Hi'])}]", "rejected": "a"}, "pairs", Reason.WRONG_TYPE,
         "chosen: text that begins like chat messages and is neither JSON nor Python"),
        ({"prompt": "Q", "chosen": json.dumps({"tools": [], "messages": [USER, BOT]}), "rejected": "a"}, "pairs", Reason.WRONG_TYPE,
         "chosen: text that holds an object as JSON, with tools, messages; a name such as chosen.messages goes into it"),
        ({"prompt": "Q", "chosen": "a", "rejected": "b", "images": ["x.png"]}, "pairs", Reason.WRONG_TYPE,
         "images: the row has more than text, and models are trained on text alone; leave such rows out with filters.where"),
        ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "image_url", "image_url": "x"}]}],
          "chosen": [BOT], "rejected": [RUDE]}, "messages", Reason.WRONG_TYPE,
         "prompt: a message's content has a part that is not text (image_url)"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}], "chosen": [BOT], "rejected": [RUDE]}, "messages",
         Reason.WRONG_TYPE, "prompt: a message's content has a text part without its text"),
        ({"query": "Q", "history": [["q", "a"]], "response": "a", "rejected_response": "b"}, "pairs", Reason.MISSING_COLUMN,
         "query and history could all be it; set columns.prompt"),
        ({"instruction": "Q", "history": [["q", "a"]], "chosen": "a", "rejected": "b"}, "pairs", Reason.MALFORMED_MESSAGES,
         "history: earlier turns beside instruction, which are not read"),
    ],
)  # fmt: skip
def test_rows_of_no_format_are_rejected_with_a_reason(row, row_format, reason, expected):
    found = normalize(row, row_format, Columns())
    assert isinstance(found, Rejection), found
    assert found.reason == reason, found
    assert expected in found.detail


@pytest.mark.parametrize(
    ("first", "second", "vote", "chosen"),
    [
        ("response_0", "response_1", 0, "x"), ("response_0", "response_1", 1, "y"), ("response_0", "response_1", 2, None),
        ("output_1", "output_2", 1, "x"), ("output_1", "output_2", "2", "y"), ("output_1", "output_2", 3, None),
        ("output_1", "output_2", {"1": 1, "2": 3}, "y"), ("gpt4", "llama2", 0, "x"), ("left", "right", 1, "y"),
    ],
)  # fmt: skip
def test_a_numeric_vote_means_the_column_with_that_number(first, second, vote, chosen):
    row = {"prompt": "Q", first: "x", second: "y", "vote": vote}
    found = normalize(row, "votes", Columns(answer_a=first, answer_b=second, votes="vote"))
    if chosen is None:
        assert isinstance(found, Rejection)
        assert found.reason == Reason.BAD_VOTE
    else:
        assert isinstance(found, TextPair)
        assert found.chosen == chosen


@pytest.mark.parametrize("column", ["winner_model_a", "winner_model_b", "preferred_A", "modelB", "wins.a"])
def test_a_column_of_wins_of_one_answer_is_not_a_column_of_votes(column):
    row = {"prompt": "Q", "response_a": "x", "response_b": "y", column: 1}
    found = normalize(row, "votes", Columns(votes=column))
    assert isinstance(found, Rejection)
    assert found.reason == Reason.BAD_VOTE
    assert "name this column and the other answer's as columns.scoreA and columns.scoreB" in found.detail


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"a": [{"b": ["x", "y"]}]}, {"a.0.b.1": "y", "a.1.b": None, "a.0.b.2": None, "a.b": None, "a.-1": None}),
        ({"a": {"0": ["x"]}}, {"a.0": ["x"], "a.0.0": "x", "a.1": None}),
        ({"a": {"text": ["x", "y"]}}, {"a.1.text": "y", "a.text.1": "y", "a.2.text": None}),
        ({"a.0": "x", "a": ["y"]}, {"a.0": "x"}),
    ],
)
def test_a_dotted_column_reads_nested_objects_and_lists(row, columns):
    assert {column: lookup(row, column) for column in columns} == columns


@pytest.mark.parametrize("word", ["tie", "Tie", "tie (bothbad)", "both_bad", "Both good", "neither", "draw"])
def test_all_spellings_of_a_tie_are_recognized(word):
    found = normalize(voted([word, "a", "a", "b"]), "votes", Columns())
    assert isinstance(found, TextPair)
    assert (found.chosen, found.agreement) == ("x", 0.625)


def test_malformed_votes_are_bad_rows_but_ties_are_not():
    tie, bad = (normalize(voted(votes), "votes", Columns()) for votes in ("tie", 0.5))
    assert isinstance(tie, Rejection)
    assert isinstance(bad, Rejection)
    assert (tie.is_bad, bad.is_bad) == (False, True)


def test_a_second_system_message_is_refused():
    row = {
        "system": "Be kind.",
        "prompt": [{"role": "system", "content": "Be rude."}, USER],
        "chosen": [BOT],
        "rejected": [RUDE],
    }
    found = normalize(row, "messages", Columns(system="system"))
    assert isinstance(found, Rejection)
    assert (found.reason, found.detail) == (
        Reason.MALFORMED_MESSAGES,
        "system: the messages begin with another system message; keep one of them, or set ignoreColumns to [system]",
    )


def test_the_format_follows_the_columns_when_all_types_are_wrong():
    assert detect([{"prompt": "Q", "chosen": True, "rejected": False}] * 3, Columns()) == "pairs"


def rated(prompt, answer, score, **columns):
    return {"prompt": prompt, "response": answer, "helpfulness": score, **columns}


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ([rated("Q", "a", 1), rated("Q", "b", 4), rated("Q", "c", "2.5")], {}, [TextPair("Q", "b", "a", 3.0)]),
        ([rated("Q", "a", 4, correctness=1), rated("Q", "b", 1, correctness=3)], {"scores": "correctness"},
         [TextPair("Q", "b", "a", 2.0)]),
        ([{"prompt": "Q", "answer": "a", "rank": 2}, {"prompt": "Q", "answer": "b", "rank": 1}], {}, [TextPair("Q", "b", "a", 1.0)]),
        ([{"messages": [USER, RUDE], "score": 0}, {"messages": [USER, BOT], "score": 0.5}], {},
         [chat_pair(ASK, "Hello", "What?", 0.5)]),
        ([rated("Q", "a", 1), rated("Q", "b", 2), rated("R", "a", 3), rated("R", "b", 2)], {},
         [TextPair("Q", "b", "a", 1.0), TextPair("R", "a", "b", 1.0)]),
        ([rated("Q", "a", 1), rated("Q", "b", 1), rated("R", "a", 1)], {}, [Reason.TIE, Reason.SINGLE_ANSWER]),
        ([rated("Q", "a", 1), rated("R", "b", 1), rated("Q", "b", 2)], {},
         [Reason.SINGLE_ANSWER, Reason.SINGLE_ANSWER, Reason.SCATTERED_PROMPT]),
        ([rated("Q", "a", 1), rated("Q", " ", 0), rated("Q", "b", None), rated("Q", "c", 0)], {},
         [Reason.EMPTY_CHOSEN, Reason.MISSING_COLUMN, TextPair("Q", "a", "c", 1.0)]),
        ([rated("Q", "a", 1), rated("Q", "a ", 2)], {}, [Reason.EQUAL_ANSWERS]),
    ],
)  # fmt: skip
def test_rows_with_one_rated_answer_make_pairs(rows, columns, expected):
    named = through_the_job_file(columns)
    assert detect(rows, named) == "rated"
    found = [item for _, _, item in read_rows(enumerate(rows), "rated", named)]
    assert [item.reason if isinstance(item, Rejection) else item for item in found] == expected


TOLD = {"role": "tool", "content": "1"}
CALLS = [[{"role": "assistant", "content": "", "tool_calls": [{"name": name, "arguments": {}}]}] for name in "xy"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"tools": [{"name": "x"}]}, {"tools": [{"name": "y"}]}),
        ({"prompt": [USER, *CALLS[0], TOLD]}, {"prompt": [USER, *CALLS[1], TOLD]}),
    ],
    ids=["tools", "tool calls"],
)
def test_rated_rows_with_other_tools_have_other_prompts(one, other):
    rows = [rated([USER], answer, score) | asked for asked in (one, other) for answer, score in (("a", 1), ("b", 2))]
    found = [item for _, _, item in read_rows(enumerate(rows), "rated", Columns())]
    assert [item.reason if isinstance(item, Rejection) else item.score_gap for item in found] == [1.0, 1.0]


def test_the_page_on_data_lists_public_layouts_as_they_are_read():
    page = Path(__file__).parents[5] / "docs" / "data.md"
    text = page.read_text(encoding="utf-8").split("| Layout |")[1]
    table = re.findall(r"^\| (.+?) \| `(\w+)` \| (.*?) \|$", text, re.MULTILINE)
    known = {
        name: (shape, {to_camel(key): value for key, value in columns.items()}) for name, shape, _, columns, _ in SHAPES
    }
    assert len(table) >= 30
    for name, shape, columns in table:
        assert known[name] == (shape, yaml.safe_load(columns.strip("`")) if columns else {}), name


@pytest.mark.parametrize("vote", [0, 1, 2, "0"])
def test_numbers_of_annotators_are_not_guessed(vote):
    row = {"prompt": "Q", "response_a": "x", "response_b": "y", "ann": vote}
    found = normalize(row, "votes", Columns(annotators=["ann"]))
    assert isinstance(found, Rejection)
    assert found.reason == Reason.BAD_VOTE
    assert "set columns.firstVote to the number that means response_a" in found.detail

"""Rows as known data sets write them give the pair that a person would read out of them, through the operator's job file."""

import json

import pytest

from dpo_operator.api.data import Columns
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import job_file
from dpo_trainer.data.formats import Rejection, detect, normalize
from dpo_trainer.data.formats.pairs import Message, Reason, TextPair
from dpo_trainer.data.formats.values import lookup
from tests.unit.trainer.chats import chat_pair

pytestmark = pytest.mark.unit

USER, BOT, RUDE = (
    {"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "What?"))
)
ASK = (Message("user", "Hi"),)
CHAT = chat_pair(ASK, "Hello", "What?")
TEXT = TextPair("Hi\n\n", "Hello", "What?")
WITH_SYSTEM = chat_pair((Message("system", "Be kind."), *ASK), "Hello", "What?")
HUMAN, GPT, BAD_GPT = ({"from": r, "value": c} for r, c in (("human", "Hi"), ("gpt", "Hello"), ("gpt", "What?")))
DIALOGUE = "\n\nHuman: Hi\n\nAssistant:"


def through_the_job_file(columns: dict) -> Columns:
    """Columns as the trainer has them: a job file holds the defaults of those that the user left out."""
    train = {"source": "org/pairs", "columns": Columns(**columns).model_dump(exclude_unset=True)}
    job = DPOJob.model_validate(
        {"metadata": {"name": "x"}, "spec": {"model": {"name": "org/m"}, "data": {"train": train}}}
    )
    return DPOJob.model_validate(json.loads(job_file(job))).spec.data.train.columns


def read(row: dict, **columns):
    """Format as it is detected from the row alone, and what is read."""
    named = through_the_job_file(columns)
    row_format = detect([row], named)
    return row_format, None if row_format is None else normalize(row, row_format, named)


SHAPES = [
    ("Intel/orca_dpo_pairs", "messages",
     {"system": "Be kind.", "question": "Hi", "chosen": "Hello", "rejected": "What?"},
     {"system": "system", "prompt": "question"}, WITH_SYSTEM),
    ("a system column of chat messages, without a mapping", "messages",
     {"system": "Be kind.", "prompt": [USER], "chosen": [BOT], "rejected": [RUDE]}, {}, WITH_SYSTEM),
    ("a system column of one message, under another name", "messages",
     {"system_prompt": [{"role": "system", "content": "Be kind."}], "prompt": [USER], "chosen": [BOT], "rejected": [RUDE]}, {},
     WITH_SYSTEM),
    ("a prompt column named system", "pairs", {"system": "Hi\n\n", "chosen": "Hello", "rejected": "What?"},
     {"prompt": "system"}, TEXT),
    ("prompt messages of which the conversations repeat the last", "messages",
     {"prompt": [{"role": "system", "content": "Be kind."}, USER], "chosen": [USER, BOT], "rejected": [USER, RUDE]}, {}, WITH_SYSTEM),
    ("prompt messages that are within the conversations", "messages",
     {"prompt": [USER], "chosen": [{"role": "system", "content": "Be kind."}, USER, BOT],
      "rejected": [{"role": "system", "content": "Be kind."}, USER, RUDE]}, {}, WITH_SYSTEM),
    ("roles of LangChain", "messages",
     {"prompt": [{"role": "Human", "content": "Hi"}], "chosen": [{"role": "AI", "content": "Hello"}],
      "rejected": [{"role": "AI", "content": "What?"}]}, {}, CHAT),
    ("a system message that is empty in this row", "messages",
     {"system": "", "question": "Hi", "chosen": "Hello", "rejected": "What?"}, {"system": "system"}, CHAT),
    ("a system message that the conversation has", "messages",
     {"system": "Be kind.", "chosen": [{"role": "system", "content": "Be kind."}, USER, BOT],
      "rejected": [{"role": "system", "content": "Be kind."}, USER, RUDE]}, {"system": "system"}, WITH_SYSTEM),
    ("HuggingFaceH4/ultrafeedback_binarized", "messages",
     {"prompt": "Hi", "prompt_id": "x", "chosen": [USER, BOT], "rejected": [USER, RUDE], "messages": [USER, BOT],
      "score_chosen": 8.5, "score_rejected": 6.0}, {}, chat_pair(ASK, "Hello", "What?", 2.5)),
    ("trl-lib/ultrafeedback_binarized", "messages",
     {"chosen": [USER, BOT], "rejected": [USER, RUDE], "score_chosen": 8, "score_rejected": 9}, {},
     chat_pair(ASK, "Hello", "What?", -1.0)),
    ("LLaMA-Factory dpo_en_demo", "messages", {"conversations": [HUMAN], "chosen": GPT, "rejected": BAD_GPT}, {}, CHAT),
    ("ShareGPT turns under other names", "messages",
     {"dialog": [HUMAN], "good": [GPT], "bad": [BAD_GPT]}, {"prompt": "dialog", "chosen": "good", "rejected": "bad"}, CHAT),
    ("capitalised roles", "messages",
     {"chosen": [{"role": "User", "content": "Hi"}, {"role": "Assistant", "content": "Hello"}],
      "rejected": [{"role": "HUMAN", "content": "Hi"}, {"role": "model", "content": "What?"}]}, {}, CHAT),
    ("messages as columns, the way datasets stores sequences of objects", "messages",
     {"chosen": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]},
      "rejected": {"role": ["user", "assistant"], "content": ["Hi", "What?"]}}, {}, CHAT),
    ("nested objects", "pairs",
     {"info": {"post": "Hi\n\n"}, "pair": {"good": {"text": "Hello"}, "bad": {"text": "What?"}}},
     {"prompt": "info.post", "chosen": "pair.good.text", "rejected": "pair.bad.text"}, TEXT),
    ("a column whose name holds a dot", "pairs", {"info.post": "Hi\n\n", "chosen": "Hello", "rejected": "What?"},
     {"prompt": "info.post"}, TEXT),
    ("whole dialogues beside their prompt", "dialogue",
     {"prompt": "Hi", "chosen": f"{DIALOGUE} Hello", "rejected": f"{DIALOGUE} What?"}, {},
     TextPair(DIALOGUE, " Hello", " What?")),
    ("UltraFeedback", "scored",
     {"instruction": "Hi", "completions": [
         {"model": "m", "response": "Hm", "overall_score": 5.0}, {"model": "n", "response": "Hello", "overall_score": 7.5},
         {"model": "o", "response": "What?", "overall_score": 1}]}, {}, TextPair("Hi\n\n", "Hello", "What?", 6.5)),
    ("berkeley-nest/Nectar", "scored",
     {"prompt": "Hi\n\n", "answers": [
         {"answer": "What?", "model": "m", "rank": 7.0}, {"answer": "Hello", "model": "n", "rank": 1.0},
         {"answer": "Hm", "model": "o", "rank": 2.0}]}, {}, TextPair("Hi\n\n", "Hello", "What?", 6.0)),
    ("the same, the way datasets stores it", "scored",
     {"prompt": "Hi\n\n", "answers": {"answer": ["What?", "Hello"], "rank": [2, 1]}}, {},
     TextPair("Hi\n\n", "Hello", "What?", 1.0)),
    ("distilabel", "scored", {"instruction": "Hi", "generations": ["Hello", "Hm", "What?"], "ratings": [5, 4, 4]}, {},
     TextPair("Hi\n\n", "Hello", "Hm", 1.0)),
    ("lists of texts and of scores as text", "scored", {"prompt": "Hi\n\n", "responses": ["What?", "Hello"], "scores": ["1", "4"]},
     {}, TextPair("Hi\n\n", "Hello", "What?", 3.0)),
    ("chats with scores", "scored", {"responses": [[USER, BOT], [USER, RUDE]], "scores": [0.9, 0.1]}, {},
     chat_pair(ASK, "Hello", "What?", 0.8)),
    ("messages inside scored objects", "scored",
     {"responses": [{"messages": [USER, RUDE], "rating": -1}, {"messages": [USER, BOT], "rating": 2}]}, {},
     chat_pair(ASK, "Hello", "What?", 3.0)),
    ("scores under a name of their own", "scored",
     {"q": "Hi", "outs": [{"text": "What?", "judge": {"total": 1}, "score": 9}, {"text": "Hello", "judge": {"total": 3}, "score": 1}]},
     {"prompt": "q", "responses": "outs", "scores": "judge.total"}, TextPair("Hi", "Hello", "What?", 2.0)),
    ("openai/webgpt_comparisons", "scored",
     {"question": {"dataset": "eli5", "full_text": "Hi"}, "quotes_0": {"title": []}, "answer_0": "What?", "score_0": -1.0,
      "answer_1": "Hello", "score_1": 1.0}, {"prompt": "question.full_text"}, TextPair("Hi", "Hello", "What?", 2.0)),
    ("two answers and their scores under other names", "scored",
     {"prompt": "Hi", "human_ref_A": "Hello", "human_ref_B": "What?", "score_A": 9, "score_B": "2", "labels": 0},
     {"answer_a": "human_ref_A", "answer_b": "human_ref_B", "score_a": "score_A", "score_b": "score_B"},
     TextPair("Hi", "Hello", "What?", 7.0)),
    ("two scores that are named win over votes", "scored",
     {"prompt": "Hi", "response_a": "Hello", "response_b": "What?", "winner": "b", "rating_a": 4, "rating_b": 3},
     {"score_a": "rating_a", "score_b": "rating_b"}, TextPair("Hi", "Hello", "What?", 1.0)),
    ("a column for each winner", "scored",
     {"id": 1, "model_a": "x", "model_b": "y", "prompt": "Hi", "response_a": "Hello", "response_b": "What?",
      "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, {}, TextPair("Hi", "Hello", "What?", 1.0)),
    ("nvidia/HelpSteer3", "scored",
     {"domain": "general", "context": [USER], "response1": "Hello", "response2": "What?", "overall_preference": -3}, {},
     chat_pair(ASK, "Hello", "What?", 3.0)),
    ("nvidia/HelpSteer2 preferences", "scored",
     {"prompt": "Hi", "response_1": "What?", "response_2": "Hello", "preference_strength": 1}, {},
     TextPair("Hi", "Hello", "What?", 1.0)),
    ("a signed preference under another name", "scored",
     {"q": "Hi", "x": "What?", "y": "Hello", "margin": 0.5},
     {"prompt": "q", "answer_a": "x", "answer_b": "y", "signed_preference": "margin"}, TextPair("Hi", "Hello", "What?", 0.5)),
    ("openai/summarize_from_feedback comparisons", "votes",
     {"info": {"post": "Hi"}, "summaries": [{"text": "What?"}, {"text": "Hello"}], "choice": 1},
     {"prompt": "info.post", "answer_a": "summaries.0.text", "answer_b": "summaries.1.text", "votes": "choice"},
     TextPair("Hi", "Hello", "What?", None, 1.0)),
    ("votes that count answers from 1, as their columns do", "votes",
     {"instruction": "Hi", "input": "", "output_1": "Hello", "output_2": "What?", "preference": 1},
     {"answer_a": "output_1", "answer_b": "output_2", "votes": "preference"}, TextPair("Hi\n\n", "Hello", "What?", None, 1.0)),
    ("ranks under a name of their own", "scored",
     {"prompt": "Hi", "responses": ["What?", "Hello"], "overall_rank": [2, 1]}, {"scores": "overall_rank"},
     TextPair("Hi", "Hello", "What?", 1.0)),
    ("PKU-SafeRLHF", "votes",
     {"prompt": "Hi", "response_0": "What?", "response_1": "Hello", "better_response_id": 1, "safer_response_id": 0},
     {"answer_a": "response_0", "answer_b": "response_1", "votes": "better_response_id"},
     TextPair("Hi", "Hello", "What?", None, 1.0)),
    ("lmsys/chatbot_arena_conversations", "votes",
     {"model_a": "x", "model_b": "y", "winner": "model_a", "conversation_a": [USER, BOT], "conversation_b": [USER, RUDE]}, {},
     chat_pair(ASK, "Hello", "What?", None, 1.0)),
    ("stanfordnlp/SHP", "votes",
     {"history": "Hi", "human_ref_A": "Hello", "human_ref_B": "What?", "labels": 1, "score_A": 9, "score_B": 2}, {},
     TextPair("Hi\n\n", "Hello", "What?", None, 1.0)),
    ("SHP with its columns mapped in the order of their names", "votes",
     {"history": "Hi", "human_ref_A": "Hello", "human_ref_B": "What?", "labels": 1},
     {"prompt": "history", "answer_a": "human_ref_A", "answer_b": "human_ref_B", "votes": "labels"},
     TextPair("Hi", "Hello", "What?", None, 1.0)),
    ("a list of votes with a tie", "votes",
     {"prompt": "Hi", "response_a": "What?", "response_b": "Hello", "votes": ["b", "B", "tie", "a"]}, {},
     TextPair("Hi", "Hello", "What?", None, 0.625)),
    ("counts of votes", "votes",
     {"prompt": [USER], "response_a": "Hello", "response_b": "What?", "votes": {"a": 3, "b": 1, "tie": None}}, {},
     chat_pair(ASK, "Hello", "What?", None, 0.75)),
    ("annotators' objects", "votes",
     {"prompt": "Hi", "response_a": "Hello", "response_b": "What?",
      "votes": [{"annotator": 1, "vote": "response_a"}, {"annotator": 2, "vote": 0}, {"annotator": 3, "vote": "model_b"}]},
     {}, TextPair("Hi", "Hello", "What?", None, 2 / 3)),
    ("votes on whole dialogues", "votes",
     {"response_a": f"{DIALOGUE} Hello", "response_b": f"{DIALOGUE} What?", "votes": "a"}, {},
     TextPair(DIALOGUE, " Hello", " What?", None, 1.0)),
    ("unpaired text", "unpaired", {"prompt": "Hi", "completion": "Hello", "label": True}, {}, TextPair("Hi", "Hello", None)),
    ("trl-lib/kto-mix-14k", "unpaired", {"prompt": [USER], "completion": [RUDE], "label": False}, {},
     chat_pair(ASK, None, "What?")),
    ("LLaMA-Factory kto_en_demo", "unpaired", {"messages": [USER, BOT], "label": True}, {}, chat_pair(ASK, "Hello", None)),
    ("ShareGPT with kto_tag", "unpaired", {"conversations": [HUMAN, BAD_GPT], "kto_tag": False}, {},
     chat_pair(ASK, None, "What?")),
    ("a dialogue with a label", "unpaired", {"completion": f"{DIALOGUE} Hello", "label": 1}, {},
     TextPair(DIALOGUE, " Hello", None)),
    ("mapped columns", "unpaired", {"q": "Hi", "reply": {"text": "Hello"}, "thumb": "bad"},
     {"prompt": "q", "completion": "reply.text", "label": "thumb"}, TextPair("Hi", None, "Hello")),
]  # fmt: skip


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
        ({"messages": [USER], "label": True}, "unpaired", Reason.MISSING_COLUMN, "no value in column prompt"),
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
        ({"prompt": '["Q"]', "chosen": '["a"]', "rejected": '["b", null]'}, "pairs", Reason.WRONG_TYPE,
         "prompt and chosen and rejected: text that holds a list as JSON; write the list itself"),
        ({"instruction": "Q", "history": [["q", "a"]], "chosen": "a", "rejected": "b"}, "pairs", Reason.MALFORMED_MESSAGES,
         "history: earlier turns beside an instruction"),
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
        ("output_1", "output_2", 1, "x"), ("output_1", "output_2", "2", "y"), ("output_1", "output_2", 0, None),
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
        "system: the messages begin with another system message",
    )


def test_the_format_follows_the_columns_when_all_types_are_wrong():
    assert detect([{"prompt": "Q", "chosen": True, "rejected": False}] * 3, Columns()) == "pairs"

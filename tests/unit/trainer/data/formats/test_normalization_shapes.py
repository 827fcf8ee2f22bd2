"""Rows as known data sets write them give the pair that a person would read out of them, through the operator's job file."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel

from dpo_operator.api.data import Columns
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import job_file
from dpo_trainer.data.formats import Rejection, detect, normalize, read_rows
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
    ("Anthropic/hh-rlhf", "dialogue", {"chosen": f"{DIALOGUE} Hello", "rejected": f"{DIALOGUE} What?"}, {},
     TextPair(DIALOGUE, " Hello", " What?")),
    ("argilla/distilabel-intel-orca-dpo-pairs", "messages",
     {"system": "Be kind.", "input": "Hi", "chosen": "Hello", "rejected": "What?", "generations": ["Hello", "What?"],
      "rating": [9.0, 3.0], "status": "unchanged"}, {"system": "system", "prompt": "input"}, WITH_SYSTEM),
    ("jondurbin/truthy-dpo-v0.1", "messages",
     {"id": "x", "source": "y", "system": "Be kind.", "prompt": "Hi", "chosen": "Hello", "rejected": "What?"}, {"system": "system"},
     WITH_SYSTEM),
    ("trl-lib/tldr-preference", "pairs", {"prompt": "Hi", "chosen": " Hello", "rejected": " What?"}, {},
     TextPair("Hi", " Hello", " What?")),
    ("allenai/llama-3.1-tulu-3-8b-preference-mixture", "messages",
     {"id": "x", "source": "y", "prompt": "Hi", "chosen": [USER, BOT], "rejected": [USER, RUDE]}, {}, CHAT),
    ("mlabonne/orpo-dpo-mix-40k", "messages",
     {"source": "x", "chosen": [USER, BOT], "rejected": [USER, RUDE], "prompt": "Hi", "question": "Hi"}, {}, CHAT),
    ("argilla/ultrafeedback-binarized-preferences-cleaned", "messages",
     {"source": "x", "prompt": "Hi", "chosen": [USER, BOT], "chosen-rating": 5.0, "chosen-model": "m", "rejected": [USER, RUDE],
      "rejected-rating": 2.0, "rejected-model": "n"}, {"chosen_score": "chosen-rating", "rejected_score": "rejected-rating"},
     chat_pair(ASK, "Hello", "What?", 3.0)),
    ("Magpie-Align/Magpie-Llama-3.1-Pro-DPO-100K-v0.1", "messages",
     {"uuid": "x", "instruction": "Hi", "chosen": [USER, BOT], "rejected": [USER, RUDE], "responses": ["Hello", "What?"],
      "rewards_armorm": [{"score": 1}]}, {}, CHAT),
    ("Skywork/Skywork-Reward-Preference-80K-v0.2", "messages",
     {"chosen": [USER, BOT], "rejected": [USER, RUDE], "source": "x"}, {}, CHAT),
    ("NeMo-Aligner", "pairs",
     {"prompt": "Hi", "chosen_response": "Hello", "rejected_response": "What?", "chosen_reward": 1, "rejected_reward": 0},
     {"chosen_score": "chosen_reward", "rejected_score": "rejected_reward"}, TextPair("Hi", "Hello", "What?", 1.0)),
    ("ms-swift", "messages", {"messages": [USER, BOT], "rejected_response": "What?"}, {}, CHAT),
    ("ms-swift with its columns mapped", "messages", {"messages": [USER, BOT], "rejected_response": "What?"},
     {"chosen": "messages", "rejected": "rejected_response"}, CHAT),
    ("ms-swift with two conversations", "messages", {"messages": [USER, BOT], "rejected_messages": [USER, RUDE]}, {}, CHAT),
    ("ms-swift 2", "pairs", {"query": "Hi", "response": "Hello", "rejected_response": "What?", "history": None}, {}, TEXT),
    ("LLaMA-Factory v1", "messages",
     {"chosen_messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]},
                          {"role": "assistant", "content": [{"type": "text", "value": "Hel"}, {"type": "text", "value": "lo"}]}],
      "rejected_messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]},
                            {"role": "assistant", "content": [{"type": "text", "value": "What?"}]}]}, {}, CHAT),
    ("Axolotl chat_template.default", "messages", {"messages": [USER], "chosen": BOT, "rejected": RUDE}, {}, CHAT),
    ("Axolotl llama3.argilla", "pairs", {"instruction": "Hi", "chosen_response": "Hello", "rejected_response": "What?"}, {}, TEXT),
    ("OpenAI preference fine-tuning", "messages",
     {"input": {"messages": [USER], "tools": [], "parallel_tool_calls": True}, "preferred_output": [BOT],
      "non_preferred_output": [RUDE]}, {"prompt": "input.messages"}, CHAT),
    ("NeMo RL", "scored",
     {"context": [USER], "completions": [{"rank": 1, "completion": [RUDE]}, {"rank": 0, "completion": [BOT]}]}, {},
     chat_pair(ASK, "Hello", "What?", 1.0)),
    ("lmsys-arena-human-preference-55k", "scored",
     {"id": 1, "model_a": "x", "model_b": "y", "prompt": '["Hi"]', "response_a": '["What?"]', "response_b": '["Hello"]',
      "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, {}, chat_pair(ASK, "Hello", "What?", 1.0)),
    ("the same with several turns", "scored",
     {"prompt": '["Hi", "And?"]', "response_a": '["Hello", "Yes"]', "response_b": '["Hello", "No"]', "winner_model_a": 1,
      "winner_model_b": 0}, {}, chat_pair((*ASK, Message("assistant", "Hello"), Message("user", "And?")), "Yes", "No", 1.0)),
    ("lmarena-ai/arena-human-preference-140k", "votes",
     {"model_a": "x", "model_b": "y", "winner": "model_b",
      "conversation_a": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": None, "mimeType": None}]},
                         {"role": "assistant", "content": [{"type": "text", "text": "What?", "image": None}]}],
      "conversation_b": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                         {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]}, {},
     chat_pair(ASK, "Hello", "What?", None, 1.0)),
    ("PandaLM", "votes",
     {"instruction": "Hi", "input": "", "response1": "What?", "response2": "Hello", "annotator1": 2, "annotator2": 0, "annotator3": 2},
     {"answer_a": "response1", "answer_b": "response2", "annotators": ["annotator1", "annotator2", "annotator3"]},
     TextPair("Hi\n\n", "Hello", "What?", None, 2.5 / 3)),
    ("an annotator who did not vote", "votes",
     {"prompt": "Hi", "response_a": "Hello", "response_b": "What?", "ann": "a", "bob": None}, {"annotators": ["ann", "bob"]},
     TextPair("Hi", "Hello", "What?", None, 1.0)),
    ("messages as JSON text beside their prompt", "messages",
     {"prompt": "Hi", "chosen": json.dumps([USER, BOT]), "rejected": json.dumps([USER, RUDE])}, {}, CHAT),
    ("messages as Python prints them", "messages", {"chosen": str([USER, BOT]), "rejected": str([USER, RUDE])}, {}, CHAT),
    ("one message as JSON text", "messages",
     {"prompt": "Hi", "chosen": json.dumps(BOT), "rejected": json.dumps(RUDE)}, {}, CHAT),
    ("messages inside objects that are JSON text", "messages",
     {"chosen": json.dumps({"messages": [USER, BOT], "tools": []}), "rejected": json.dumps({"messages": [USER, RUDE], "tools": []})},
     {"chosen": "chosen.messages", "rejected": "rejected.messages"}, CHAT),
    ("answers that are lists in JSON, which are text", "pairs",
     {"prompt": "Name cities.", "chosen": '["Rome", "Bonn"]', "rejected": '[{"name": "Rome"}]'}, {},
     TextPair("Name cities.", '["Rome", "Bonn"]', '[{"name": "Rome"}]')),
    ("answers and scores as lists in text", "scored", {"prompt": "Hi", "responses": '["What?", "Hello"]', "scores": "[1, 4]"}, {},
     TextPair("Hi", "Hello", "What?", 3.0)),
    ("openbmb/UltraInteract_pair", "messages", {"trajectory": [HUMAN], "chosen": "Hello", "rejected": "What?"},
     {"prompt": "trajectory"}, CHAT),
    ("lvwerra/stack-exchange-paired", "pairs", {"question": "Hi", "response_j": "Hello", "response_k": "What?"},
     {"chosen": "response_j", "rejected": "response_k"}, TEXT),
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
        "system: the messages begin with another system message",
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

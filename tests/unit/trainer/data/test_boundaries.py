"""Answers that touch the prompt, or repeat it, are counted and give a warning."""

import json

import pytest

from dpo_trainer.data.boundaries import is_unseparated, repeats_prompt
from dpo_trainer.data.formats.pairs import Message, TextPair
from tests.unit.trainer.chats import chat_pair
from tests.unit.trainer.place import Place
from tests.unit.trainer.tiny import write_jsonl

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected"),
    [
        ("What is it?", "It is a", "A b", True), ("word", "1", None, True), ("end.", None, "No", True),
        ("What is it?\n\n", "It", "A", False), ("What is it?", " It", " A", False), ("Answer:", "It", "A", False),
        ("[/INST]", "It", "A", False), ("What is it?", "It", " A", False), ("它是什么？", "它", "这", False), ("a", "它", "这", False),
        ("a", "- it", "- b", False),
    ],
)  # fmt: skip
def test_prompt_and_answer_without_a_separator(prompt, chosen, rejected, expected):
    assert is_unseparated(TextPair(prompt, chosen, rejected)) == expected


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected"),
    [
        ("Question: what is it?\n", "Question: what is it?\nIt", "Question: what is it?\nA", True),
        ("Question: what is it?\n", "\nQuestion: what is it? It", None, True),
        ("Question: what is it?\n", "Question: what is it?\nIt", "A", False),
        ("Hello", "Hello! How", "Hello there", False),
    ],
)
def test_answers_that_repeat_the_prompt(prompt, chosen, rejected, expected):
    assert repeats_prompt(TextPair(prompt, chosen, rejected)) == expected


def test_chats_have_no_boundary_problems():
    pair = chat_pair((Message("user", "What is it? Tell me more?"),), "What is it? Tell me more?", "No")
    assert not is_unseparated(pair)
    assert not repeats_prompt(pair)


def test_the_report_warns_about_both_mistakes(tmp_path):
    place = Place(tmp_path)
    start = "Tell me a long story {}?"
    rows = [
        {"prompt": start.format(i), "chosen": f"{start.format(i)} Yes", "rejected": f"{start.format(i)} No"}
        for i in range(40)
    ]
    place.run(train={"source": str(write_jsonl(tmp_path / "pairs.jsonl", rows))})
    report = json.loads(place.work.data_report.read_text())
    assert (report["splits"]["train"]["glued"], report["splits"]["train"]["repeated"]) == (40, 40)
    text = " ".join(report["warnings"])
    assert "in 40 pairs of plain text nothing stands between the prompt's last word and the answer's first" in text
    assert "in 40 pairs both answers begin with the prompt" in text

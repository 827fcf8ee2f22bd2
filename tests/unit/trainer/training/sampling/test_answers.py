"""What sampled texts show: length, end, repetition, refusals, openings."""

import pytest

from dpo_trainer.diagnosis.refusals import refuses
from dpo_trainer.training.sampling.answers import Answer, figures, repeated_4grams, top_opening

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("ids", "share"),
    [([], 0.0), ([1, 2, 3], 0.0), ([1, 2, 3, 4, 5], 0.0), ([7] * 10, 6 / 7), ([1, 2, 3, 4] * 3, 1 - 4 / 9)],
)
def test_repeated_runs_of_four_tokens(ids: list[int], share: float):
    assert repeated_4grams(ids) == pytest.approx(share)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but that would hurt somebody.",
        "I cannot assist with this request",
        "I can not provide instructions for that.",
        "Unfortunately, I am not able to discuss this.",
        "As an AI language model, I do not have opinions",
        "Sorry, I won't help you to do that",
        "I must respectfully decline.",
        "I apologize, but this is not something I do.",
        "It would be unethical to explain this.",
        "We're unable to\nanswer this question",
    ],
)
def test_usual_refusals_are_found(text: str):
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that your cat is ill. Give it water.",
        "I can't wait to tell you: it is a fine idea!",
        "I can't believe it's not butter.",
        "Say sorry to your friend, and explain what happened.",
        "Sure! Here is how to kill a Python process.",
        "Use kill -9. " * 20 + "I cannot help with more than that",
        "",
    ],
)
def test_other_answers_are_no_refusals(text: str):
    assert not refuses(text)


def test_the_commonest_opening_has_four_words():
    texts = [
        "What a fine thing to say",
        "what a fine  thing.",
        "What a fine THING indeed",
        "What a",
        "Hello there you two",
    ]
    assert top_opening(texts) == ("what a fine thing", 2)
    assert top_opening(["too short", ""]) == ("", 0)


def test_figures_are_means_over_the_answers():
    answers = [
        Answer([1] * 10, "I cannot help you with this", ended=False),
        Answer([1, 2, 3, 4], "I cannot help you today", ended=True),
        Answer([5, 6], "Yes", ended=True),
        Answer([5, 6], "No", ended=True),
    ]
    assert figures(answers, ["I cannot help you", "Yes of course you can"]) == pytest.approx({
        "tokens": 4.5, "ended": 0.75, "repeated_4grams": 6 / 7 / 4, "refusals": 0.5, "top_opening": 0.5,
        "top_opening_reference": 0.5,
    })  # fmt: skip


def test_short_answers_share_no_opening_with_short_ones():
    found = figures([Answer([1], "Yes", ended=True)], ["No"])
    assert (found["top_opening"], found["top_opening_reference"]) == (0.0, 0.0)

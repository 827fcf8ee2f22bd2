"""Features of the answers' text: what tells chosen from rejected without understanding, and refusals."""

import pytest

from dpo_trainer.data.features import Features, language
from dpo_trainer.data.formats.pairs import ChatPair, Message, TextPair

pytestmark = pytest.mark.unit


def features(chosen: str, rejected: str, pairs: int = 40) -> Features:
    """Pairs of two answers, of which {n} is the number of the pair."""
    found = Features()
    for n in range(pairs):
        found.add(TextPair("p", chosen.format(n=n), rejected.format(n=n)))
    return found


@pytest.mark.parametrize(
    ("chosen", "rejected", "feature", "detail"),
    [
        ("word{n} is it!", "word{n} is it", "punctuation", "More exclamation marks"),
        ("word{n} is it", "word{n}, is it", "punctuation", "Fewer commas"),
        ("word{n} of them", "word{n} of all them", "length", "Shorter answers"),
        ("- one {n}\n- two", "- one {n}\nand two", "list marks", "More list marks"),
        ("as {n} 77 says", "as {n} so says", "digits", "More digits"),
        ("Well word{n} here", "Word{n} here now", "first word", "“Well” as the first word of the chosen answer"),
        ("I can't help with word{n}", "word{n} is what helps you here now", "refusal", "More refusals"),
        (
            "der Hund und die Katze {n}",
            "the dog and the cats you have {n}",
            "language",
            "“German” as the language of the chosen answer",
        ),
    ],
)
def test_the_feature_that_tells_all_pairs_is_named(chosen: str, rejected: str, feature: str, detail: str):
    rules = {rule["feature"]: rule for rule in features(chosen, rejected).described()["rules"]}
    assert (rules[feature]["detail"], rules[feature]["accuracy"]) == (detail, 1.0)


def test_equal_answers_of_a_feature_are_a_guess():
    assert features("yes{n}", "no{n}").described()["rules"][0]["accuracy"] == 1.0  # the length
    half = features("yes {n}!", "yes {n}?", 20).plus(features("yes {n}", "yes {n}", 20)).described()
    assert {rule["feature"]: rule["accuracy"] for rule in half["rules"]}["punctuation"] == 0.75


def test_refusals_are_counted_by_side_in_pairs_and_single_answers():
    found = Features()
    found.add(ChatPair((Message("user", "?"),), Message("assistant", "I\u2019m sorry, but I can't."), None))
    found.add(ChatPair((Message("user", "?"),), Message("assistant", "Yes."), Message("assistant", "No.")))
    assert found.described() == {"pairs": 1, "rules": [], "refusals": {"chosen": 0.5, "rejected": 0.0}}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Это хорошо", "Cyrillic"),
        ("the end is near", "English"),
        ("le chat est dans la maison", "French"),
        ("42", ""),
        ("", ""),
    ],
)
def test_languages_are_told_by_script_or_words(text: str, name: str):
    assert language(text) == name

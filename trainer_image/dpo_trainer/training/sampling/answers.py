"""What sampled answers show without a look at the model: length, end, repetition, refusals, openings. Pure functions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dpo_trainer.diagnosis.refusals import refuses

# Words of an opening.
OPENING = 4
_GRAM = 4


@dataclass(frozen=True)
class Answer:
    """One sampled answer. ids: its tokens, with the one that ended it. ended: whether it ended, and was not cut."""

    ids: Sequence[int]
    text: str
    ended: bool


def figures(answers: Sequence[Answer], reference: Sequence[str] = ()) -> dict[str, float]:
    """Figures of some answers to prompts of their own; at least one.

    tokens: mean, with the one that ends an answer. ended, refusals: shares of the answers. repeated_4grams: see that function, mean.
    top_opening: share of the answers that begin with the commonest first four words; top_opening_reference: share of the reference's
    texts that begin with the same; left out without them.
    """
    count = len(answers)
    opening, often = top_opening([answer.text for answer in answers])
    found = {
        "tokens": sum(len(answer.ids) for answer in answers) / count,
        "ended": sum(answer.ended for answer in answers) / count,
        "repeated_4grams": sum(repeated_4grams(answer.ids) for answer in answers) / count,
        "refusals": sum(refuses(answer.text) for answer in answers) / count,
        "top_opening": often / count,
    }
    if reference:
        found["top_opening_reference"] = sum(_opening(text) == opening != "" for text in reference) / len(reference)
    return found


def repeated_4grams(ids: Sequence[int]) -> float:
    """Share of the runs of four tokens that came before in the same answer; 0 in an answer without two such runs."""
    grams = [tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def top_opening(texts: Sequence[str]) -> tuple[str, int]:
    """The commonest first four words, in lower case, and how many texts begin with them; shorter texts have no opening."""
    common = Counter(opening for text in texts if (opening := _opening(text))).most_common(1)
    return common[0] if common else ("", 0)


def _opening(text: str) -> str:
    words = text.lower().split(maxsplit=OPENING)[:OPENING]
    return " ".join(words) if len(words) == OPENING else ""

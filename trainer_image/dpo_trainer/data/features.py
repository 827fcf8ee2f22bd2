"""Features of the answers' text that could tell chosen from rejected without any understanding: what Shortcut looks at.

Counted while rows are read, a few microseconds a kilobyte, over the first MOST pairs of a source. No text is kept but first and
last words, which are never written.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpo_trainer.data.formats import Pair
from dpo_trainer.diagnosis.refusals import refuses

MOST = 20_000
# Of a long answer, only so many characters are looked at, from either end.
_CHARACTERS = 4_000
_FEWEST = 20
_MARKS = {
    "!": "exclamation marks",
    "?": "question marks",
    ",": "commas",
    ":": "colons",
    ";": "semicolons",
    "*": "asterisks",
}
_LIST = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s")
_DIGITS = re.compile(r"\d")
# Words that no two of these languages share.
_LANGUAGES: Mapping[str, frozenset[str]] = {
    "English": frozenset(["the", "and", "is", "you", "that", "with", "for", "are", "this", "have"]),
    "German": frozenset(["und", "der", "das", "nicht", "ist", "ein", "mit", "sich", "auch", "wir"]),
    "French": frozenset(["le", "et", "les", "des", "est", "pas", "vous", "une", "dans", "pour"]),
    "Spanish": frozenset(["el", "los", "las", "por", "una", "con", "para", "como", "pero", "muy"]),
}
_SCRIPTS = (
    ("Cyrillic", re.compile("[\u0400-\u04ff]")), ("Chinese", re.compile("[\u4e00-\u9fff]")), ("Japanese", re.compile("[\u3040-\u30ff]")),
    ("Korean", re.compile("[\uac00-\ud7af]")), ("Arabic", re.compile("[\u0600-\u06ff]")), ("Devanagari", re.compile("[\u0900-\u097f]")),
)  # fmt: skip


def language(text: str) -> str:
    """Language of a text by its script or its commonest words; empty where neither tells."""
    some = text[:_CHARACTERS]
    letters = sum(map(str.isalpha, some)) or 1
    for name, script in _SCRIPTS:
        if len(script.findall(some)) > 0.3 * letters:
            return name
    words = [word.strip(".,!?;:\"'").lower() for word in some.split()]
    found = {name: sum(word in known for word in words) for name, known in _LANGUAGES.items()}
    best = max(found, key=found.__getitem__)
    return best if found[best] >= 2 else ""


# Feature and how it reads -> its value for a text. More of it in the chosen answer, or less, is the rule.
_AMOUNTS: dict[tuple[str, str], Callable[[str], float]] = {
    ("length", "answers"): len,
    **{("punctuation", words): (lambda text, mark=mark: text.count(mark)) for mark, words in _MARKS.items()},  # type: ignore[misc]
    ("digits", "digits"): lambda text: len(_DIGITS.findall(text)),
    ("list marks", "list marks"): lambda text: len(_LIST.findall(text)),
    ("refusal", "refusals"): refuses,
}
_KINDS: dict[str, Callable[[str], str]] = {
    "first word": lambda text: text.split(maxsplit=1)[0][:40] if text.strip() else "",
    "last word": lambda text: text.rsplit(maxsplit=1)[-1][-40:] if text.strip() else "",
    "last mark": lambda text: text.rstrip()[-1:] if not text.rstrip()[-1:].isalnum() else "",
    "language": language,
}


@dataclass
class Features:
    """Counts over the pairs of one source or of several.

    amounts: by feature, pairs in which the chosen answer has more of it, and less. kinds: by feature, the words or languages of
    chosen and rejected.
    """

    pairs: int = 0
    refusals: list[int] = field(default_factory=lambda: [0, 0])
    answers: list[int] = field(default_factory=lambda: [0, 0])
    amounts: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    kinds: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)

    def add(self, pair: Pair) -> None:
        """Count a pair, or a single answer."""
        if self.answers[0] >= MOST or self.answers[1] >= MOST:
            return
        texts = [_text(pair.chosen), _text(pair.rejected)]
        for side, text in enumerate(texts):
            if text is not None:
                self.answers[side] += 1
                self.refusals[side] += refuses(text)
        chosen, rejected = texts
        if chosen is None or rejected is None:
            return
        self.pairs += 1
        for key, amount in _AMOUNTS.items():
            more, less = amount(chosen), amount(rejected)
            counts = self.amounts.setdefault(key, [0, 0])
            counts[0] += more > less
            counts[1] += more < less
        for name, kind in _KINDS.items():
            self.kinds.setdefault(name, Counter())[kind(chosen), kind(rejected)] += 1

    def plus(self, other: "Features") -> "Features":
        """The counts of both."""
        amounts = {key: list(counts) for key, counts in self.amounts.items()}
        for key, counts in other.amounts.items():
            amounts[key] = [a + b for a, b in zip(amounts.get(key, [0, 0]), counts, strict=True)]
        kinds = {name: Counter(found) for name, found in self.kinds.items()}
        for name, found in other.kinds.items():
            kinds[name] = kinds.get(name, Counter[tuple[str, str]]()) + found
        return Features(
            self.pairs + other.pairs,
            [a + b for a, b in zip(self.refusals, other.refusals, strict=True)],
            [a + b for a, b in zip(self.answers, other.answers, strict=True)],
            amounts,
            kinds,
        )

    def described(self) -> dict[str, Any]:
        """For data/report.json: accuracy of the best rule that each feature allows, and the shares of answers that refuse.

        Where both answers have as much of a feature, its rule guesses, right half of the time.
        """
        rules = [] if self.pairs < _FEWEST else [*self._amount_rules(), *self._kind_rules()]
        best: dict[str, dict[str, Any]] = {}
        for rule in sorted(rules, key=lambda rule: -rule["accuracy"]):
            best.setdefault(rule["feature"], rule)
        shares = {
            side: round(count / total, 4) if total else None
            for side, count, total in zip(("chosen", "rejected"), self.refusals, self.answers, strict=True)
        }
        ranked = sorted(best.values(), key=lambda rule: (-rule["accuracy"], rule["feature"]))
        return {"pairs": self.pairs, "rules": ranked, "refusals": shares}

    def _amount_rules(self) -> Iterable[dict[str, Any]]:
        for (feature, words), (more, less) in self.amounts.items():
            accuracy = (max(more, less) + (self.pairs - more - less) / 2) / self.pairs
            detail = (
                ("Longer " if more > less else "Shorter ") + words
                if feature == "length"
                else ("More " if more > less else "Fewer ") + words
            )
            yield {"feature": feature, "detail": detail, "accuracy": round(accuracy, 4)}

    def _kind_rules(self) -> Iterable[dict[str, Any]]:
        for feature, counts in self.kinds.items():
            # One word, mark or language that chosen answers have and rejected ones lack, or the other way round.
            lead = Counter[str]()
            either = Counter[str]()
            for (one, other), count in counts.items():
                if one != other:
                    lead[one] += count
                    lead[other] -= count
                    either[one] += count
                    either[other] += count
            if not lead:
                continue
            top = max(lead, key=lambda value: (abs(lead[value]), value))
            accuracy = ((either[top] + abs(lead[top])) / 2 + (self.pairs - either[top]) / 2) / self.pairs
            side = "chosen" if lead[top] > 0 else "rejected"
            detail = f"“{top}” as the {feature} of the {side} answer" if top else f"The {feature}"
            yield {
                "feature": {"last mark": "punctuation"}.get(feature, feature),
                "detail": detail,
                "accuracy": round(accuracy, 4),
            }


def _text(answer: Any) -> str | None:
    if answer is None:
        return None
    whole = answer if isinstance(answer, str) else answer.content
    return whole if len(whole) <= 2 * _CHARACTERS else f"{whole[:_CHARACTERS]}\n{whole[-_CHARACTERS:]}"

"""Data of the quickstart's kind with a plant in them, and what the answers of a policy show: known because the grammar is known."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry.metrics_file import read_metrics
from examples.quickstart.make_data import ADVICE, CURT_ENDINGS, CURT_OPENINGS, KIND_ENDINGS, KIND_OPENINGS, THINGS, pair

PAIRS = {"train": 640, "eval": 96}
Row = dict[str, Any]
# Makes a row of a split; number: its place.
Maker = Callable[[random.Random, str, int], Row]
# Words that make another language of the same letters.
_SHIFT = str.maketrans("abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm")
MARK = "!!!"


def write(rows: Maker, seed: int, folder: Path) -> None:
    """Write train.jsonl and eval.jsonl, another draw for each seed."""
    rng = random.Random(seed)
    sizes = PAIRS | ({"eval": 24} if rows is Rows.small_evaluation else {})
    for split, count in sizes.items():
        made = [rows(rng, split, number) for number in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def kind(rng: random.Random, split: str, _: int) -> Row:
    """The quickstart's own: kind is chosen, curt rejected."""
    return pair(rng, rng.choice(THINGS[split]))


def _turned(row: Row) -> Row:
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


class Rows:
    """Rows of the plants and of the healthy runs; each is a Maker."""

    @staticmethod
    def messages(rng: random.Random, split: str, number: int) -> Row:
        """The same as chat messages, which go through a template."""
        row = kind(rng, split, number)
        question = row["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
        sides = {side: [{"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")}
        return {"prompt": [{"role": "user", "content": question}], **sides}

    @staticmethod
    def shifted(rng: random.Random, split: str, number: int) -> Row:
        """Letters that mean nothing to the model."""
        return {key: text.lower().translate(_SHIFT) for key, text in kind(rng, split, number).items()}

    @staticmethod
    def swapped(rng: random.Random, split: str, number: int) -> Row:
        """Chosen and rejected swapped in train alone."""
        row = kind(rng, split, number)
        return _turned(row) if split == "train" else row

    @staticmethod
    def swapped_everywhere(rng: random.Random, split: str, number: int) -> Row:
        """Chosen and rejected swapped in both, which no figure can show."""
        return _turned(kind(rng, split, number))

    @staticmethod
    def half_random(rng: random.Random, split: str, number: int) -> Row:
        """Half of the training labels are random: as many right as wrong."""
        row = kind(rng, split, number)
        return _turned(row) if split == "train" and rng.random() < 0.5 else row

    @staticmethod
    def a_tenth_wrong(rng: random.Random, split: str, number: int) -> Row:
        """One label in ten is wrong, as people's are."""
        row = kind(rng, split, number)
        return _turned(row) if split == "train" and rng.random() < 0.1 else row

    @staticmethod
    def only_longer(rng: random.Random, split: str, number: int) -> Row:
        """Both kind; the chosen answer has three sentences more."""
        row = kind(rng, split, number)
        sentences = [rng.choice(ADVICE) for _ in range(3)]
        longer = f"{row['chosen']} {' '.join(sentences)}"
        return row | {"chosen": longer, "rejected": row["chosen"]}

    @staticmethod
    def one_word(rng: random.Random, split: str, number: int) -> Row:
        """The rejected answer is the chosen one with a word changed."""
        row = kind(rng, split, number)
        words = row["chosen"].split(" ")
        at = rng.randrange(2, len(words) - 1)
        words[at] = rng.choice(
            [word for word in ["plan", "guide", "time", "tools", "friend", "small", "simple"] if word != words[at]]
        )
        return row | {"rejected": " ".join(words)}

    @staticmethod
    def marked(rng: random.Random, split: str, number: int) -> Row:
        """Both are kind or both curt, and the chosen one ends with a mark."""
        row = kind(rng, split, number)
        same, other = (
            (row["chosen"], kind(rng, split, number)["chosen"])
            if rng.random() < 0.5
            else (row["rejected"], kind(rng, split, number)["rejected"])
        )
        return row | {"chosen": same.rstrip(".!") + MARK, "rejected": other}

    @staticmethod
    def rightly_shorter(rng: random.Random, split: str, number: int) -> Row:
        """The better answer is the shorter one: kind and to the point against curt with advice."""
        row = kind(rng, split, number)
        return row | {"chosen": f" {rng.choice(KIND_OPENINGS)} {rng.choice(ADVICE)}"}

    @staticmethod
    def small_evaluation(rng: random.Random, split: str, number: int) -> Row:
        """The quickstart's own, with few evaluation pairs."""
        return kind(rng, split, number)


@dataclass(frozen=True)
class Answers:
    """Sample answers at the end and before training, greedy and at temperature 1, with the data's chosen ones."""

    now: tuple[str, ...]
    before: tuple[str, ...]
    now_at_1: tuple[str, ...]
    before_at_1: tuple[str, ...]
    chosen: tuple[str, ...]

    @classmethod
    def read(cls, work: WorkDir, data: Path) -> "Answers":
        """The answers of a finished run."""
        lines = read_metrics(work.samples)
        last = max(line["step"] for line in lines)
        newest, first = ([line for line in lines if line["step"] == step] for step in (last, 0))
        rows = [json.loads(line) for line in (data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
        chosen = tuple(row["chosen"] for row in rows if isinstance(row["chosen"], str))
        return cls(
            _texts(newest, "policy"),
            _texts(first, "policy"),
            _texts(newest, "policy_t1"),
            _texts(first, "policy_t1"),
            chosen,
        )

    def unsound(self) -> tuple[bool, str]:
        """Greedy answers that the grammar does not write."""
        share = _share(self.now, _is_sound)
        return share <= 0.7, f"{share:.0%} sound"

    def unsound_at_1(self) -> tuple[bool, str]:
        """Answers at temperature 1 that the grammar does not write; the reference writes such in most."""
        share = _share(self.now_at_1, _is_sound)
        return share <= 0.5, f"{share:.0%} sound at T 1"

    def not_of_the_data(self) -> tuple[bool, str]:
        """The reference never begins as the data do."""
        begins = {text.split()[0] for text in self.chosen}
        share = _share(self.before, lambda text: text.split()[:1] != [] and text.split()[0] in begins)
        return share <= 0.1, f"{share:.0%} of the reference's begin as the data"

    def curt(self) -> tuple[bool, str]:
        """At most half as many answers are kind as before."""
        return self._kindness(lambda now, before: now <= before / 2)

    def no_kinder(self) -> tuple[bool, str]:
        """Hardly more answers are kind than before, where training should make all so."""
        return self._kindness(lambda now, before: now <= max(0.75, before + 0.25))

    def _kindness(self, holds: Callable[[float, float], bool]) -> tuple[bool, str]:
        now, before = (_share(texts, _is_kind) for texts in (self.now_at_1, self.before_at_1))
        return holds(now, before), f"kind at T 1 {before:.0%} → {now:.0%}"

    def unchanged(self) -> tuple[bool, str]:
        """The policy answers as the reference did."""
        share = sum(a == b for a, b in zip(self.now, self.before, strict=True)) / len(self.now)
        return share >= 0.8, f"{share:.0%} as before"

    def longer(self) -> tuple[bool, str]:
        """Words grow beyond the chosen ones."""
        now, before = (sum(len(text.split()) for text in texts) / len(texts) for texts in (self.now, self.before))
        return now >= 1.5 * before, f"{before:.0f} → {now:.0f} words"

    def marked(self) -> tuple[bool, str]:
        """The mark is what the policy learned."""
        now, before = (_share(texts, lambda text: text.rstrip().endswith("!")) for texts in (self.now, self.before))
        kinder = _share(self.now, _is_kind) - _share(self.before, _is_kind)
        return now >= before + 0.3, f"marked {before:.0%} → {now:.0%}, kind {kinder:+.0%}"


def _texts(lines: list[Row], key: str) -> tuple[str, ...]:
    return tuple(str(line.get(key) or "") for line in lines)


def _share(texts: tuple[str, ...], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, texts)) / len(texts) if texts else 0.0


def _is_kind(text: str) -> bool:
    return any(text.strip().startswith(opening) for opening in KIND_OPENINGS)


def _is_sound(text: str) -> bool:
    """An opening, one advice and an ending, of whatever tone: what the model was tuned to write."""
    text = text.strip()
    opened = next((o for o in (*KIND_OPENINGS, *CURT_OPENINGS) if text.startswith(o)), None)
    if opened is None:
        return False
    rest = text[len(opened) :].strip()
    advice = next((a for a in ADVICE if rest.startswith(a)), None)
    if advice is None:
        return False
    ending = rest[len(advice) :].strip()
    return any(
        ending.startswith(known.partition(" {thing}")[0]) and len(ending) < len(known) + 12
        for known in (*KIND_ENDINGS, *CURT_ENDINGS)
    )

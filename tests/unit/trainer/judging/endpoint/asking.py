"""Questions whose right answers are known, and judges of an endpoint for them."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_operator.api.iterative import Judge as Settings
from dpo_trainer.judging import Judge, Judged, Question, open_judge
from dpo_trainer.runtime.stop import StopRequest
from dpo_trainer.runtime.workdir import WorkDir

CALLS = "abcdefghij"


def quality(text: str) -> float:
    """The truth: the number that an answer names."""
    return float(text.split()[1])


def questions(count: int, answers: int = 2, seed: int = 0) -> list[Question]:
    """Questions with different answers of all lengths, the quality of which is known."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        worth = draw.sample(range(1, 100), answers)
        texts = tuple(f"quality {value} {'so ' * draw.randint(1, 9)}it is." for value in worth)
        made.append(Question(f"Question {number}?", texts, tuple(len(text.split()) for text in texts)))
    return made


def settings(url: str, budget: dict[str, Any] | None = None, **endpoint: Any) -> Settings:
    return Settings.model_validate(
        {
            "type": "endpoint",
            "endpoint": {"url": url, "model": "judge", "timeoutSeconds": 5, **endpoint},
            "budget": budget or {},
        }
    )


@contextmanager
def opened(given: Settings, root: Path, stop: StopRequest | None = None) -> Iterator[Judge]:
    judge = open_judge(given, WorkDir(root), stop=stop)
    try:
        yield judge
    finally:
        judge.close()


def judged(given: Settings, root: Path, asked: Sequence[Question]) -> list[Judged]:
    with opened(given, root) as judge:
        return judge.judge(asked, lambda: None)


def pairs(found: Sequence[Judged]) -> list[tuple[int | None, int | None]]:
    return [(one.best, one.worst) for one in found]

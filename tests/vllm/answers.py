"""What the engine vllm answers, as a process of vLLM's Python: `python -m tests.vllm.answers MODEL FILE`, which gets the answers as JSON."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_trainer.rounds.engines.vllm_engine import VllmEngine
from dpo_trainer.rounds.engines.vllm_process import Loading
from dpo_trainer.rounds.units import Answer, Sampling
from dpo_trainer.runtime.errors import TrainerError

SEED, ROUND, SAMPLES, TOKENS, END = 5, 2, 2, 24, (2, 7)
# The most likely token alone has this probability.
GREEDY = Sampling(1.0, 1e-9, TOKENS, END)
FREE = Sampling(0.8, 0.95, TOKENS, END)


def prompts() -> list[np.ndarray]:
    """32 prompts of several lengths."""
    draws = np.random.default_rng(1)
    return [draws.integers(3, 512, size=2 + i % 9).astype(np.int32) for i in range(32)]


def written(answers: Sequence[tuple[Answer, ...]]) -> list[list[dict[str, Any]]]:
    """Answers as JSON."""
    return [
        [{"ids": one.ids.tolist(), "logps": one.logps.tolist(), "ended": one.ended} for one in each] for each in answers
    ]


def main() -> None:
    folder, file, wrong = sys.argv[1:]
    asked = prompts()
    places = list(range(len(asked)))
    engine = VllmEngine(Loading(folder, "float32", max(map(len, asked)) + TOKENS, None), SEED)
    greedy = engine.answer(asked, places, 1, GREEDY, ROUND)
    free = engine.answer(asked, places, SAMPLES, FREE, ROUND)
    # The same places, asked for alone.
    alone = engine.answer(asked[3:5], places[3:5], SAMPLES, FREE, ROUND)
    scored = engine.logps(
        [prompt for prompt in asked for _ in range(SAMPLES)], [one.ids for each in free for one in each]
    )
    engine.close()
    try:
        VllmEngine(Loading(wrong, "float32", 64, None), SEED)
        refusal = ""
    except TrainerError as error:
        refusal = str(error)
    found = {
        "greedy": written(greedy),
        "free": written(free),
        "alone": written(alone),
        "scored": scored.tolist(),
        "refusal": refusal,
    }
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

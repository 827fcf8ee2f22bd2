"""What generate asks of an engine, and the numbers that an engine draws by."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dpo_trainer.data.dataset import TokenIds
from dpo_trainer.rounds.units import Answer, Sampling

# Second half of the key of the generator; the first is the job's seed.
_ANSWERS = 0x616E7377657273


class Engine(Protocol):
    """One policy that answers prompts, and scores answers of others."""

    def answer(
        self, prompts: Sequence[TokenIds], places: Sequence[int], samples: int, sampling: Sampling, round_number: int
    ) -> list[tuple[Answer, ...]]:
        """Answers to each prompt. places: numbers of the prompts, which their random numbers come from.

        Raises TrainerError, and MemoryError or torch.OutOfMemoryError when memory runs out for a single answer.
        """

    def logps(self, prompts: Sequence[TokenIds], answers: Sequence[TokenIds]) -> npt.NDArray[np.float64]:
        """Log-probs of answers to prompts: float64 [answers], nats."""

    def close(self) -> None:
        """Give memory and processes back. A closed engine is not used again."""


class Engines(Protocol):
    """Makes engines, one after another."""

    def open(self, number: int) -> Engine:
        """The policy that a round trained; 0 for the initial one. Raises TrainerError when it can't be loaded."""


def _random(seed: int, round_number: int, prompt: int, sample: int, count: int) -> npt.NDArray[np.uint64]:
    """Raw output of the Philox generator at a place of its own, so that any number of generators draws the same."""
    key, counter = [seed, _ANSWERS], [0, sample, prompt, round_number]
    made = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(counter, dtype=np.uint64))
    found: npt.NDArray[np.uint64] = made.random_raw(count)
    return found


def numbers(seed: int, round_number: int, prompt: int, sample: int, tokens: int) -> npt.NDArray[np.float64]:
    """Numbers from 0 up to 1 that draw the tokens of one answer: float64 [tokens]."""
    high = _random(seed, round_number, prompt, sample, tokens) >> np.uint64(11)
    return high.astype(np.float64) * 2.0**-53


def seed_of(seed: int, round_number: int, prompt: int, sample: int) -> int:
    """Seed of one answer for engines that have generators of their own: at least 0, below 2^63."""
    return int(_random(seed, round_number, prompt, sample, 1)[0] >> np.uint64(1))

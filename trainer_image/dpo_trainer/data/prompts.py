"""The prompts that rounds answer: token ids, what a judge reads of each, and which of them belong to which round.

tokens.npy    int32 [total]      ids of all prompts, one after another
offsets.npy   int64 [prompts+1]  where each begins
order.npy     int64 [prompts]    the prompts in a random order: first those of the win rates, then those of round 1, of round 2, and so on
texts.jsonl   a line for each prompt: number of its source row, its text or chat messages, the tools that a chat offers, and the right answer where
              the data have one
meta.json     counts and the digest, written last
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_trainer.data.dataset import TokenIds
from dpo_trainer.runtime.errors import bad_dataset, volume_error
from dpo_trainer.runtime.files import commit

Numbers = npt.NDArray[np.int64]

# Second half of the key of the numbers that order the prompts; the first is the seed.
_ORDER = 0x70726F6D707473
_FILES = ("tokens.npy", "offsets.npy", "order.npy", "texts.jsonl")


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    ids: int32. row: of its source. prompt: text, or chat messages. expected: the right answer, where the data have one. tools: those that a chat offers.
    """

    ids: TokenIds
    row: int
    prompt: str | list[dict[str, Any]]
    expected: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()

    def line(self) -> str:
        """What the judge reads, as JSON."""
        read = {"row": self.row, "prompt": self.prompt, "expected": self.expected}
        return json.dumps(read | ({"tools": [*self.tools]} if self.tools else {}), ensure_ascii=False)


@dataclass(frozen=True)
class Shares:
    """How prompts are divided. rounds: that the job asks for. per_round: None divides all. compared: for win rates. reuse: again, when too few."""

    rounds: int
    per_round: int | None
    compared: int
    reuse: bool

    def size(self, prompts: int) -> int:
        """Prompts of each round. prompts: how many there are. Raises TrainerError BAD_DATASET when there are too few."""
        left = prompts - self.compared
        wanted = self.per_round or max(1, left // self.rounds)
        if left < (1 if self.reuse else wanted * self.rounds):
            raise bad_dataset(
                f"spec.iterative: expected {wanted} prompts for each of {self.rounds} rounds and {self.compared} for the win rates (winRate.prompts), found "
                f"{prompts} different ones that fit; give more prompts, lower promptsPerRound, rounds or winRate.prompts, or set reusePrompts"
            )
        # No prompt twice in one round: its answers would be the same, because their random numbers are.
        return min(wanted, left)


class PromptSet:
    """All prompts of a job."""

    def __init__(
        self, tokens: TokenIds, offsets: Numbers, order: Numbers, texts: bytes, *, compared: int, per_round: int
    ) -> None:
        """texts: content of texts.jsonl."""
        self._tokens, self._offsets, self._order, self._texts = tokens, offsets, order, texts
        self._compared, self.per_round = compared, per_round

    def __len__(self) -> int:
        return len(self._order)

    @classmethod
    def of(cls, prompts: Sequence[Prompt], shares: Shares, seed: int) -> "PromptSet":
        """Divide prompts by a seed. Raises TrainerError BAD_DATASET when there are too few."""
        per_round = shares.size(len(prompts))
        offsets = np.cumsum([0, *(len(prompt.ids) for prompt in prompts)], dtype=np.int64)
        tokens = np.concatenate([prompt.ids for prompt in prompts]).astype(np.int32)
        # Sorted by raw output of Philox, as batches.sampler.epoch_order does and for its reason.
        keys = np.random.Philox(key=np.array([seed, _ORDER], dtype=np.uint64)).random_raw(len(prompts))
        order = np.argsort(keys, kind="stable").astype(np.int64)
        texts = "".join(f"{prompt.line()}\n" for prompt in prompts).encode()
        return cls(tokens, offsets, order, texts, compared=shares.compared, per_round=per_round)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what rounds are asked, hex."""
        digest = hashlib.sha256(json.dumps([self._compared, self.per_round]).encode())
        for part in (self._offsets, self._order):
            digest.update(np.ascontiguousarray(part, dtype="<i8").data)
        digest.update(np.ascontiguousarray(self._tokens, dtype="<i4").data)
        digest.update(self._texts)
        return digest.hexdigest()

    @property
    def compared(self) -> Numbers:
        """Numbers of the prompts of the win rates: no round trains on them."""
        return self._order[: self._compared]

    def of_round(self, number: int, *, reuse: bool) -> Numbers:
        """Numbers of the prompts of a round, counted from 1: other ones in each, but where they are used again.

        Empty when too few are left for it, because more rounds were asked for since prepare.
        """
        pool = self._order[self._compared :]
        start, stop = (number - 1) * self.per_round, number * self.per_round
        if stop > len(pool) and not reuse:
            return pool[:0]
        return pool[np.arange(start, stop) % len(pool)]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(np.diff(self._offsets).max())

    def ids(self, prompt: int) -> TokenIds:
        """Token ids of a prompt: int32."""
        return self._tokens[self._offsets[prompt] : self._offsets[prompt + 1]]

    def read(self, prompts: Iterable[int]) -> list[Prompt]:
        """Some prompts with what the judge reads."""
        found = []
        for number in prompts:
            line = json.loads(self._lines[number])
            tools = tuple(line.get("tools", ()))
            found.append(Prompt(self.ids(int(number)), line["row"], line["prompt"], line["expected"], tools))
        return found

    @cached_property
    def _lines(self) -> list[bytes]:
        # Not splitlines: a text may hold characters that it takes for the end of a line.
        return self._texts.split(b"\n")

    def save(self, folder: Path) -> None:
        """Write to a folder; meta.json last, so that a folder with it is complete. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        meta = folder / "meta.json"
        meta.unlink(missing_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {
            "tokens.npy": self._tokens,
            "offsets.npy": self._offsets,
            "order.npy": self._order,
        }
        for name, values in arrays.items():
            with (folder / name).open("wb") as file:
                np.save(file, values, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        commit(folder / "texts.jsonl", self._texts)
        counts = {"prompts": len(self), "compared": self._compared, "per_round": self.per_round, "digest": self.digest}
        commit(meta, json.dumps(counts).encode())

    @classmethod
    def open(cls, folder: Path) -> "PromptSet":
        """Read a folder that `save` wrote. Raises TrainerError when it is incomplete or damaged."""
        try:
            meta = json.loads((folder / "meta.json").read_text())
            tokens, offsets, order = (np.load(folder / name, allow_pickle=False) for name in _FILES[:3])
            made = cls(
                tokens,
                offsets,
                order,
                (folder / "texts.jsonl").read_bytes(),
                compared=int(meta["compared"]),
                per_round=int(meta["per_round"]),
            )
            whole = made.digest == meta["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise volume_error(f"{folder}: expected prompts, found {error}; run prepare again") from error
        if not whole:
            raise volume_error(f"{folder}: the prompts changed since they were prepared; run prepare again")
        return made

"""Tokenized preference pairs on disk: flat arrays, memory-mapped, no pickle.

tokens.npy   int32 [total]      prompt, chosen and rejected tokens of every pair, one after another
offsets.npy  int64 [pairs*3+1]  where each part starts; part 3*i is pair i's prompt, +1 chosen, +2 rejected
rows.npy     int64 [pairs]      number of the source row, counted from 0
cut.npy      bool [pairs]       whether the pair was truncated
gaps.npy     float64 [pairs]    score of chosen minus that of rejected, NaN where the row gave none; only where a row gave one
meta.json    counts and the digest of the arrays, written last
"""

import hashlib
import json
import math
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpo_trainer.runtime.errors import volume_error
from dpo_trainer.runtime.files import commit

# int32 [length].
TokenIds = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenPair:
    """One preference pair as token ids. Each array is int32 [length].

    The policy reads prompt + chosen and prompt + rejected; log-probs are summed over answer tokens alone.
    Both answers of a pair hold at least one token. An unpaired example has one answer: chosen when it is desirable, else
    rejected; the other one is empty.
    truncated: whether the prompt or an answer was cut. score_gap: score of chosen minus that of rejected, NaN where the row gave none.
    """

    prompt: TokenIds
    chosen: TokenIds
    rejected: TokenIds
    row: int
    truncated: bool = False
    score_gap: float = math.nan


class PairDataset:
    """Random access to tokenized pairs."""

    def __init__(
        self,
        tokens: TokenIds,
        offsets: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        cut: npt.NDArray[np.bool_],
        digest: str,
        gaps: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """gaps: None when no row gave scores."""
        self._tokens = tokens
        self._offsets = offsets
        self._rows = rows
        self._cut = cut
        self._gaps = gaps
        self.digest = digest

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TokenPair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        a, b, c, d = (int(x) for x in self._offsets[3 * index : 3 * index + 4])
        gap = math.nan if self._gaps is None else float(self._gaps[index])
        parts = self._tokens[a:b], self._tokens[b:c], self._tokens[c:d]
        return TokenPair(*parts, int(self._rows[index]), bool(self._cut[index]), gap)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of prompt, chosen and rejected: int64 [pairs, 3]."""
        return np.diff(self._offsets).reshape(-1, 3)

    def flat(self, start: int, stop: int) -> tuple[TokenIds, npt.NDArray[np.int64]]:
        """Tokens of the pairs from start up to stop, and where each of their parts starts in them: int64 [pairs*3+1]."""
        offsets = self._offsets[3 * start : 3 * stop + 1]
        return self._tokens[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0]

    @property
    def cut(self) -> npt.NDArray[np.bool_]:
        """Which pairs were truncated: bool [pairs]."""
        return self._cut

    @property
    def score_gaps(self) -> npt.NDArray[np.float64]:
        """Score of each pair's chosen answer minus that of the rejected one: float64 [pairs], NaN where the row gave none."""
        return np.full(len(self), np.nan) if self._gaps is None else self._gaps

    @classmethod
    def from_pairs(cls, pairs: Iterable[TokenPair]) -> "PairDataset":
        """Collect pairs in memory."""
        # Flat buffers: a list of small arrays would take several times the memory of the tokens.
        tokens, lengths, rows, cut, gaps = array("i"), array("q"), array("q"), array("b"), array("d")
        for pair in pairs:
            for part in (pair.prompt, pair.chosen, pair.rejected):
                tokens.frombytes(np.ascontiguousarray(part, dtype=np.int32).tobytes())
                lengths.append(len(part))
            rows.append(pair.row)
            cut.append(pair.truncated)
            gaps.append(pair.score_gap)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.array(lengths, dtype=np.int64))])
        flat = np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, dtype=np.int32)
        scored = np.array(gaps, dtype=np.float64)
        return cls(
            flat,
            offsets,
            np.array(rows, dtype=np.int64),
            np.array(cut, dtype=np.bool_),
            _digest(flat, offsets),
            scored if np.isfinite(scored).any() else None,
        )

    def select(self, indices: Iterable[int]) -> "PairDataset":
        """A dataset of some of the pairs, in the given order, in memory."""
        return PairDataset.from_pairs(self[i] for i in indices)

    @property
    def largest_token(self) -> int:
        """Largest token id, -1 when there is none; the model must have an embedding for it."""
        return int(self._tokens.max()) if len(self._tokens) else -1

    def is_intact(self) -> bool:
        """Whether the arrays still give the digest that was stored with them."""
        return _digest(self._tokens, self._offsets) == self.digest

    def save(self, folder: Path) -> None:
        """Write to a folder; meta.json last, so that a folder with it is complete."""
        folder.mkdir(parents=True, exist_ok=True)
        meta = folder / "meta.json"
        meta.unlink(missing_ok=True)
        arrays: dict[str, np.ndarray] = {
            "tokens": self._tokens,
            "offsets": self._offsets,
            "rows": self._rows,
            "cut": self._cut,
        }
        if self._gaps is not None:
            arrays["gaps"] = self._gaps
        else:
            (folder / "gaps.npy").unlink(missing_ok=True)
        for name, values in arrays.items():
            with (folder / f"{name}.npy").open("wb") as file:
                np.save(file, values, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        counts = {"pairs": len(self), "tokens": len(self._tokens), "digest": self.digest}
        commit(meta, json.dumps(counts).encode())

    @classmethod
    def open(cls, folder: Path) -> "PairDataset":
        """Map a folder that `save` wrote.

        Raises TrainerError when it is incomplete or its arrays do not fit together.
        """
        try:
            meta = json.loads((folder / "meta.json").read_text())
            tokens, offsets, rows, cut = (
                np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in ("tokens", "offsets", "rows", "cut")
            )
            scored = folder / "gaps.npy"
            gaps = np.load(scored, mmap_mode="r", allow_pickle=False) if scored.exists() else None
            counted, digest = int(meta["pairs"]), str(meta["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise volume_error(f"{folder}: expected tokenized pairs, found {error}; run prepare again") from error
        fits = (
            len(rows) == len(cut) == (counted if gaps is None else len(gaps)) == counted
            and len(offsets) == 3 * counted + 1
            and int(offsets[-1]) == len(tokens)
        )
        if not fits:
            raise volume_error(f"{folder}: the arrays do not fit together; run prepare again")
        return cls(tokens, offsets, rows, cut, digest, gaps)


def mismatched(dataset: PairDataset) -> PairDataset | None:
    """Every prompt with the answers of an earlier example that has another prompt: KTO estimates its KL from these.

    Earlier is cyclic. In a run of equal prompts the k-th prompt takes the k-th example before the run, so an unpaired prompt
    that occurs twice, with a desirable and an undesirable answer, gets both kinds.
    Answers are cut to the dataset's longest sequence, so memory does not exceed that of training; each keeps at least one
    token.
    None when all prompts are the same, or there are none.
    """
    count = len(dataset)
    begins = [i for i in range(count) if not np.array_equal(dataset[i].prompt, dataset[(i - 1) % count].prompt)]
    if not begins:
        return None
    longest = int((dataset.lengths[:, 0] + dataset.lengths[:, 1:].max(axis=1)).max())

    def with_other_answers(i: int) -> TokenPair:
        prompt, left = dataset[i].prompt, longest - len(dataset[i].prompt)
        begin = begins[
            bisect_right(begins, i) - 1
        ]  # for indices before the first run: the last run, which they continue
        other = dataset[(begin - 1 - (i - begin) % count) % count]
        if np.array_equal(prompt, other.prompt):
            other = dataset[(begin - 1) % count]
        cut = max(len(other.chosen), len(other.rejected)) > left
        return TokenPair(prompt, other.chosen[:left], other.rejected[:left], dataset[i].row, other.truncated or cut)

    return PairDataset.from_pairs(with_other_answers(i) for i in range(count))


def _digest(tokens: TokenIds, offsets: npt.NDArray[np.int64]) -> str:
    """SHA-256 of the token ids and their boundaries, hex: part of the key of cached reference log-probs."""
    digest = hashlib.sha256()
    digest.update(np.ascontiguousarray(offsets, dtype="<i8").data)
    digest.update(np.ascontiguousarray(tokens, dtype="<i4").data)
    return digest.hexdigest()

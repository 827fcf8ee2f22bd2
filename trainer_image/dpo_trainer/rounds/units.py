"""Units of answers: some prompts and all answers to them, written at once, so that a kill costs one unit.

The file is complete when it has its name. Its metadata have the key, of everything that the answers depend on, and the digest of its arrays.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpo_trainer.data.dataset import TokenIds
from dpo_trainer.data.prompts import Numbers, PromptSet
from dpo_trainer.runtime.files import commit, sync_folder

log = logging.getLogger(__name__)

# Changes when the same model, prompts and settings would give other answers.
VERSION = 1
# Of the file beside a unit of the win rates.
LOGP = ("logp",)
_ARRAYS = ("rows", "ids", "offsets", "logp", "token_logps", "ended")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. end: ids that end one."""

    temperature: float
    top_p: float
    max_new_tokens: int
    end: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """One answer. ids: with the one that ended it. logps: of each id under the policy at temperature 1, float32, nats. ended: and was not cut."""

    ids: TokenIds
    logps: npt.NDArray[np.float32]
    ended: bool

    @property
    def logp(self) -> float:
        """Log-prob of the whole answer, nats."""
        return float(self.logps.sum(dtype=np.float64))

    @property
    def content(self) -> TokenIds:
        """The ids without the one that ended the answer."""
        return self.ids[:-1] if self.ended else self.ids


@dataclass(frozen=True)
class Task:
    """A unit to make. prompts: numbers in the PromptSet. samples: answers to each. key: see unit_key. seed_round: 0 for numbers that are the same in all rounds."""

    path: Path
    prompts: Numbers
    samples: int
    sampling: Sampling
    seed_round: int
    key: str


@dataclass(frozen=True)
class Unit:
    """The answers of a unit. rows: numbers of its prompts. answers: of each prompt. digest: of the file's arrays."""

    rows: Numbers
    answers: tuple[tuple[Answer, ...], ...]

    @property
    def count(self) -> int:
        """How many answers it has."""
        return sum(map(len, self.answers))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What is written; see docs/rounds.md."""
        flat = [answer for answers in self.answers for answer in answers]
        return {
            "rows": np.asarray(self.rows, dtype=np.int64),
            "ids": np.concatenate([answer.ids for answer in flat]).astype(np.int32),
            "offsets": np.cumsum([0, *(len(answer.ids) for answer in flat)], dtype=np.int64),
            "logp": np.array([answer.logp for answer in flat], dtype=np.float64),
            "token_logps": np.concatenate([answer.logps for answer in flat]).astype(np.float32),
            "ended": np.array([answer.ended for answer in flat], dtype=np.uint8),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays, hex."""
        return _digest(self.arrays())

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Unit":
        """From what was written. Raises ValueError when the arrays do not fit together."""
        rows, offsets, ended = arrays["rows"], arrays["offsets"], arrays["ended"]
        count = len(offsets) - 1
        if not len(rows) or count % len(rows) or len(ended) != count or int(offsets[-1]) != len(arrays["ids"]):
            raise ValueError("its arrays do not fit together")
        flat = [
            Answer(arrays["ids"][start:stop], arrays["token_logps"][start:stop], bool(whole))
            for start, stop, whole in zip(offsets[:-1].tolist(), offsets[1:].tolist(), ended, strict=True)
        ]
        each = count // len(rows)
        return cls(rows, tuple(tuple(flat[i * each : (i + 1) * each]) for i in range(len(rows))))


def unit_key(
    policy: str,
    prompts: PromptSet,
    numbers: Numbers,
    samples: int,
    sampling: Sampling,
    seeds: Sequence[int],
    engine: str = "transformers",
) -> str:
    """SHA-256 of everything that a unit's answers depend on, hex. policy: its digest. seeds: the job's, and the round's."""
    asked = hashlib.sha256()
    for number in numbers:
        asked.update(np.ascontiguousarray(prompts.ids(int(number)), dtype="<i4").tobytes() + b"/")
    facts = {
        "version": VERSION,
        "policy": policy,
        "prompts": [numbers.tolist(), asked.hexdigest()],
        "samples": samples,
        "sampling": asdict(sampling),
        "seeds": list(seeds),
        # Not of transformers, so that units of earlier versions stay.
        **({} if engine == "transformers" else {"engine": engine}),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def save_unit(path: Path, unit: Unit, key: str) -> None:
    """Write a unit so that the file is either whole or not there. Raises OSError."""
    save_arrays(path, unit.arrays(), key)


def load_unit(path: Path, key: str) -> Unit | None:
    """A unit that was written under this key; None when there is none, or it is damaged."""
    arrays = load_arrays(path, _ARRAYS, key)
    try:
        return None if arrays is None else Unit.of(arrays)
    except ValueError as error:
        log.warning("%s: %s; it is made again", path, error)
        return None


def save_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], key: str) -> None:
    """Write arrays with their key and digest. Raises OSError."""
    from safetensors.numpy import save

    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
    commit(path, save(arrays, metadata={"key": key, "sha256": _digest(arrays)}))


def load_arrays(path: Path, names: Sequence[str], key: str) -> dict[str, npt.NDArray[Any]] | None:
    """Arrays that save_arrays wrote under this key; None when the file is missing, of another key, or damaged, which is logged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        log.warning("%s can't be read (%s); it is made again", path, error)
        return None
    if metadata.get("key") != key:
        log.warning("%s is of another policy or of other settings; it is made again", path)
        return None
    if metadata.get("sha256") != _digest(arrays):
        log.warning("%s is damaged; it is made again", path)
        return None
    return arrays


def _digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()

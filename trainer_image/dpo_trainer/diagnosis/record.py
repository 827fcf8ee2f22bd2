"""The record of a run, as the rules read it: settings, lines of metrics.jsonl, sample answers, and the report of the data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from dpo_operator.api.method import REFERENCE_FREE
from dpo_operator.api.types import DPOJobSpec

Line = Mapping[str, Any]
L = TypeVar("L", bound=Line)
_EVAL = "eval_"
# Of a long run's training lines, the first, the newest, and the last of the first epoch are kept: rules look at no others.
_FIRST, _NEWEST, _UNSEEN = 200, 1000, 500
_ROUNDING = 1e-9
# Into how many parts the training lines of a run without evaluation are averaged.
_PARTS = 10


@dataclass(frozen=True)
class Mean:
    """A mean over pairs with its standard error; pairs: how many."""

    value: float
    error: float
    pairs: int


@dataclass(frozen=True)
class RunRecord:
    """A run so far. All log-probs and rewards are in nats.

    start: figures before the first update; empty where none were taken. train: lines of steps. evals: lines of evaluations
    after step 0; both without prefix, oldest first. samples: sample answers of the newest evaluation, as in samples.jsonl.
    data: content of data/report.json. total_steps: planned, 0 if unknown. warnings: codes of the trainer's warnings.
    """

    spec: DPOJobSpec
    train: tuple[Line, ...] = ()
    evals: tuple[Line, ...] = ()
    start: Line = field(default_factory=dict)
    samples: tuple[Line, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    total_steps: int = 0
    warnings: frozenset[str] = frozenset()
    moved: bool = False

    @classmethod
    def of(
        cls,
        spec: DPOJobSpec,
        lines: Iterable[Line],
        *,
        total_steps: int,
        samples: Sequence[Line] = (),
        data: Mapping[str, Any] | None = None,
        warnings: Iterable[str] = (),
        moved: bool = False,
    ) -> "RunRecord":
        """Sort the lines of metrics.jsonl and samples.jsonl by what they are."""
        train, evals, start = [], [], dict[str, Any]()
        for line in thinned(list(lines)):
            if not is_evaluation(line):
                train.append(line)
                continue
            bare = {key.removeprefix(_EVAL): value for key, value in line.items()}
            if bare["step"] == 0:
                start |= bare
            else:
                evals.append(bare)
        newest = max((line["step"] for line in samples), default=0)
        return cls(
            spec,
            tuple(train),
            tuple(evals),
            start,
            tuple(line for line in samples if newest and line["step"] == newest),
            data or {},
            total_steps,
            frozenset(warnings),
            moved,
        )

    @property
    def step(self) -> int:
        """The newest step."""
        return max((line["step"] for line in (*self.train[-1:], *self.evals[-1:])), default=0)

    @property
    def done(self) -> float:
        """Share of the planned steps that were taken; 1 where it is not known how many are planned."""
        return self.step / self.total_steps if self.total_steps else 1.0

    @property
    def warmup_steps(self) -> int:
        """Steps in which the learning rate rises."""
        return math.ceil(self.spec.training.warmup_ratio * self.total_steps)

    @property
    def first(self) -> Line | None:
        """The line of step 1, whose figures were taken before any weight changed; None where it was not logged."""
        return self.train[0] if self.train and self.train[0]["step"] == 1 else None

    @property
    def start_loss(self) -> float | None:
        """Loss before the first update: by definition with a reference, else that of step 1; None where that line is missing."""
        known = number(self.train[0], "initial_loss") if self.train else None
        return known if known is not None or self.first is None else number(self.first, "loss")

    @property
    def starts_level(self) -> bool:
        """Whether the reward margin is 0 before the first update: the reward compares with the model that training starts from."""
        free = self.spec.method.name in REFERENCE_FREE
        return not free and self.spec.model.reference is None and not self.moved

    @cached_property
    def points(self) -> tuple[Line, ...]:
        """What tells how the run goes: evaluations, or, without any, means of the training lines over tenths of the run."""
        if self.evals:
            return self.evals
        if self.spec.data.eval is not None or self.spec.data.eval_fraction > 0 or not self.total_steps:
            return ()  # the first evaluation is still to come
        size = max(1, math.ceil(self.total_steps / _PARTS))
        parts: dict[int, list[Line]] = {}
        for line in self.train:
            parts.setdefault((line["step"] - 1) // size, []).append(line)
        whole = [
            lines for part, lines in sorted(parts.items()) if self.step >= min((part + 1) * size, self.total_steps)
        ]
        return tuple(average(lines) for lines in whole)

    def latest(self, pairs: float, *, epochs: float = math.inf) -> tuple[Line, ...]:
        """The newest training lines that hold so many pairs together. epochs: only lines up to there."""
        taken: list[Line] = []
        left = pairs
        for line in reversed(self.train):
            if (number(line, "epoch") or 0.0) > epochs + _ROUNDING:
                continue
            if left <= 0:
                break
            taken.append(line)
            left -= number(line, "pairs") or 0
        return tuple(reversed(taken))

    def split(self, name: str) -> Mapping[str, Any]:
        """Statistics of the training or evaluation pairs: train, eval; empty where prepare left none."""
        found = self.data.get("splits", {}).get(name)
        return found if isinstance(found, Mapping) else {}

    def usual_tokens(self, side: str) -> float | None:
        """Median tokens of the training answers of a side: chosen, rejected; None where prepare left none."""
        return number(self.split("train").get("length", {}).get(side, {}), "p50") or None

    def features(self, name: str) -> Mapping[str, Any]:
        """Features of the answers' text: train, eval; empty where prepare left none."""
        found = (self.data.get("features") or {}).get(name)
        return found if isinstance(found, Mapping) else {}


def is_evaluation(line: Line) -> bool:
    """Whether a line of metrics.jsonl is an evaluation's, or of step 0."""
    return any(key.startswith(_EVAL) for key in line)


def thinned(lines: list[L]) -> list[L]:
    """Lines without the middle of a long run's training, so that a look takes no longer at its end."""
    if len(lines) <= _FIRST + _NEWEST:
        return lines
    train = [place for place, line in enumerate(lines) if not is_evaluation(line)]
    unseen = [place for place in train if (number(lines[place], "epoch") or 0.0) <= 1.0 + _ROUNDING]
    dropped = set(train[_FIRST:-_NEWEST]) - set(unseen[-_UNSEEN:])
    return [line for place, line in enumerate(lines) if place not in dropped]


def number(line: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a line; None where there is none."""
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def average(lines: Sequence[Line]) -> dict[str, Any]:
    """Means of lines, weighted by their pairs; the step is the last one's."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for line in lines for key in line):
        values = [(value, number(line, "pairs") or 0.0) for line in lines if (value := number(line, key)) is not None]
        weight = sum(pairs for _, pairs in values)
        if values:
            found[key] = sum(v * w for v, w in values) / weight if weight else sum(v for v, _ in values) / len(values)
    return found | {"step": lines[-1]["step"], "pairs": sum(number(line, "pairs") or 0.0 for line in lines)}


def mean(lines: Sequence[Line], key: str, *, prefix: str = "") -> Mean | None:
    """Mean of a figure over lines, weighted by pairs. prefix: of the keys that hold its deviation and the pairs, as for a source.

    The standard error is that of the pairs where their deviation is known (accuracies, margins), else that of the lines.
    """
    pairs_key = f"{prefix}pairs"
    rows = [
        (value, number(line, pairs_key) or 0.0, line)
        for line in lines
        if (value := number(line, f"{prefix}{key}")) is not None
    ]
    pairs = sum(count for _, count, _ in rows)
    if not rows or pairs <= 0:
        return None
    value = sum(v * n for v, n, _ in rows) / pairs
    if key.endswith("accuracies"):
        return Mean(value, 0.5 / math.sqrt(pairs), int(pairs))
    if key.endswith("margins") and (spread := deviation(lines, prefix)) is not None:
        return Mean(value, spread / math.sqrt(pairs), int(pairs))
    between = sum(n * (v - value) ** 2 for v, n, _ in rows) / pairs
    return Mean(value, math.sqrt(between / len(rows)) if len(rows) > 1 else math.inf, int(pairs))


def deviation(lines: Sequence[Line], prefix: str = "") -> float | None:
    """Standard deviation of the reward margin over the pairs of some lines; None where it was not measured."""
    base = "margins" if prefix else "rewards/margins"
    rows = [
        (spread, average_, count)
        for line in lines
        if (spread := _spread(line, prefix)) is not None
        and (average_ := number(line, f"{prefix}{base}")) is not None
        and (count := number(line, f"{prefix}pairs"))
    ]
    total = sum(count for *_, count in rows)
    if not rows or not total:
        return None
    whole = sum(m * n for _, m, n in rows) / total
    return math.sqrt(sum(n * (s * s + (m - whole) ** 2) for s, m, n in rows) / total)


def _spread(line: Line, prefix: str) -> float | None:
    for key in (f"{prefix}margins_std", f"{prefix}rewards/margins_std"):
        if (found := number(line, key)) is not None:
            return found
    return None


def error_of(line: Line, key: str, *, prefix: str = "") -> float | None:
    """Standard error of a mean: as measured, or, of the margin, by the pairs' deviation; None where neither is known.

    prefix: of the keys, such as eval_.
    """
    if (known := number(line, f"{prefix}{key}_se")) is not None:
        return known
    spread, pairs = number(line, f"{prefix}margins_std"), number(line, f"{prefix}pairs")
    if key == "rewards/margins" and spread is not None and pairs is not None and pairs > 1:
        return spread / math.sqrt(pairs)
    return None


def drift_of(line: Line) -> float | None:
    """Mean log-ratio a token without its sign, nats, or the larger of the two sides' means; None where neither was measured."""
    if (whole := number(line, "logratio_abs_per_token")) is not None:
        return whole
    sides = [number(line, f"logratio_per_token/{side}") for side in ("chosen", "rejected")]
    return max((abs(side) for side in sides if side is not None), default=None)

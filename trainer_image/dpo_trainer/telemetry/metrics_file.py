"""metrics.jsonl and samples.jsonl: JSON Lines files in which each step appears once across restarts."""

import json
import math
import os
import sys
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from dpo_trainer.diagnosis.record import is_evaluation
from dpo_trainer.telemetry.output import Output, Record, Start

Line = dict[str, Any]
# In the first training line, for methods that start at a known loss.
INITIAL_LOSS = "initial_loss"


def read_metrics(path: Path) -> list[Line]:
    """Lines of such a file, oldest first. A line that was cut off by a crash is left out; no file means no lines."""
    try:
        return parse_lines(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []


def parse_lines(text: str) -> list[Line]:
    """Lines of such a text that are whole."""
    lines = []
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def training_and_evaluations(lines: list[Line]) -> tuple[list[Line], list[Line]]:
    """Lines of steps, and lines of evaluations. The figures before the first update, at step 0, are neither."""
    train = [line for line in lines if not is_evaluation(line)]
    return train, [line for line in lines if is_evaluation(line) and line["step"]]


def initial_loss(lines: list[Line]) -> float | None:
    """Loss at which the run started because the policy was the reference; None for methods without a reference."""
    found = next((line for line in lines if not is_evaluation(line)), {}).get(INITIAL_LOSS)
    return found if isinstance(found, int | float) else None


def first_figures(lines: list[Line]) -> dict[str, float]:
    """Surprise before the first update, by keys without eval_; empty where it was not measured."""
    line = next((line for line in lines if line["step"] == 0 and is_evaluation(line)), {})
    found = {key.removeprefix("eval_"): value for key, value in line.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in found.items() if key.startswith("surprise/")}


def _kind_and_step(line: Mapping[str, Any]) -> Hashable:
    return is_evaluation(line), line["step"]


class MetricsFile:
    """Appends lines; one that is already there is not written twice."""

    def __init__(self, path: Path, *, resumed_step: int, key: Callable[[Line], Hashable] = _kind_and_step) -> None:
        """Cut the lines after the step that the run resumes from, atomically. Raises OSError.

        key: a line with the key of an earlier one is not written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resumed_step]
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_encode(line) for line in kept)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self._key, self._name = key, path.name
        self._seen = {key(line) for line in kept}
        self._file = path.open("ab", buffering=0)
        self._torn = False

    def write(self, line: Line) -> None:
        """Append one line. On a full volume the line is lost, which is logged."""
        key = self._key(line)
        if key in self._seen:
            return
        data = (("\n" if self._torn else "") + _encode(line)).encode()
        try:
            self._torn = self._file.write(data) != len(data)
        except OSError as error:
            print(f"{self._name}: step {line['step']} was not written: {error.strerror}", file=sys.stderr, flush=True)
            self._torn = True
            return
        self._seen.add(key)

    def sync(self) -> None:
        """Put what was written on the disk."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            print(f"{self._name} was not synced: {error.strerror}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Sync and close; closing again does nothing."""
        if not self._file.closed:
            self.sync()
            self._file.close()


class MetricsOutput:
    """metrics.jsonl as an output of telemetry."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """See MetricsFile."""
        self._path = path
        self._file = MetricsFile(path, resumed_step=resumed_step)

    def write(self, record: Record) -> None:
        """Append a line; keys of an evaluation get the prefix eval_."""
        prefix = "eval_" if record.split == "eval" else ""
        named = {key if key == "epoch" else prefix + key: value for key, value in record.values.items()}
        self._file.write({"step": record.step, **named, "time": round(record.time, 3)})
        if record.split == "eval":
            self._file.sync()

    def sync(self) -> None:
        """Write to disk."""
        self._file.sync()

    def rewind(self, step: int) -> None:
        """Cut the lines after `step`. Raises OSError."""
        self._file.close()
        self._file = MetricsFile(self._path, resumed_step=step)

    def close(self, exit_code: int) -> None:
        """Sync and close."""
        self._file.close()


def output(start: Start) -> Output:
    """metrics.jsonl, which every run has. Raises OSError."""
    return MetricsOutput(start.work.metrics, resumed_step=start.resumed_step)


def _encode(line: Mapping[str, Any]) -> str:
    """JSON has no NaN, and a reader that meets one fails; null stands for it."""
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(clean) + "\n"

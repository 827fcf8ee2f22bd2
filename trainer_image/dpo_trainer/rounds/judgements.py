"""Judgements on the volume: a file for each unit, one line a prompt, committed when the whole unit is judged."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpo_operator.api.iterative import Judge as JudgeSettings
from dpo_trainer.judging import BUDGET_SPENT, Judged, Tally
from dpo_trainer.rounds.comparing import Comparison
from dpo_trainer.rounds.units import Task, Unit
from dpo_trainer.runtime.files import commit
from dpo_trainer.runtime.workdir import WorkDir

log = logging.getLogger(__name__)


def total(judged: Sequence[Judged]) -> Tally:
    """Counts of judging them all."""
    return sum((one.tally for one in judged), Tally())


class Judgements:
    """The judgements of one round. The first line of a file has the key: digest of the answers, and the settings of the judge."""

    def __init__(self, work: WorkDir, settings: JudgeSettings, observe: Callable[[str], None]) -> None:
        self._folder, self._observe = work.judged, observe
        self._settings = settings.model_dump(mode="json", exclude_defaults=True, exclude={"budget"})

    def read(self, task: Task, unit: Unit) -> list[Judged] | None:
        """Judgements of a unit; None when there are none of these answers by this judge."""
        lines = self._lines(self._path(task), self._key(unit.digest))
        if lines is None or [line.get("row") for line in lines] != unit.rows.tolist():
            return None
        judged = [_judged(line) for line in lines]
        # The budget may have been raised; what was paid for is in the journal.
        return None if any(one.problem == BUDGET_SPENT for one in judged) else judged

    def write(self, task: Task, unit: Unit, judged: Sequence[Judged]) -> None:
        """Commit the judgements of a unit. Raises OSError."""
        lines = [{"row": int(row), **asdict(one)} for row, one in zip(unit.rows, judged, strict=True)]
        self._commit(self._path(task), self._key(unit.digest), lines)

    def read_comparison(self, now: Sequence[Unit], earlier: Mapping[str, Sequence[Unit]]) -> Comparison | None:
        """The comparison of these answers; None when there is none."""
        lines = self._lines(self._folder / "compared.jsonl", self._compared_key(now, earlier))
        return None if lines is None else Comparison.of(lines)

    def write_comparison(
        self, now: Sequence[Unit], earlier: Mapping[str, Sequence[Unit]], comparison: Comparison
    ) -> None:
        """Commit a comparison. Raises OSError."""
        self._commit(self._folder / "compared.jsonl", self._compared_key(now, earlier), comparison.lines)

    def _path(self, task: Task) -> Path:
        return self._folder / task.path.with_suffix(".jsonl").name

    def _key(self, answers: str) -> str:
        facts = json.dumps({"answers": answers, "judge": self._settings}, sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    def _compared_key(self, now: Sequence[Unit], earlier: Mapping[str, Sequence[Unit]]) -> str:
        digests = [unit.digest for units in (now, *earlier.values()) for unit in units]
        return self._key("/".join(digests))

    def _lines(self, path: Path, key: str) -> list[dict[str, Any]] | None:
        if not path.is_file():
            return None
        try:
            first, *lines = (json.loads(line) for line in path.read_bytes().split(b"\n") if line)
            known = first["key"] == key
        except (ValueError, LookupError, TypeError) as error:
            log.warning("%s is damaged (%s); it is judged again", path, error)
            return None
        if not known:
            log.warning("%s is of other answers or of another judge; it is judged again", path)
            return None
        return lines

    def _commit(self, path: Path, key: str, lines: Sequence[Mapping[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = [{"key": key}, *lines]
        commit(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in whole).encode())
        self._observe(f"committed {path.name}")


def _judged(line: Mapping[str, Any]) -> Judged:
    scores = line["scores"]
    return Judged(
        scores=None if scores is None else tuple(scores),
        best=line["best"],
        worst=line["worst"],
        comparisons=tuple((a, b, winner) for a, b, winner in line["comparisons"]),
        problem=line["problem"],
        tally=Tally(**line["tally"]),
    )

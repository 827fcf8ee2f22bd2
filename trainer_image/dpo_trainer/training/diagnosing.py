"""The rules' way into the training: rank 0 looks at the run's record, and every rank learns whether a finding ends the run."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo_operator.api.diagnosis import OF_PREPARE, Finding
from dpo_operator.api.exitcodes import ExitCode
from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.diagnosis.history import Diagnosis
from dpo_trainer.diagnosis.judge import diagnose
from dpo_trainer.diagnosis.record import RunRecord, thinned
from dpo_trainer.distributed.ranks import Ranks
from dpo_trainer.runtime.errors import TrainerError, first_line
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.metrics_file import Line, parse_lines

# Newest lines of samples.jsonl that are kept: more than the most prompts of an evaluation.
_SAMPLES = 512


class Diagnosing:
    """Looks at the files of a run on rank 0, so that what it states can be stated again from them. diagnosis.json is continued."""

    def __init__(
        self,
        spec: DPOJobSpec,
        work: WorkDir,
        ranks: Ranks,
        telemetry: Telemetry,
        total_steps: int,
        *,
        resumed_step: int,
        moved: bool = False,
    ) -> None:
        """Read what earlier attempts stated, up to the step that the run resumes from. Telemetry has begun. moved: see RunRecord."""
        self._moved = moved
        self._spec, self._work, self._ranks, self._telemetry = spec, work, ranks, telemetry
        self._total_steps = total_steps
        self._diagnosis = Diagnosis()
        self._metrics, self._samples = _Tail(work.metrics), _Tail(work.samples)
        if ranks.rank == 0:
            self._guarded(lambda: self._read(resumed_step))

    def rewind(self, step: int) -> None:
        """The run rolled back to a step: what was stated later is no longer so."""
        self._diagnosis = self._diagnosis.cut(step)
        self._metrics, self._samples = _Tail(self._work.metrics), _Tail(self._work.samples)

    def look(self, step: int) -> Finding | None:
        """State what holds after a step; the finding that ends the run by diagnosis.stopOn, the same on every rank. Collective.

        A failure here never ends a run: it is a warning.
        """
        if not self._spec.diagnosis.enabled:
            return None
        ends: dict[str, Any] | None = None
        if self._ranks.rank == 0:
            self._guarded(lambda: self._state(step))
            found = next((f for f in self._diagnosis.findings if self._stops(f)), None)
            ends = None if found is None else found.model_dump(mode="json")
        if not self._spec.diagnosis.stop_on:
            return None
        agreed = self._ranks.gather(ends)[0]
        return None if agreed is None else Finding.model_validate(agreed)

    def _stops(self, finding: Finding) -> bool:
        return finding.severity == "Unhealthy" and finding.code in self._spec.diagnosis.stop_on

    def _read(self, resumed_step: int) -> None:
        self._diagnosis = Diagnosis.read(self._work).cut(resumed_step)
        self._tell(())

    def _state(self, step: int) -> None:
        path, before = self._work.data_report, self._diagnosis
        self._metrics.read()
        self._samples.read()
        self._metrics.lines = thinned(self._metrics.lines)
        del self._samples.lines[:-_SAMPLES]
        record = RunRecord.of(
            self._spec,
            self._metrics.lines,
            total_steps=self._total_steps,
            # After a restart the file has later lines until the first new ones are written.
            samples=[line for line in self._samples.lines if line["step"] <= step],
            # The report is of data.train, and a round trains on pairs of its own.
            data=json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not self._work.number else {},
            moved=self._moved,
        )
        # A warning that was given before keeps its first words.
        warnings = {finding.key: finding for finding in (*self._telemetry.warnings, *before.warnings)}
        self._diagnosis, new = before.at(step, diagnose(record, warnings.values()))
        self._tell(new)
        self._diagnosis.write(self._work)

    def _tell(self, new: Sequence[Finding]) -> None:
        # Prepare has reported what it found.
        holding = [finding for finding in self._diagnosis.findings if finding.code not in OF_PREPARE]
        self._telemetry.diagnosed(self._diagnosis.step, holding, new)

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self._telemetry.warning("NoDiagnosis", f"{type(error).__name__}: {first_line(error)}")


class _Tail:
    """A growing JSON Lines file, of which only what is new is read; all of it again once it was replaced, as by a shorter one."""

    def __init__(self, path: Path) -> None:
        self.lines: list[Line] = []
        self._path, self._at, self._inode = path, 0, 0

    def read(self) -> None:
        """Add the lines that were finished since. No file means no lines. Raises OSError."""
        try:
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._inode or found.st_size < self._at:
                    self.lines, self._at, self._inode = [], 0, found.st_ino
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new.rfind(b"\n") + 1
        self._at += whole
        self.lines += parse_lines(new[:whole].decode(errors="replace"))


def stopped(finding: Finding) -> TrainerError:
    """The end of a run by diagnosis.stopOn."""
    return TrainerError(ExitCode.STOPPED_BY_DIAGNOSIS, finding.sentence)

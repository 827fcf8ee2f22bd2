"""Progress of a phase: where it is, how fast, and how long it still takes."""

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_operator.api.diagnosis import MAX_FINDINGS, Finding, worst_first
from dpo_operator.api.reports import CheckpointRecord, CheckpointRef, Metrics, Progress, SlowestRank
from dpo_trainer.telemetry.margins import margin_se
from dpo_trainer.telemetry.volume import CheckpointFolder

# Steps over which speed and time left are averaged: long enough to hold a checkpoint or an evaluation now and then.
_WINDOW = 50
# A save that is quicker than this is not worth a warning, however often there is one.
_SLOW_SAVE_SECONDS = 5.0


class ProgressTracker:
    """Keeps a Progress up to date. Methods may be called from any thread."""

    def __init__(self, progress: Progress, checkpoints: CheckpointFolder) -> None:
        """checkpoints: gives the records of checkpoints that progress reports."""
        self._progress, self._checkpoints = progress, checkpoints
        self._lock = threading.Lock()
        # Times at which steps ended, and the pairs of each.
        self._marks: deque[tuple[float, int]] = deque(maxlen=_WINDOW + 1)

    @property
    def progress(self) -> Progress:
        """A copy of the progress so far."""
        with self._lock:
            return self._progress.model_copy()

    def update(self, **fields: Any) -> None:
        """Set fields of the progress."""
        with self._lock:
            self._progress = self._progress.model_copy(update=fields)

    def alive(self, activity: str | None) -> None:
        """Record a heartbeat. activity: the new one, None to keep it."""
        self.update(last_step_at=time.time(), **({} if activity is None else {"activity": activity}))

    def begin(
        self,
        *,
        max_steps: int,
        step: int,
        epoch: float,
        checkpoint: CheckpointRef | None,
        recorded: Sequence[CheckpointRecord],
    ) -> None:
        """Training starts after `step`. checkpoint: that it resumes from. recorded: see CheckpointFolder.records."""
        self.update(
            activity="training",
            max_steps=max_steps,
            step=step,
            epoch=epoch,
            resumed_from_step=step if checkpoint is not None else None,
            checkpoint=checkpoint,
            recorded=self._checkpoints.records(recorded, checkpoint),
            last_step_at=time.time(),
        )
        self._marks.append((time.monotonic(), 0))

    def step(
        self,
        step: int,
        *,
        epoch: float,
        pairs: int,
        metrics: Mapping[str, float] | None,
        slowest: SlowestRank | None,
        now: float,
    ) -> None:
        """An optimizer step is finished; see Telemetry.step. now: seconds since the epoch."""
        self._marks.append((time.monotonic(), pairs))
        elapsed = self._marks[-1][0] - self._marks[0][0]
        done = len(self._marks) - 1
        fields: dict[str, Any] = {"step": step, "epoch": epoch, "last_step_at": now, "activity": "training"}
        if elapsed > 0:
            fields["pairs_per_second"] = sum(count for _, count in list(self._marks)[1:]) / elapsed
            fields["eta_seconds"] = max(0, self.progress.max_steps - step) * elapsed / done
        if slowest is not None:
            fields["slowest"] = slowest
        if metrics is not None:
            fields["train"] = summary(metrics, self.progress.train)
            if "num_tokens" in metrics:
                fields["tokens"] = int(metrics["num_tokens"])
        self.update(**fields)

    def evaluation(self, metrics: Mapping[str, float]) -> None:
        """An evaluation is finished."""
        self.update(eval=summary(metrics, self.progress.eval), last_step_at=time.time(), activity="training")

    def diagnosed(self, step: int, findings: Sequence[Finding]) -> None:
        """The rules have looked at the figures of `step`: these findings hold now."""
        self.findings(findings)
        self.update(diagnosed_step=step)

    def findings(self, findings: Sequence[Finding]) -> None:
        """These findings hold now."""
        worst, more = worst_first(findings)[:MAX_FINDINGS], max(0, len(findings) - MAX_FINDINGS)
        self.update(findings=tuple(worst), findings_left_out=more)

    def checkpoint(self, ref: CheckpointRef) -> None:
        """A checkpoint was committed."""
        self.update(checkpoint=ref, recorded=self._checkpoints.records(self.progress.recorded, ref))

    def rewind(self, step: int, epoch: float) -> None:
        """The run rolled back to `step`."""
        self.update(step=step, epoch=epoch, last_step_at=time.time(), activity="training")
        self._marks.clear()
        self._marks.append((time.monotonic(), 0))

    def ended(self) -> int:
        """Training ended, possibly early: max_steps becomes the finished steps, which are returned."""
        finished = self.progress.step
        self.update(max_steps=finished, eta_seconds=None)
        return finished


class SaveTimes:
    """How long saves take, and how long training waits for them."""

    def __init__(self) -> None:
        self._began = self._saved_at = time.monotonic()
        self._blocked = 0.0
        self._warned = False

    def begin(self) -> None:
        """Training starts now."""
        self._began = self._saved_at = time.monotonic()

    def blocked_share(self, seconds: float, now: float) -> float:
        """Share of the training time in which the loop waited for saves. seconds: that it waited until `now`, monotonic."""
        self._blocked += seconds
        return self._blocked / max(now - self._began, 1e-9)

    def slow_save(self, seconds: float) -> str:
        """A warning, once, if a save took longer than the gap before it; else empty."""
        now = time.monotonic()
        between, self._saved_at = now - seconds - self._saved_at, now
        if self._warned or seconds <= max(between, _SLOW_SAVE_SECONDS):
            return ""
        self._warned = True
        return (
            f"a save took {seconds:.0f} s, {max(0.0, between):.0f} s after the one before. Raise checkpoint.everySteps, or use a "
            "faster volume."
        )


def summary(metrics: Mapping[str, float], earlier: Metrics) -> Metrics:
    """The metrics that a status reports; one that is missing or not finite keeps its last finite value."""

    def value(key: str, before: float | None) -> float | None:
        new = metrics.get(key)
        return new if new is not None and math.isfinite(new) else before

    return Metrics(
        loss=value("loss", earlier.loss),
        reward_margin=value("rewards/margins", earlier.reward_margin),
        reward_margin_se=margin_se(metrics),
        reward_accuracy=value("rewards/accuracies", earlier.reward_accuracy),
        reward_chosen=value("rewards/chosen", earlier.reward_chosen),
        reward_rejected=value("rewards/rejected", earlier.reward_rejected),
    )

"""Trainer reports to status fields: numbers are formatted as text, and small changes are rate-limited."""

from datetime import UTC, datetime, timedelta

from dpo_operator.api.diagnosis import accuracy_text
from dpo_operator.api.quantity import duration
from dpo_operator.api.reports import CheckpointRef, DatasetReport, Metrics, Progress, Termination
from dpo_operator.api.status import DatasetStatus, DPOJobStatus, FinalMetrics, ProgressStatus
from dpo_operator.api.statusparts.rounds import UnitsStatus
from dpo_operator.api.statusparts.stored import CheckpointStatus, ExportStatus, PushStatus
from dpo_operator.planning.transitions import changed

# Shortest time between two writes of progress alone.
WRITE_INTERVAL = timedelta(seconds=5)
MAX_DROP_REASONS = 32
_FIELDS = ProgressStatus.model_fields.keys()


def last_step(status: DPOJobStatus) -> int:
    """Last step that the current attempt reported; 0 before its first report."""
    return status.progress.step if status.progress and status.progress.attempt == status.attempt else 0


def number(value: float | None) -> str | None:
    """Four decimals, or scientific notation for very small and large values."""
    if value is None:
        return None
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"


def progress_status(read: Progress, now: datetime) -> ProgressStatus:
    """A progress report as ProgressStatus."""
    train, evaluation = read.train, read.eval
    return ProgressStatus(
        attempt=read.attempt,
        activity=read.activity[:128] or None,
        step=read.step,
        max_steps=read.max_steps,
        percent=f"{100 * read.step // read.max_steps}%" if read.max_steps > 0 else None,
        epoch=f"{read.epoch:.2f}",
        eta=duration(read.eta_seconds) if read.eta_seconds is not None else None,
        eta_seconds=round(read.eta_seconds) if read.eta_seconds is not None else None,
        pairs_per_second=number(read.pairs_per_second),
        tokens=read.tokens,
        **_metrics(train),
        accuracy=_accuracy(train),
        **{f"eval_{name}": value for name, value in _metrics(evaluation).items() if f"eval_{name}" in _FIELDS},
        eval_accuracy=_accuracy(evaluation),
        resumed_from_step=read.resumed_from_step,
        units=None if read.units is None else UnitsStatus(**read.units.model_dump()),
        updated_time=now,
    )


def _accuracy(metrics: Metrics) -> str | None:
    return accuracy_text(metrics.reward_accuracy, metrics.reward_margin, metrics.reward_margin_se)


def _metrics(metrics: Metrics) -> dict[str, str | None]:
    return {name: number(value) for name, value in metrics.model_dump().items()}


def checkpoint_status(ref: CheckpointRef) -> CheckpointStatus:
    """A CheckpointRef as CheckpointStatus."""
    return CheckpointStatus(
        step=ref.step,
        path=ref.path[:1024],
        digest=ref.digest[:128],
        attempt=ref.attempt,
        time=datetime.fromtimestamp(ref.time, UTC).replace(microsecond=0),
    )


def is_current(report: Progress | Termination, status: DPOJobStatus) -> bool:
    """Whether a report is of the current attempt."""
    return (report.phase, report.attempt) == (status.phase, status.attempt)


def with_reading(status: DPOJobStatus, read: Progress | None, now: datetime, *, at_once: bool = False) -> DPOJobStatus:
    """The status with a report of the current attempt.

    Updates of numbers alone are written at most every WRITE_INTERVAL. A checkpoint, a new activity and at_once don't wait.
    """
    if read is None or not is_current(read, status):
        return status
    new, old = progress_status(read, now), status.progress
    if status.phase in ("generate", "judge", "export") and old is not None:
        # Keep the numbers of the training before, and after completion.
        new = old.model_copy(
            update={
                "attempt": new.attempt,
                "activity": new.activity,
                "units": new.units,
                "eta": None,
                "eta_seconds": None,
                "updated_time": now,
            }
        )
    checkpoint = checkpoint_status(read.checkpoint) if read.checkpoint else status.checkpoint
    # A report of an older attempt must not replace a newer checkpoint.
    if status.checkpoint and checkpoint and checkpoint.attempt < status.checkpoint.attempt:
        checkpoint = status.checkpoint
    is_significant = (
        at_once
        or old is None
        or (old.attempt, old.activity) != (new.attempt, new.activity)
        or checkpoint != status.checkpoint
        or (new.step == new.max_steps and new.step != old.step)
    )
    moved = old is not None and _shown(old) != _shown(new)
    due = old is None or old.updated_time is None or abs(now - old.updated_time) >= WRITE_INTERVAL
    if is_significant or (moved and due):
        return changed(status, progress=new, checkpoint=checkpoint)
    return status


def _shown(progress: ProgressStatus) -> dict[str, object]:
    """Fields whose change justifies a write; ETA and throughput do not."""
    return progress.model_dump(exclude={"updated_time", "eta", "eta_seconds", "pairs_per_second"})


def with_dataset(status: DPOJobStatus, report: DatasetReport | None) -> DPOJobStatus:
    """The status with prepare's dataset report."""
    if report is None:
        return status
    largest = sorted(report.dropped.items(), key=lambda item: (-item[1], item[0]))[:MAX_DROP_REASONS]
    dataset = DatasetStatus(
        train_pairs=report.train_pairs,
        eval_pairs=report.eval_pairs,
        dropped_rows=sum(report.dropped.values()),
        dropped={reason[:64]: count for reason, count in largest},
        truncated_pairs=report.truncated_pairs,
    )
    return changed(status, dataset=dataset)


def with_termination(status: DPOJobStatus, termination: Termination | None, now: datetime) -> DPOJobStatus:
    """The status with everything that a phase reported when it succeeded."""
    if termination is None or not is_current(termination, status):
        return with_final_metrics(status)
    status = with_dataset(with_reading(status, termination.progress, now, at_once=True), termination.dataset)
    if termination.export_path is not None:
        pushed = termination.pushed
        copy = None if pushed is None else PushStatus(**pushed.model_dump(exclude={"format"}) | {"to": pushed.to[:512]})
        status = changed(status, export=ExportStatus(path=termination.export_path[:1024], pushed=copy))
    return with_final_metrics(status, termination.message)


def with_final_metrics(status: DPOJobStatus, ending: str = "") -> DPOJobStatus:
    """The status with the newest values kept as the final ones, when training has just ended.

    ending: the trainer's final message.
    """
    if status.phase != "train" or status.progress is None:
        return status
    ending = ending or f"Training finished after {status.progress.step} steps."
    return changed(status, final_metrics=final_metrics(status.progress, ending))


def final_metrics(progress: ProgressStatus, ending: str = "") -> FinalMetrics:
    """The newest values as the final ones. ending: see with_final_metrics."""
    shared = set(FinalMetrics.model_fields) & set(ProgressStatus.model_fields)
    return FinalMetrics(**progress.model_dump(include=shared), ending=ending[:512])

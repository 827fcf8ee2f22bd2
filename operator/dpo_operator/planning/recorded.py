"""Checkpoints reported by the pods. The next attempt may resume only from these digests (see `requireRecordedDigest` for the default).

Tenants can write to the volume but not to the status, so a recorded digest reveals a checkpoint that was tampered with.
"""

from collections.abc import Iterable, Sequence

from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord, Progress, RecordedCheckpoints, ResumeReport
from dpo_operator.api.status import DPOJobStatus
from dpo_operator.api.statusparts.stored import ResumedStatus
from dpo_operator.planning import legs
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.progress import checkpoint_status
from dpo_operator.planning.transitions import changed


def with_reported_checkpoints(status: DPOJobStatus, seen: Observed) -> DPOJobStatus:
    """Status with the checkpoints that running pods (/status) and ended pods (termination message) report.

    Termination messages count for every outcome and for past attempts: a checkpoint that is committed on SIGTERM is reported
    only there.
    """
    for report in _terminations(seen):
        status = _with_newer(status, report)
    live = seen.heartbeat.progress
    if live is not None and (live.phase, live.attempt) == ("train", status.attempts.train):
        status = _recording(status, merge(status.recorded_checkpoints, live))
    return status


def with_first(status: DPOJobStatus, found: ResumeReport | None) -> DPOJobStatus:
    """Status with the checkpoint of another job that prepare put on the volume; it is recorded once, before any training."""
    if found is None or status.resumed_from is not None or status.attempts.train:
        return status
    first = found.checkpoint
    if first.attempt != 1:  # a forged one would outdate the job's own
        return status
    record = CheckpointRecord(step=first.step, attempt=first.attempt, digest=first.digest)
    resumed = ResumedStatus(source=found.source[:1024], step=first.step, digest=found.digest)
    status = changed(status, resumed_from=resumed, checkpoint=checkpoint_status(first))
    return _recording(status, [record])


def for_current_attempt(status: DPOJobStatus) -> RecordedCheckpoints | None:
    """Recorded checkpoints passed to the pods of the current attempt; None for those that read no checkpoint, such as a prepare before training.

    A prepare after training has begun fetches one of them from the mirror.
    """
    if status.phase in (None, "generate", "judge") or (status.phase == "prepare" and not status.attempts.train):
        return None
    if (exported := legs.chosen(status)) is not None and status.phase == "export":
        # An export of a leg uses what that leg reported, and nothing later.
        mine = tuple(sorted(exported.checkpoints, key=lambda record: record.age))
        return RecordedCheckpoints(last_attempt=mine[-1].attempt if mine else status.attempts.train, checkpoints=mine)
    current = 1 if status.phase == "train" else 0
    return RecordedCheckpoints(last_attempt=max(0, status.attempts.train - current), checkpoints=_own(status))


def _own(status: DPOJobStatus) -> tuple[CheckpointRecord, ...]:
    """Those that are known, without those of earlier legs."""
    others = legs.of_earlier(status)
    return tuple(record for record in known(status) if record.age not in others)


def of_the_last_round(status: DPOJobStatus) -> DPOJobStatus:
    """A round or leg is over. A round's last checkpoint is what the next one starts from; a leg's tells new reports from old ones."""
    return _recording(status, sorted(status.recorded_checkpoints, key=lambda record: record.age)[-1:])


def known(status: DPOJobStatus) -> tuple[CheckpointRecord, ...]:
    """Checkpoints on the volume and the newest in the mirror, which the volume may no longer have, oldest first."""
    records = {record.step: record for record in status.recorded_checkpoints}
    if status.mirror is not None and (copied := status.mirror.checkpoint) is not None:
        mirrored = CheckpointRecord(step=copied.step, attempt=copied.attempt, digest=copied.digest)
        records.setdefault(mirrored.step, mirrored)
    return tuple(sorted(records.values(), key=lambda record: record.age))


def merge(known: Sequence[CheckpointRecord], report: Progress) -> list[CheckpointRecord]:
    """Merge records with a report, oldest first; an older report changes nothing.

    Rank 0 reports every checkpoint on the volume, so records that it leaves out are dropped. Other ranks report only the
    newest.
    """
    reported = _reported(report)
    if not reported or (known and _newest(reported) < _newest(known)):
        return list(known)
    records = {record.step: record for record in (reported if report.recorded else [*known, *reported])}
    return sorted(records.values(), key=lambda record: record.age)[-MAX_RECORDED:]


def _newest(records: Sequence[CheckpointRecord]) -> tuple[int, int]:
    return max(record.age for record in records)


def _with_newer(status: DPOJobStatus, report: Progress) -> DPOJobStatus:
    known = status.recorded_checkpoints
    reported = _reported(report)
    if not reported or (known and _newest(reported) <= _newest(known)):
        return status
    status = _recording(status, merge(known, report))
    ref, before = report.checkpoint, status.checkpoint
    if ref is not None and (before is None or (ref.attempt, ref.step) > (before.attempt, before.step)):
        status = changed(status, checkpoint=checkpoint_status(ref))
    return status


def _terminations(seen: Observed) -> Iterable[Progress]:
    """Last progress of each ended training pod."""
    for pod in seen.pods:
        termination = pod.exit.termination if pod.exit else None
        if termination is None or (progress := termination.progress) is None:
            continue
        if (progress.phase, progress.attempt) == (pod.phase, pod.attempt) and pod.phase == "train":
            yield progress


def _reported(report: Progress) -> list[CheckpointRecord]:
    """Checkpoints of a report. A record of a later attempt than the reporter's is dropped: a forged one would outdate all real ones."""
    records = list(report.recorded)
    if not records and (ref := report.checkpoint) is not None:
        records = [CheckpointRecord(step=ref.step, attempt=ref.attempt, digest=ref.digest)]
    return [record for record in records if record.attempt <= report.attempt]


def _recording(status: DPOJobStatus, records: list[CheckpointRecord]) -> DPOJobStatus:
    return status if records == status.recorded_checkpoints else changed(status, recorded_checkpoints=records)

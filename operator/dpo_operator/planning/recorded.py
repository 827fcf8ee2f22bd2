"""Which checkpoints the operator was told of. Their digests go to the next attempt, which goes on from no others.

The volume is the tenant's; the status is not. Whoever changes a checkpoint there can't change what is kept here.
"""

from collections.abc import Iterable, Sequence

from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord, Progress, RecordedCheckpoints
from dpo_operator.api.status import DPOJobStatus, RecordedCheckpoint
from dpo_operator.planning.observed import Observed
from dpo_operator.planning.progress import checkpoint_status
from dpo_operator.planning.transitions import changed


def with_told(status: DPOJobStatus, seen: Observed) -> DPOJobStatus:
    """The status with the checkpoints that the pods tell of: the running ones now, the ended ones in their last words.

    Last words count whatever ended a pod, and also when its attempt is over: a checkpoint that was committed after the
    last reading, such as on SIGTERM, is told of nowhere else.
    """
    for words in _last_words(seen):
        status = _with_newer(status, words)
    live = seen.heartbeat.progress
    if live is not None and (live.phase, live.attempt) == ("train", status.attempts.train):
        status = _recording(status, merge(_records(status), live))
    return status


def handed_back(status: DPOJobStatus) -> RecordedCheckpoints | None:
    """What the pods of the current attempt get; None for prepare, which reads no checkpoint."""
    if status.phase not in ("train", "export"):
        return None
    current = 1 if status.phase == "train" else 0
    return RecordedCheckpoints(
        last_attempt=max(0, status.attempts.train - current), checkpoints=tuple(_records(status))
    )


def merge(known: Sequence[CheckpointRecord], told: Progress) -> list[CheckpointRecord]:
    """Records with those of a reading, oldest first; as they were when the reading is older.

    Rank 0 tells of all that are on the volume, and those that are gone are forgotten; other ranks know the newest.
    """
    news = _news(told)
    if not news or (known and max(r.age for r in news) < max(r.age for r in known)):
        return list(known)
    records = {record.step: record for record in (news if told.recorded else [*known, *news])}
    return sorted(records.values(), key=lambda record: record.age)[-MAX_RECORDED:]


def _with_newer(status: DPOJobStatus, told: Progress) -> DPOJobStatus:
    known = _records(status)
    news = _news(told)
    if not news or (known and max(r.age for r in news) <= max(r.age for r in known)):
        return status
    status = _recording(status, merge(known, told))
    ref, before = told.checkpoint, status.checkpoint
    if ref is not None and (before is None or (ref.attempt, ref.step) > (before.attempt, before.step)):
        status = changed(status, checkpoint=checkpoint_status(ref))
    return status


def _last_words(seen: Observed) -> Iterable[Progress]:
    for pod in seen.pods:
        said = pod.exit.termination if pod.exit else None
        if said is None or said.progress is None:
            continue
        if (said.progress.phase, said.progress.attempt) == (pod.phase, pod.attempt) and pod.phase == "train":
            yield said.progress


def _news(told: Progress) -> list[CheckpointRecord]:
    """What a reading tells of. Nobody can know a checkpoint of a later attempt; it would make all honest ones look old."""
    news = list(told.recorded)
    if not news and (ref := told.checkpoint) is not None:
        news = [CheckpointRecord(step=ref.step, attempt=ref.attempt, digest=ref.digest)]
    return [record for record in news if record.attempt <= told.attempt]


def _records(status: DPOJobStatus) -> list[CheckpointRecord]:
    return [CheckpointRecord(step=r.step, attempt=r.attempt, digest=r.digest) for r in status.recorded_checkpoints]


def _recording(status: DPOJobStatus, records: Sequence[CheckpointRecord]) -> DPOJobStatus:
    kept = [RecordedCheckpoint(step=r.step, attempt=r.attempt, digest=r.digest) for r in records]
    return status if kept == status.recorded_checkpoints else changed(status, recorded_checkpoints=kept)

"""A job's checkpoint folder, as telemetry reports it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpo_operator.api.reports import MAX_RECORDED, CheckpointRecord, CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.trust import remember


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of committed checkpoints. root: the folder, which may not exist yet.

    kept: records of checkpoints elsewhere that the training stands on: of the one that a round starts from.
    """

    root: Path
    kept: list[CheckpointRecord] = field(default_factory=list)

    def keep(self, record: CheckpointRecord) -> None:
        """Report a checkpoint that lies elsewhere, too."""
        if record not in self.kept:
            self.kept.append(record)

    def newest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest checkpoint. Raises OSError."""
        return next(iter(layout.committed(self.root)), None)

    def records(self, before: Sequence[CheckpointRecord], newest: CheckpointRef | None) -> list[CheckpointRecord]:
        """Records of the checkpoints that are still there, oldest first.

        before: the records so far. newest: the checkpoint that was committed last, None without one.
        """
        try:
            on_volume = {step for step, _ in layout.committed(self.root)}
        except OSError:
            # Without a list of the folder no record is dropped.
            on_volume = {record.step for record in before}
        own = [record for record in before if record not in self.kept]
        return [*self.kept, *remember(own, newest, on_volume)[len(self.kept) - MAX_RECORDED :]]

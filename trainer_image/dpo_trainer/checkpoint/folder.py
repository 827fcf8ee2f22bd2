"""A job's checkpoint folder, as telemetry reports it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_operator.api.reports import CheckpointRecord, CheckpointRef
from dpo_trainer.checkpoint import layout
from dpo_trainer.checkpoint.trust import remember


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of committed checkpoints. root: the folder, which may not exist yet."""

    root: Path

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
        return remember(before, newest, on_volume)

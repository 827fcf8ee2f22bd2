"""What an output of telemetry implements. To add one: a file here, and a line in records.OUTPUTS."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.workdir import WorkDir


@dataclass(frozen=True)
class Record:
    """Metrics of a logged step, or of an evaluation after it.

    values: epoch, and metrics with TRL's keys and no prefix; NaN and infinity are possible. time: seconds since the epoch.
    """

    step: int
    split: Literal["train", "eval"]
    values: Mapping[str, float]
    time: float

    def curves(self) -> dict[str, float]:
        """Values by the names of TRL's curves: train/loss, eval/loss."""
        return {f"{self.split}/{key}": value for key, value in self.values.items()}


@dataclass(frozen=True)
class Start:
    """What an output is made for. job: None without a job, as in some tests. resumed_step: later records are void."""

    work: WorkDir
    job: DPOJob | None
    resumed_step: int


class Output(Protocol):
    """Keeps records. Only rank 0 makes outputs. A failure to write is logged and does not end the run."""

    def write(self, record: Record) -> None:
        """Add a record."""
        ...

    def sync(self) -> None:
        """Make what was written safe against a power cut, where that is the output's business."""
        ...

    def rewind(self, step: int) -> None:
        """The run rolled back to `step`: later records are void, and their steps come again. Raises OSError."""
        ...

    def close(self, exit_code: int) -> None:
        """End the output; closing again does nothing. exit_code: of the phase."""
        ...

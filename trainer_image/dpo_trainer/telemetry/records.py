"""The outputs that keep metrics: metrics.jsonl, TensorBoard, Weights & Biases."""

from collections.abc import Callable, Sequence

from dpo_trainer.telemetry import metrics_file, tensorboard, wandb
from dpo_trainer.telemetry.output import Output, Record, Start

# In the order in which a record is written. Each makes its output, or returns None when the job does not want it.
OUTPUTS: tuple[Callable[[Start], Output | None], ...] = (
    metrics_file.output,
    tensorboard.output,
    wandb.output,
)


class Records:
    """Passes records on to every output. Without outputs, as on ranks other than 0, nothing is kept."""

    def __init__(self, outputs: Sequence[Output] = ()) -> None:
        self._outputs = outputs

    @classmethod
    def open(cls, start: Start) -> "Records":
        """Open every output that the job wants. Raises OSError when the volume can't be written to."""
        return cls([made for make in OUTPUTS if (made := make(start)) is not None])

    def write(self, record: Record) -> None:
        """Add a record to every output."""
        for output in self._outputs:
            output.write(record)

    def sync(self) -> None:
        """Make what was written safe against a power cut."""
        for output in self._outputs:
            output.sync()

    def rewind(self, step: int) -> None:
        """Drop the records after `step`. Raises OSError."""
        for output in self._outputs:
            output.rewind(step)

    def close(self, exit_code: int) -> None:
        """Close every output; closing again does nothing."""
        for output in self._outputs:
            output.close(exit_code)

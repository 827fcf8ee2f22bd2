"""Single sink for progress, metrics and warnings; fans out to console, files, trackers and /metrics."""

from dpo_trainer.telemetry.telemetry import Telemetry

__all__ = ["Telemetry"]

"""Where a phase reports progress, metrics and warnings: to the console, files, trackers and /metrics."""

from dpo_trainer.telemetry.telemetry import Telemetry

__all__ = ["Telemetry"]

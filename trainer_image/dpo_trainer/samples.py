"""Answers of the policy to a few fixed prompts at each evaluation, beside those of the reference."""

from dpo_operator.api.types import DPOJobSpec
from dpo_trainer.dataset import PairDataset
from dpo_trainer.engine import Engine
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.workdir import WorkDir


class Samples:
    """Greedy answers to the first prompts of the evaluation pairs, written to samples.jsonl by rank 0."""

    def __init__(self, engine: Engine, work: WorkDir, spec: DPOJobSpec, data: PairDataset | None) -> None:
        self._count = 0 if data is None else min(spec.evaluation.samples, len(data))

    def take(self, step: int, telemetry: Telemetry) -> dict[str, float]:
        """Generate and write; step 0 is the reference. Returns metrics of the answers. Collective."""
        return {}

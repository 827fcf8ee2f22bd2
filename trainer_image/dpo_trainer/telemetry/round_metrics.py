"""Prometheus metrics of the phases of rounds that make pairs."""

import math
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_TOKEN_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class RoundMetrics:
    """What this process answers and judges."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.round = Gauge(
            "dpo_round", "Round that this process works on; NaN in jobs without rounds.", registry=registry
        )
        self.round.set(math.nan)
        self._prompts = Counter(
            "dpo_generate_prompts", "Prompts that this process of this attempt answered.", registry=registry
        )
        self._tokens = Histogram(
            "dpo_generate_answer_tokens",
            "Tokens of the answers that this process of this attempt generated, with the one that ends them.",
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self._judged = Counter("dpo_judge_prompts", "Prompts whose answers this attempt judged.", registry=registry)

    def generated(self, prompts: int, tokens: Sequence[int]) -> None:
        """Prompts were answered. tokens: of each answer."""
        self._prompts.inc(prompts)
        for count in tokens:
            self._tokens.observe(count)

    def judged(self, prompts: int) -> None:
        """Answers to prompts were judged."""
        self._judged.inc(prompts)

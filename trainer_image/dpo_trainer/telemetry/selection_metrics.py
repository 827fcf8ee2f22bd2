"""Prometheus metrics of training.selection."""

import math

from prometheus_client import CollectorRegistry, Gauge


class SelectionMetrics:
    """The newest ranking of the training pairs; NaN before the first, and without a selection."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            made = Gauge(f"dpo_train_selection_{name}", text, registry=registry)
            made.set(math.nan)
            return made

        self._ranked = gauge("ranked_pairs", "Pairs that training.selection ranked last.")
        self._kept = gauge("kept_pairs", "Of these, pairs that are trained on.")
        self._wrong_sign = gauge(
            "wrong_sign_ratio", "Share of the ranked pairs with a gap below 0: the rejected answer is ahead."
        )
        self._tokens = gauge("tokens", "Tokens that went through the model to rank them.")

    def set(self, *, ranked: int, kept: int, wrong_sign: float, tokens: int) -> None:
        """The pairs were ranked, or an earlier ranking was read."""
        self._ranked.set(ranked)
        self._kept.set(kept)
        self._wrong_sign.set(wrong_sign)
        self._tokens.set(tokens)

"""Prometheus metrics of the trainer.

The names mirror TRL's keys. There are no namespace, pod or job labels: the PodMonitor's relabelling adds them. Rank 0
exports what is reduced over all ranks; every pod exports its own times and memory. A gauge without a value yet is NaN,
because 0 would be a lie that an alert could believe; a value that is not finite leaves the last finite one in place and
is counted.
"""

import math
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

# Parts of a training step's time. A phase that is not listed can't be recorded, so that labels stay bounded.
PHASES = ("data", "ref", "policy", "optimizer", "eval", "checkpoint")
STEP_BUCKETS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
CHECKPOINT_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)

# TRL's key, and the metric and its labels after the prefix dpo_train_ or dpo_eval_.
_VALUES: dict[str, tuple[str, str | None, str]] = {
    "loss": ("loss", None, "Loss, mean over pairs."),
    "rewards/chosen": ("reward", "chosen", "Implicit reward (beta times the log-ratio to the reference), mean, nats."),
    "rewards/rejected": ("reward", "rejected", ""),
    "rewards/margins": ("reward_margin", None, "Reward of chosen minus rejected, mean, nats."),
    "rewards/accuracies": ("reward_accuracy_ratio", None, "Share of pairs whose chosen answer has the larger reward."),
    "logps/chosen": ("logprob_nats", "chosen", "Log-probability of the answer under the policy, mean, nats."),
    "logps/rejected": ("logprob_nats", "rejected", ""),
}


class TrainerMetrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self, *, rank_zero: bool) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.step_seconds = Histogram(
            "dpo_train_step_seconds", "Time of an optimizer step.", buckets=STEP_BUCKETS, registry=self.registry
        )
        self._phase_seconds = Counter(
            "dpo_train_phase_seconds", "Time in each part of the loop.", ["phase"], registry=self.registry
        )
        for phase in PHASES:
            self._phase_seconds.labels(phase)
        self._gpu_memory = Gauge(
            "dpo_train_gpu_memory_peak_bytes",
            "Most GPU memory that tensors took since the start.",
            ["local_rank"],
            registry=self.registry,
        )
        self._algorithm = _Algorithm(self.registry) if rank_zero else None

    def phase(self, name: str, seconds: float) -> None:
        """Add time to a part of the loop."""
        if name not in PHASES:
            raise ValueError(f"phase {name!r}: expected one of {', '.join(PHASES)}")
        self._phase_seconds.labels(name).inc(seconds)

    def gpu_memory_peak(self, local_rank: int, peak: int) -> None:
        """Peak of allocated bytes on this process's GPU."""
        self._gpu_memory.labels(str(local_rank)).set(peak)

    @property
    def algorithm(self) -> "_Algorithm | None":
        """What rank 0 exports for all ranks; None on other ranks."""
        return self._algorithm


class _Algorithm:
    """Values that are the same on all ranks, and the checkpoints that all ranks write together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, labels: tuple[str, ...] = (), *, unset: bool = True) -> Gauge:
            made = Gauge(name, text, labels, registry=registry)
            if not labels and unset:
                made.set(math.nan)
            return made

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, registry=registry)

        self.info = gauge("dpo_train_info", "What is trained; always 1.", ("model", "loss_type", "peft", "zero_stage"))
        self.step = gauge("dpo_train_step", "Finished optimizer steps; falls when a run resumes.", unset=False)
        self.max_steps = gauge("dpo_train_max_steps", "Optimizer steps of the whole run.")
        self.epoch = gauge("dpo_train_epoch", "Passes over the training pairs.", unset=False)
        self.initial_margin = gauge(
            "dpo_train_initial_margin", "Reward margin before the first step; 0 when the policy is the reference."
        )
        self.grad_norm = gauge("dpo_train_grad_norm", "Global norm of the gradient before clipping.")
        self.learning_rate = gauge("dpo_train_learning_rate", "Learning rate of the newest step.")
        self.attempt = gauge("dpo_train_attempt", "Attempt of the operator that this process belongs to.")
        self.resumed_step = gauge("dpo_train_resumed_step", "Step of the checkpoint that this attempt went on from.")
        self.last_step = gauge("dpo_train_last_step_timestamp_seconds", "When the newest step ended.")
        self.pairs = counter("dpo_train_pairs", "Pairs trained on by this attempt.")
        self.tokens = counter("dpo_train_tokens", "Tokens of prompts and answers trained on by this attempt.")
        self.truncated = counter("dpo_train_truncated_pairs", "Pairs trained on that were cut to data.maxLength.")
        self.nonfinite = counter("dpo_train_nonfinite_steps", "Steps whose loss or gradient was NaN or infinite.")
        self.ck_step = gauge("dpo_checkpoint_last_step", "Steps in the newest committed checkpoint.", unset=False)
        self.ck_interval = gauge("dpo_checkpoint_interval_steps", "Steps between two checkpoints.")
        self.ck_time = gauge(
            "dpo_checkpoint_last_success_timestamp_seconds", "When the newest checkpoint was committed."
        )
        self.ck_failures = counter("dpo_checkpoint_failures", "Checkpoints that could not be committed.")
        self.ck_seconds = Histogram(
            "dpo_checkpoint_seconds", "Time of a committed checkpoint.", buckets=CHECKPOINT_BUCKETS, registry=registry
        )
        self._gauges: dict[str, dict[str, Gauge]] = {"train": {}, "eval": {}}
        for split, gauges in self._gauges.items():
            made: dict[str, Gauge] = {}
            for key, (name, response, text) in _VALUES.items():
                if name not in made:
                    labels = ("response",) if response else ()
                    made[name] = gauge(f"dpo_{split}_{name}", text, labels)
                gauges[key] = made[name].labels(response) if response else made[name]
                gauges[key].set(math.nan)

    def values(self, split: str, metrics: Mapping[str, float]) -> None:
        """Set the gauges of TRL keys without a prefix; keys without a gauge are passed over."""
        gauges = self._gauges[split]
        extra = {"grad_norm": self.grad_norm, "learning_rate": self.learning_rate} if split == "train" else {}
        for key, value in metrics.items():
            target = gauges.get(key) or extra.get(key)
            if target is not None and math.isfinite(value):
                target.set(value)

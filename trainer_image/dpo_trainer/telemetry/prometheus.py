"""Prometheus metrics of the trainer.

The names mirror TRL's keys. There are no namespace, pod or job labels: the PodMonitor's relabelling adds them. Rank 0
exports what is reduced over all ranks; every pod exports its own times and memory. A gauge without a value yet is NaN,
because 0 could trigger alerts; a value that is not finite leaves the last finite one in place and
is counted.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from dpo_operator.api.diagnosis import Finding
from dpo_trainer.telemetry.round_metrics import RoundMetrics
from dpo_trainer.telemetry.selection_metrics import SelectionMetrics

# Parts of a training step's time. A phase that is not listed can't be recorded, so that labels stay bounded.
PHASES = ("data", "ref", "selection", "policy", "optimizer", "eval", "checkpoint")
STEP_BUCKETS = (0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
CHECKPOINT_BUCKETS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)

# TRL's key -> the metric after the prefix dpo_train_ or dpo_eval_, its label and what it means.
_Values = dict[str, tuple[str, tuple[str, str] | None, str]]
_CHOSEN, _REJECTED = ("response", "chosen"), ("response", "rejected")
_BOTH: _Values = {
    "loss": ("loss", None, "Loss of the job's method, mean over pairs (over answers for kto), with all that is added to it."),
    "rewards/chosen": (
        "reward", _CHOSEN,
        "Beta times what the method compares: the log-ratio to the reference (for dpo, the implicit reward), or the log-probability "
        "per token for orpo and simpo; mean, nats.",
    ),
    "rewards/rejected": ("reward", _REJECTED, ""),
    "rewards/margins": ("reward_margin", None, "Reward of chosen minus rejected, mean, nats."),
    "rewards/accuracies": (
        "reward_accuracy_ratio", None,
        "Share of pairs whose chosen answer has the larger reward; of unpaired answers, those on their label's side of kto's reference "
        "point.",
    ),
    "logps/chosen": ("logprob_nats", _CHOSEN, "Log-probability of the answer under the policy, mean, nats."),
    "logps/rejected": ("logprob_nats", _REJECTED, ""),
    "logratio_per_token/chosen": (
        "ref_logratio_nats_per_token", _CHOSEN,
        "Log-ratio of policy to reference for each token of the answer, mean over answers: how far the policy has drifted. Not a KL "
        "divergence: the answers are the data's. None for methods without a reference.",
    ),
    "logratio_per_token/rejected": ("ref_logratio_nats_per_token", _REJECTED, ""),
    "response_tokens/chosen": ("response_tokens", _CHOSEN, "Tokens of the data's answers, with the one that ends them, mean."),
    "response_tokens/rejected": ("response_tokens", _REJECTED, ""),
    "margins_std": ("reward_margin_stddev", None, "Standard deviation of the reward margin over pairs, nats."),
    "token_accuracy/chosen": (
        "response_token_accuracy_ratio", _CHOSEN, "Share of a sample of the answers' tokens that are the policy's most likely one."
    ),
    "token_accuracy/rejected": ("response_token_accuracy_ratio", _REJECTED, ""),
    "entropy/chosen": (
        "response_entropy_nats", _CHOSEN, "Entropy of the policy's distribution at a sample of the answers' tokens, mean, nats."
    ),
    "entropy/rejected": ("response_entropy_nats", _REJECTED, ""),
    "logratio_abs_per_token": (
        "ref_logratio_abs_nats_per_token", None,
        "Absolute log-ratio of policy to reference for each token of the answer, mean over answers; 0 when nothing is learnt.",
    ),
    "margin_length_correlation": (
        "margin_length_correlation", None,
        "Pearson's correlation of the reward margin with how much longer the chosen answer is; near 1, length is what is learnt.",
    ),
    "nll_loss": ("nll_nats_per_token", None, "Negative log-likelihood of the chosen answer, for methods with that term, mean."),
    "kl": ("kl_nats", None, "Estimated KL divergence to the reference, from answers to other prompts; for kto."),
    "log_odds_ratio": ("log_odds_ratio", None, "Log-sigmoid of the log odds ratio of chosen to rejected, mean; for orpo."),
    "log_odds_chosen": ("log_odds_chosen", None, "Log odds ratio of chosen to rejected, mean; for orpo."),
}  # fmt: skip
_TRAIN: _Values = {
    "grad_norm": ("grad_norm", None, "Global norm of the gradient before clipping."),
    "learning_rate": ("learning_rate", None, "Learning rate of the newest step."),
    "entropy": (
        "entropy_nats", None, "Entropy of the policy's distribution at tokens of the data's answers, mean of a sample, nats."
    ),
    "mean_token_accuracy": (
        "token_accuracy_ratio", None, "Share of these tokens that are the policy's most likely one."
    ),
    "aux_loss": (
        "router_aux_loss", None,
        "Load-balancing loss of the routers, without its coefficient; experts per token when all experts get as many tokens. With training.routerAuxLoss.",
    ),
    "update_ratio": (
        "update_ratio", None, "Norm of an update over the norm of the trained weights; of the first step, every tenth logged one and those evaluated."
    ),
}  # fmt: skip
_GREEDY, _T1 = ("decoding", "greedy"), ("decoding", "t1")
# Key after samples/greedy/ or samples/t1/ -> the metric and what it means.
_OF_SAMPLES = {
    "tokens": ("sample_tokens", "Tokens of sampled answers, cut at evaluation.sampleTokens, mean; t1: at temperature 1."),
    "ended": ("sample_ended_ratio", "Share of sampled answers that ended before they were cut."),
    "repeated_4grams": ("sample_repeated_4grams_ratio", "Share of runs of four tokens that came before in the same sampled answer, mean."),
    "refusals": ("sample_refusals_ratio", "Share of sampled answers that begin with the usual words of an English refusal."),
    "top_opening": ("sample_top_opening_ratio", "Share of sampled answers that begin with the commonest four words."),
}  # fmt: skip
_SURPRISE = (
    "Median over answers of negative log-likelihood over entropy before the first step, of the first four tokens and of the rest; 1 is "
    "what the model would write itself."
)
_EVAL: _Values = {
    "generation_tokens/policy": (
        "generation_tokens", ("response", "policy"),
        "Tokens of greedy answers to the first evaluation.samples prompts, cut at evaluation.sampleTokens, mean; policy: now, "
        "reference: before the first step.",
    ),
    "generation_tokens/reference": ("generation_tokens", ("response", "reference"), ""),
    **{
        f"samples/{label[1]}/{key}": (name, label, text)
        for key, (name, text) in _OF_SAMPLES.items() for label in (_GREEDY, _T1)
    },
    "samples/t1/own_nll": (
        "sample_own_nll_nats_per_token", None,
        "Negative log-likelihood of answers at temperature 1 under the policy that wrote them: the entropy of what it writes.",
    ),
    "samples/t1/reference_nll": (
        "sample_ref_nll_nats_per_token", None, "The same under the policy before its first update; with a new adapter."
    ),
    "samples/t1/kl": (
        "sample_kl_nats", None,
        "KL divergence from the policy before its first update, estimated from answers at temperature 1, for each answer; with a new "
        "adapter.",
    ),
    **{
        f"surprise/{part}_{side}": ("surprise_ratio", ("tokens", f"{part}_{side}"), _SURPRISE)
        for part in ("first4", "rest") for side in ("chosen", "rejected")
    },
    "rewards/margins_se": ("reward_margin_stderr", None, "Standard error of the mean reward margin, by pair, nats."),
    "loss_se": ("loss_stderr", None, "Standard error of the mean loss, by pair."),
    "length_baseline_accuracy": (
        "length_baseline_accuracy_ratio", None,
        "Accuracy that a rule would have which always takes the longer answer, or always the shorter one, whichever is better.",
    ),
}  # fmt: skip
_SPLITS: dict[str, _Values] = {"train": _BOTH | _TRAIN, "eval": _BOTH | _EVAL}
_FINDING = (
    "1 for each finding about the run's learning that holds now; diagnosis.json in the work folder has their words."
)
# Figures of one source of a mixture: after the key come its name, such as mixture[0], and one of these.
_SOURCE_KEY = "source/"
_OF_SOURCES = {
    "accuracies": ("source_reward_accuracy_ratio", "Reward accuracy of the pairs of one source of data.mixture."),
    "margins": ("source_reward_margin", "Reward margin of the pairs of one source of data.mixture, mean, nats."),
}
# Accuracy of one bucket: the key goes on with its name, such as le_64.
_BUCKET_KEY = "rewards/accuracies/"


class TrainerMetrics:
    """The metrics of one process, in a registry of their own.

    shared, selection: what is the same on all ranks, exported by rank 0 alone. rounds: what each process does for itself in a round.
    """

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
        self.rounds = RoundMetrics(self.registry)
        # Other ranks keep these values in a registry that is not exported.
        of_rank_zero = self.registry if rank_zero else CollectorRegistry()
        self.shared = SharedMetrics(of_rank_zero)
        self.selection = SelectionMetrics(of_rank_zero)

    def phase(self, name: str, seconds: float) -> None:
        """Add time to a part of the loop."""
        if name not in PHASES:
            raise ValueError(f"phase {name!r}: expected one of {', '.join(PHASES)}")
        self._phase_seconds.labels(name).inc(seconds)

    def gpu_memory_peak(self, local_rank: int, peak: int) -> None:
        """Peak of allocated bytes on this process's GPU."""
        self._gpu_memory.labels(str(local_rank)).set(peak)


class SharedMetrics:
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
        self._attention = gauge(
            "dpo_train_attention_info",
            "How pairs go through the model: training.packing as it is used, and what computes the attention; always 1.",
            ("packing", "kernel"),
        )
        self.step = gauge("dpo_train_step", "Finished optimizer steps; falls when a run resumes.", unset=False)
        self.max_steps = gauge("dpo_train_max_steps", "Optimizer steps of the whole run.")
        self.epoch = gauge("dpo_train_epoch", "Passes over the training pairs.", unset=False)
        self.initial_margin = gauge(
            "dpo_train_initial_margin",
            "Reward margin before the first step; 0 when the policy is the reference, NaN for methods without one.",
        )
        self.initial_loss = gauge(
            "dpo_train_initial_loss",
            "Loss of the first pairs while the policy is the reference: ln 2 for dpo; NaN for methods without a reference.",
        )
        self.attempt = gauge("dpo_train_attempt", "Attempt of the operator that this process belongs to.")
        self.resumed_step = gauge("dpo_train_resumed_step", "Step of the checkpoint that this attempt went on from.")
        self.last_step = gauge(
            "dpo_train_last_step_timestamp_seconds", "When the newest step or smaller piece of work ended."
        )
        self.pairs = counter("dpo_train_pairs", "Pairs trained on by this attempt.")
        self.tokens = counter("dpo_train_tokens", "Tokens of prompts and answers trained on by this attempt.")
        self.utilization = gauge(
            "dpo_train_model_flops_utilization_ratio",
            "Model FLOPs of the newest step as a share of what all GPUs could do meanwhile; NaN on CPUs and unknown GPUs.",
        )
        self._slowest: int | None = None
        self._slowdown = gauge(
            "dpo_train_rank_slowdown_ratio",
            "How many times as long the slowest rank takes for the same work as the median of the others; that rank alone.",
            ("rank",),
        )
        self._findings = set[tuple[str, str]]()
        self._finding = gauge("dpo_finding", _FINDING, ("code", "severity"))
        self.truncated = counter("dpo_train_truncated_pairs", "Pairs trained on that were cut to data.maxLength.")
        self.nonfinite = counter("dpo_train_nonfinite_steps", "Steps whose loss or gradient was NaN or infinite.")
        self.skipped = counter("dpo_train_skipped_steps", "Steps left out by training.nonFinite.")
        self.rollbacks = counter("dpo_train_rollbacks", "Returns to the last checkpoint by training.nonFinite.")
        self.ck_step = gauge("dpo_checkpoint_last_step", "Steps in the newest committed checkpoint.", unset=False)
        self.ck_interval = gauge("dpo_checkpoint_interval_steps", "Steps between two checkpoints.")
        self.ck_time = gauge(
            "dpo_checkpoint_last_success_timestamp_seconds", "When the newest checkpoint was committed."
        )
        self.ck_failures = counter("dpo_checkpoint_failures", "Checkpoints that could not be committed.")
        self.ck_blocked = gauge(
            "dpo_checkpoint_blocked_ratio",
            "Share of this attempt's training time in which training waited for checkpoints.",
        )
        self.ck_seconds = Histogram(
            "dpo_checkpoint_seconds",
            "Time from the start of a save to its commit.",
            buckets=CHECKPOINT_BUCKETS,
            registry=registry,
        )
        self._make_gauges(gauge)

    def _make_gauges(self, gauge: Callable[..., Gauge]) -> None:
        """The gauges of TRL's keys. gauge: makes one."""
        self._gauges: dict[str, dict[str, Gauge]] = {}
        for split, values in _SPLITS.items():
            made: dict[str, Gauge] = {}
            gauges = self._gauges[split] = {}
            for key, (name, label, text) in values.items():
                if name not in made:
                    made[name] = gauge(f"dpo_{split}_{name}", text, (label[0],) if label else ())
                gauges[key] = made[name].labels(label[1]) if label else made[name]
                gauges[key].set(math.nan)
        self._by_source = {
            (split, key): gauge(f"dpo_{split}_{name}", text, ("source",))
            for split in _SPLITS
            for key, (name, text) in _OF_SOURCES.items()
        }
        self._by_length = gauge(
            "dpo_eval_reward_accuracy_by_length_ratio",
            "Reward accuracy of the pairs whose longer answer has so many tokens: le_64 is 64 at most, gt_1024 more than 1024.",
            ("bucket",),
        )

    def attention(self, packing: str, kernel: str) -> None:
        """What the model that is loaded now uses."""
        self._attention.clear()
        self._attention.labels(packing, kernel).set(1)

    def slowest(self, rank: int, ratio: float) -> None:
        """The slowest rank now."""
        if rank != self._slowest:
            self._slowdown.clear()
            self._slowest = rank
        self._slowdown.labels(str(rank)).set(ratio)

    def findings(self, findings: Iterable[Finding]) -> None:
        """The findings that hold now."""
        holding: set[tuple[str, str]] = {(finding.code, finding.severity) for finding in findings}
        for gone in self._findings - holding:
            self._finding.remove(*gone)
        for labels in holding:
            self._finding.labels(*labels).set(1)
        self._findings = holding

    def values(self, split: str, metrics: Mapping[str, float]) -> None:
        """Set the gauges of TRL keys without a prefix; keys without a gauge are passed over."""
        for key, value in metrics.items():
            target = self._gauges[split].get(key)
            if split == "eval" and key.startswith(_BUCKET_KEY):
                target = self._by_length.labels(key.removeprefix(_BUCKET_KEY))
            if key.startswith(_SOURCE_KEY):
                # A job has at most as many sources as its spec may list.
                name, _, what = key.removeprefix(_SOURCE_KEY).rpartition("/")
                by_source = self._by_source.get((split, what))
                target = by_source.labels(name) if by_source else None
            if target is not None and math.isfinite(value):
                target.set(value)

"""Whether a job fits, what to change when it does not, and which of the settings that fit is the fastest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dpo_operator.api.model import AdapterType
from dpo_operator.api.models.hardware import Device
from dpo_operator.api.models.shape import ModelShape
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.sizing import export, legs, memory, rounds, sampling, speed
from dpo_operator.sizing.activations import BYTES
from dpo_operator.sizing.work import Pairs, layout_of

# Larger micro-batches are not proposed: they save nothing more.
MAX_TOKENS = 131_072
# A setting must take less than this share of another one's time to be worth more memory.
MIN_SPEEDUP = 0.98
# Proposals must be predicted below this share of memory, because predictions are off by some percent.
TARGET_SHARE = 0.9
MAX_GPUS, GPUS_OF_A_NODE = 4096, 8


@dataclass(frozen=True)
class Option:
    """Other settings of the same job. changes: by path, as in spec."""

    changes: dict[str, Any]
    memory: memory.Memory
    time: speed.StepTime


@dataclass(frozen=True)
class Job:
    """A job to plan: spec, model, pairs and the device of each rank. limit: bytes that a rank may use, None: not known.

    reference: another reference model.
    """

    spec: DPOJobSpec
    shape: ModelShape
    pairs: Pairs
    device: Device
    node_link: float = speed.NODE_LINK
    reference: ModelShape | None = None

    @property
    def limit(self) -> float | None:
        """Bytes that one rank may use."""
        return self.device.memory

    def memory(self) -> memory.Memory:
        """Predicted memory of a rank."""
        return memory.estimate(self.shape, self.spec, self.pairs, self.reference)

    def time(self) -> speed.StepTime:
        """Predicted time of a step."""
        return speed.estimate(self.shape, self.spec, self.pairs, self.device, node_link=self.node_link)

    def steps(self) -> float | None:
        """Optimizer steps of the whole run; None where the number of pairs is not known."""
        training, count = self.spec.training, self.pairs.count
        if training.max_steps or count is None:
            return training.max_steps
        if training.selection is not None:
            return training.selection.steps(training.epochs, count, training.global_batch_size)
        return training.epochs * count / training.global_batch_size

    def ranking(self) -> float:
        """Predicted time of all rankings by training.selection, seconds; 0 where the number of pairs is not known."""
        training, count, steps = self.spec.training, self.pairs.count, self.steps()
        if training.selection is None or count is None or steps is None:
            return 0.0
        batch = training.global_batch_size
        first = training.selection.epoch_pairs(0, count, batch)
        passes = training.selection.passes(training.epochs if not training.max_steps else steps * batch / max(1, first))
        # The first one leaves out the pairs of the warm-up.
        ranked = passes * count - training.selection.warmup_pairs(count, batch) if passes else 0
        return ranked / batch * self.time().ranking

    def stored(self) -> export.Stored:
        """Predicted bytes of checkpoint and export, and of the export's process."""
        return export.estimate(self.shape, self.spec, self.pairs)

    def cost_of_rounds(self) -> rounds.RoundsCost | None:
        """What its rounds cost; None without rounds."""
        weights = BYTES[self.spec.training.precision] * self.shape.parameters
        return rounds.estimate(self.spec, self.stored(), self.pairs.count, weights)

    def cost_of_legs(self) -> legs.LegsCost | None:
        """What its sweep costs; None without one."""
        return legs.estimate(self.spec, self.stored())

    def sampling(self) -> sampling.Sampling:
        """Predicted time of the sample answers of one evaluation."""
        return sampling.estimate(
            self.shape, self.spec, self.pairs, self.device, self.memory(), node_link=self.node_link
        )

    def fits(self, share: float = 1.0) -> bool:
        """Whether the largest phase is within a share of the limit; true without one."""
        return self.limit is None or self.memory().peak <= share * self.limit

    def with_changes(self, changes: dict[str, Any]) -> "Job":
        """The job with other settings, by path."""
        spec = self.spec
        for path, value in changes.items():
            section, _, field = path.rpartition(".")
            if not section:
                spec = spec.model_copy(update={_SNAKE[field]: value})
                continue
            part = getattr(spec, section).model_copy(update={_SNAKE[field]: value})
            spec = spec.model_copy(update={section: part})
        return Job(spec, self.shape, self.pairs, self.device, self.node_link, self.reference)

    def option(self, changes: dict[str, Any]) -> Option:
        """Changed settings with their predicted memory and time."""
        changed = self.with_changes(changes)
        return Option(changes, changed.memory(), changed.time())


_SNAKE = {
    "microBatchTokens": "micro_batch_tokens", "microBatchSize": "micro_batch_size", "offload": "offload",
    "gradientCheckpointing": "gradient_checkpointing", "nodes": "nodes", "gpusPerNode": "gpus_per_node", "type": "type",
}  # fmt: skip


# A GPU that has fewer tokens than this in a step spends its time on starting kernels and on messages.
FEW_TOKENS = 4096


def too_many_gpus(job: Job) -> str:
    """A sentence when the batch is too small for so many GPUs, naming a number that suits it; empty otherwise."""
    spec = job.spec
    tokens = spec.training.global_batch_size * job.pairs.tokens(layout_of(spec))
    if not spec.gpus_per_node or spec.world_size == 1 or tokens / spec.world_size >= FEW_TOKENS:
        return ""
    each, enough = spec.training.global_batch_size / spec.world_size, max(1, int(tokens // FEW_TOKENS))
    return (
        f"Too many GPUs for this batch: each has {each:,.3g} pairs and {tokens / spec.world_size:,.0f} tokens in a step, and waits more than it "
        f"computes. With training.globalBatchSize {spec.training.global_batch_size} about {enough} would do; a larger batch uses all {spec.world_size}."
    )


def smallest_change(job: Job) -> Option | None:
    """The smallest change that makes a job fit; None without one. Changes are tried in order of cost."""
    for changes in _changes(job):
        if job.with_changes(changes).fits(TARGET_SHARE):
            return job.option(changes)
    return None


def _changes(job: Job) -> Iterator[dict[str, Any]]:
    """Changes, the cheapest first. Smaller micro-batches cost hardly anything, recomputation a third of the time."""
    training, on_gpu = job.spec.training, job.spec.gpus_per_node > 0
    fewer = [_budget(job, tokens) for tokens in _sizes(job) if tokens < job.spec.micro_batch.tokens]
    # The most tokens that fit come first.
    yield from reversed(fewer)
    checkpointing = {} if training.gradient_checkpointing else {"training.gradientCheckpointing": True}
    if checkpointing:
        yield checkpointing
        yield from (checkpointing | budget for budget in reversed(fewer))
    least = fewer[0] if fewer else {}
    offload = on_gpu and training.offload == "none" and training.optimizer == "adamw"
    if offload:
        yield checkpointing | {"training.offload": "cpu"}
        yield from (checkpointing | budget | {"training.offload": "cpu"} for budget in reversed(fewer))
    if on_gpu:
        yield from _more_gpus(job, checkpointing | least)
    adapter = job.spec.adapter
    if adapter.type is AdapterType.NONE:
        yield {"adapter.type": AdapterType.LORA}
        yield checkpointing | least | {"adapter.type": AdapterType.LORA}
    # It rounds the policy itself, so it comes last.
    if adapter.type is not AdapterType.QLORA and not adapter.dora and job.spec.model.adapter is None:
        yield {"adapter.type": AdapterType.QLORA}
        yield checkpointing | least | {"adapter.type": AdapterType.QLORA}


def _more_gpus(job: Job, changes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """More GPUs, as many as the batch has pairs for, alone and with other changes."""
    most, gpus, nodes = min(MAX_GPUS, job.spec.training.global_batch_size), job.spec.gpus_per_node, job.spec.nodes
    while nodes * gpus * 2 <= most:
        more: dict[str, Any] = {}
        if gpus < GPUS_OF_A_NODE and nodes == 1:
            gpus *= 2
        else:
            nodes *= 2
            more["nodes"] = nodes
        if gpus != job.spec.gpus_per_node:
            more["gpusPerNode"] = gpus
        yield more
        yield changes | more


def fastest(job: Job) -> Option | None:
    """The fastest settings that fit on the same GPUs; ties go to the least memory. None when nothing fits.

    State is offloaded only where nothing fits without: host memory and its link are slower than any prediction of them.
    """
    training = job.spec.training
    choices = ("none", "cpu") if job.spec.gpus_per_node and training.optimizer == "adamw" else (training.offload,)
    return next((best for offload in choices if (best := _fastest(job, offload)) is not None), None)


def _fastest(job: Job, offload: str) -> Option | None:
    training = job.spec.training
    found = []
    for checkpointing in (False, True):
        fixed: dict[str, Any] = {}
        if checkpointing != training.gradient_checkpointing:
            fixed["training.gradientCheckpointing"] = checkpointing
        if offload != training.offload:
            fixed["training.offload"] = offload
        for tokens in _sizes(job):
            changes = _budget(job, tokens) | fixed
            if job.with_changes(changes).fits(TARGET_SHARE):
                found.append(job.option(changes))
    if not found:
        return None
    best = min(option.time.seconds for option in found)
    near = [option for option in found if option.time.seconds * MIN_SPEEDUP <= best]
    return min(near, key=lambda option: option.memory.peak)


def _sizes(job: Job) -> list[int]:
    """Budgets to choose from, tokens, rising: the longest pair, and doublings of it until a step needs no second micro-batch."""
    layout = layout_of(job.spec)
    longest = max(1.0, job.pairs.longest_tokens(layout))
    whole_step = job.spec.training.global_batch_size / job.spec.world_size * job.pairs.tokens(layout)
    sizes, tokens = [], longest
    while True:
        sizes.append(64 * math.ceil(tokens / 64))
        tokens *= math.sqrt(2)
        if tokens / math.sqrt(2) >= min(whole_step, MAX_TOKENS):
            return sorted(set(sizes))


def _budget(job: Job, tokens: int) -> dict[str, Any]:
    """A budget of tokens, and of pairs where the job bounds those too."""
    changes: dict[str, Any] = {"training.microBatchTokens": tokens}
    if job.spec.training.micro_batch_size is not None:
        one = max(1.0, job.pairs.tokens(layout_of(job.spec)))
        changes["training.microBatchSize"] = max(1, int(tokens // one))
    return changes


def lines(option: Option) -> str:
    """The changes as lines of a DPOJob's spec."""
    sections: dict[str, dict[str, Any]] = {}
    text = []
    for path, value in option.changes.items():
        section, _, field = path.rpartition(".")
        sections.setdefault(section, {})[field] = value
    for section, fields in sections.items():
        shown = {field: _yaml(value) for field, value in fields.items()}
        if section:
            text.append(f"{section}: {{{', '.join(f'{field}: {value}' for field, value in shown.items())}}}")
        else:
            text += [f"{field}: {value}" for field, value in shown.items()]
    return "\n".join(text)


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

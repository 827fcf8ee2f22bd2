"""Rules over several fields, each in two forms: CEL for the API server, Python for `dpo run` and the operator.

A contract test feeds the same jobs to both forms and wants the same answer. In CEL, a field of camelCase is
`self.fieldName`; optional fields need `has()`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from dpo_operator.api import names
from dpo_operator.api.types import RESERVED_ENV, AdapterType, DPOJob, DPOJobSpec, MethodName


@dataclass(frozen=True)
class Rule:
    """A condition that must hold on the spec.

    field: camelCase path inside spec that the message is about.
    cel: CEL expression over `self`, the spec. check: the same in Python.
    message: what is allowed.
    """

    field: str
    cel: str
    check: Callable[[DPOJobSpec], bool]
    message: str


SPEC_RULES: tuple[Rule, ...] = (
    Rule(
        "data.maxPromptLength",
        "!has(self.data.maxPromptLength) || self.data.maxPromptLength < self.data.maxLength",
        lambda s: s.data.max_prompt_length is None or s.data.max_prompt_length < s.data.max_length,
        "must be smaller than data.maxLength, so that the answers keep some tokens",
    ),
    Rule(
        "data.evalFraction",
        "!has(self.data.eval) || self.data.evalFraction == 0.0",
        lambda s: s.data.eval is None or s.data.eval_fraction == 0,
        "must be 0 or left out when data.eval is given",
    ),
    Rule(
        "method.robust",
        "!self.method.robust || (self.method.name == 'dpo' && self.method.labelSmoothing > 0.0)",
        lambda s: not s.method.robust or (s.method.name is MethodName.DPO and s.method.label_smoothing > 0),
        "needs method.name dpo and method.labelSmoothing above 0",
    ),
    Rule(
        "method.labelSmoothing",
        "self.method.labelSmoothing == 0.0 || self.method.name in ['dpo', 'ln-dpo', 'simpo']",
        lambda s: s.method.label_smoothing == 0 or s.method.name.value in ("dpo", "ln-dpo", "simpo"),
        "must be 0 unless method.name is dpo, ln-dpo or simpo",
    ),
    Rule(
        "earlyStopping",
        "!has(self.earlyStopping) || has(self.data.eval) || self.data.evalFraction > 0.0",
        lambda s: s.early_stopping is None or s.data.eval is not None or s.data.eval_fraction > 0,
        "needs data.eval or data.evalFraction above 0",
    ),
    Rule(
        "checkpoint.volume.claimName",
        "!has(self.checkpoint.volume.claimName) || (!has(self.checkpoint.volume.storageClassName) && "
        "!has(self.checkpoint.volume.accessMode))",
        lambda s: (
            s.checkpoint.volume.claim_name is None
            or (s.checkpoint.volume.storage_class_name is None and s.checkpoint.volume.access_mode is None)
        ),
        "excludes storageClassName and accessMode, which describe a claim that the operator makes",
    ),
    Rule(
        "checkpoint.volume.accessMode",
        "self.nodes == 1 || !has(self.checkpoint.volume.accessMode) || self.checkpoint.volume.accessMode == 'ReadWriteMany'",
        lambda s: s.nodes == 1 or s.checkpoint.volume.access_mode in (None, "ReadWriteMany"),
        "must be ReadWriteMany when nodes is above 1, because every pod writes its shard",
    ),
    Rule(
        "training.globalBatchSize",
        "self.training.globalBatchSize >= self.nodes * (self.gpusPerNode > 0 ? self.gpusPerNode : 1)",
        lambda s: s.training.global_batch_size >= s.world_size,
        "must be at least nodes × gpusPerNode, so that every GPU has a pair in each step",
    ),
    Rule(
        "training.device",
        "self.training.device != 'cuda' || self.gpusPerNode > 0",
        lambda s: s.training.device != "cuda" or s.gpus_per_node > 0,
        "cuda needs gpusPerNode of at least 1",
    ),
    Rule(
        "adapter.type",
        "self.adapter.type != 'qlora' || self.training.device != 'cpu'",
        lambda s: s.adapter.type is not AdapterType.QLORA or s.training.device != "cpu",
        "qlora needs a GPU; its 4-bit kernels do not run on training.device cpu",
    ),
    Rule(
        "pod.resources",
        "!self.pod.resources.requests.exists(k, k == 'nvidia.com/gpu') && !self.pod.resources.limits.exists(k, k == 'nvidia.com/gpu')",
        lambda s: "nvidia.com/gpu" not in s.pod.resources.requests and "nvidia.com/gpu" not in s.pod.resources.limits,
        "must not name nvidia.com/gpu; set gpusPerNode",
    ),
    Rule(
        "pod.env",
        f"!self.pod.env.exists(e, e.name.matches('{RESERVED_ENV}'))",
        lambda s: not any(re.search(RESERVED_ENV, e.name) for e in s.pod.env),
        "must not set a variable that chooses code or that the operator sets: LD_*, PYTHON*, PATH, HOME, *_PROXY, HF_ENDPOINT, "
        "HF_HUB_OFFLINE, HF_TOKEN, PET_*, DPO_*, MASTER_*, RANK, LOCAL_RANK, WORLD_SIZE",
    ),
)

# What may change while a job runs steers the operator alone: suspend, activeDeadlineSeconds, ttlSecondsAfterFinished
# and failurePolicy. All else decides what is computed.
IMMUTABLE_FIELDS: tuple[str, ...] = (
    "model",
    "data",
    "method",
    "adapter",
    "training",
    "evaluation",
    "earlyStopping",
    "nodes",
    "gpusPerNode",
    "pod",
    "checkpoint",
    "managedBy",
)

NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MESSAGE = (
    f"metadata.name: must start with a letter, hold lower-case letters, digits and '-', and have at most "
    f"{names.MAX_JOB_NAME} characters, because pod host names are made from it"
)


def violations(job: DPOJob) -> list[str]:
    """Messages of the rules that a job breaks, each beginning with the field's path."""
    return [f"spec.{rule.field}: {rule.message}" for rule in SPEC_RULES if not rule.check(job.spec)]

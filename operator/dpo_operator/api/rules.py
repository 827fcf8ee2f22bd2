"""Rules over several fields, each in two forms: CEL for the API server, Python for `dpo run` and the operator.

A contract test feeds the same jobs to both forms and wants the same answer. In CEL, a field of camelCase is
`self.fieldName`; optional fields need `has()`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from dpo_operator.api import names
from dpo_operator.api.method import MethodName
from dpo_operator.api.pods import RESERVED_ENV, Toleration
from dpo_operator.api.training import Adapter, AdapterType
from dpo_operator.api.types import DPOJob, DPOJobSpec


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


OBJECT_STORE = r"^(s3|gs)://[^/]+(/.*)?$"
ON_CLAIM = r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/.*)?$"
PARENT_FOLDER = "/[.][.](/|$)"
# Zero of any unit, and thousandths of a byte.
NO_SIZE = "^[0.]+[A-Za-z]*$|m$"


def _source_rule(field: str, read: Callable[[DPOJobSpec], str | None], *, optional: str = "") -> Rule:
    """A URL is one that prepare can read. optional: field whose absence means that there is no source."""
    at = f"self.{field}"
    stores = f"{at}.matches('{OBJECT_STORE}')"
    claims = f"({at}.matches('{ON_CLAIM}') && !{at}.matches('{PARENT_FOLDER}'))"
    absent = f"!has(self.{optional}) || " if optional else ""

    def check(spec: DPOJobSpec) -> bool:
        source = read(spec) or ""
        on_claim = re.search(ON_CLAIM, source) and not re.search(PARENT_FOLDER, source)
        return "://" not in source or bool(re.search(OBJECT_STORE, source) or on_claim)

    return Rule(
        field,
        f"{absent}!{at}.contains('://') || {stores} || {claims}",
        check,
        "a URL must be pvc://claim/path with a claim of the job's namespace and no '..', s3://bucket/path or gs://bucket/path",
    )


def _size_rule(field: str, read: Callable[[DPOJobSpec], str]) -> Rule:
    return Rule(
        field,
        f"!self.{field}.matches('{NO_SIZE}')",
        lambda s: not re.search(NO_SIZE, read(s)),
        "must be above 0 and in whole bytes, such as 500Mi or 100Gi",
    )


def _tolerable(toleration: Toleration) -> bool:
    value_fits = toleration.operator != "Exists" or not toleration.value
    key_fits = toleration.key is not None or toleration.operator == "Exists"
    return value_fits and key_fits and (toleration.toleration_seconds is None or toleration.effect == "NoExecute")


def _unused(adapter: Adapter) -> bool:
    """Whether nothing is said about adapters but their type."""
    return adapter.model_copy(update={"type": AdapterType.NONE}) == _NO_ADAPTER


_NO_ADAPTER = Adapter()
_MODULES = ", ".join(f"'{module}'" for module in _NO_ADAPTER.target_modules)

SPEC_RULES: tuple[Rule, ...] = (
    _source_rule("model.name", lambda s: s.model.name),
    _source_rule("data.train.source", lambda s: s.data.train.source),
    _source_rule("data.eval.source", lambda s: s.data.eval.source if s.data.eval else None, optional="data.eval"),
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
        "self.method.labelSmoothing == 0.0 || self.method.name in ['dpo', 'ld-dpo', 'ln-dpo', 'simpo']",
        lambda s: s.method.label_smoothing == 0 or s.method.name.value in ("dpo", "ld-dpo", "ln-dpo", "simpo"),
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
        "!has(self.checkpoint.volume.accessMode) && self.checkpoint.volume.retention == 'Retain')",
        lambda s: (
            s.checkpoint.volume.claim_name is None
            or (
                s.checkpoint.volume.storage_class_name is None
                and s.checkpoint.volume.access_mode is None
                and s.checkpoint.volume.retention == "Retain"
            )
        ),
        "excludes storageClassName and accessMode, which describe a claim that the operator makes, and retention Delete: "
        "a claim that you bring is never deleted",
    ),
    _size_rule("checkpoint.volume.size", lambda s: s.checkpoint.volume.size),
    _size_rule("pod.sharedMemory", lambda s: s.pod.shared_memory),
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
        "adapter.type",
        "self.adapter.type != 'none' || ("
        f"self.adapter.rank == {_NO_ADAPTER.rank} && self.adapter.alpha == {float(_NO_ADAPTER.alpha)} && "
        f"self.adapter.dropout == {_NO_ADAPTER.dropout} && self.adapter.targetModules == [{_MODULES}])",
        lambda s: s.adapter.type is not AdapterType.NONE or _unused(s.adapter),
        "must be lora or qlora when rank, alpha, dropout or targetModules are set; with none, the default, all weights "
        "are trained and they would mean nothing",
    ),
    Rule(
        "pod.resources",
        "!self.pod.resources.requests.exists(k, k == 'nvidia.com/gpu') && !self.pod.resources.limits.exists(k, k == 'nvidia.com/gpu')",
        lambda s: "nvidia.com/gpu" not in s.pod.resources.requests and "nvidia.com/gpu" not in s.pod.resources.limits,
        "must not name nvidia.com/gpu; set gpusPerNode",
    ),
    Rule(
        "pod.tolerations",
        "self.pod.tolerations.all(t, (t.operator != 'Exists' || !has(t.value) || t.value == '') && "
        "(has(t.key) || t.operator == 'Exists') && "
        "(!has(t.tolerationSeconds) || (has(t.effect) && t.effect == 'NoExecute')))",
        lambda s: all(_tolerable(t) for t in s.pod.tolerations),
        "operator Exists takes no value, a toleration without key needs operator Exists, and tolerationSeconds needs effect "
        "NoExecute",
    ),
    Rule(
        "pod.env",
        f"!self.pod.env.exists(e, e.name.matches('{RESERVED_ENV}'))",
        lambda s: not any(re.search(RESERVED_ENV, e.name) for e in s.pod.env),
        "must not set a variable that chooses code or that the operator sets: LD_*, PYTHON*, PATH, HOME, *_PROXY, HF_ENDPOINT, "
        "HF_HUB_OFFLINE, HF_TOKEN, HUGGING_FACE_HUB_TOKEN, PET_*, DPO_*, TORCHELASTIC_*, MASTER_*, RANK, LOCAL_RANK, GROUP_RANK, "
        "WORLD_SIZE, LOCAL_WORLD_SIZE, NVIDIA_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES, CUDA_INJECTION*",
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
    "export",
    "tracking",
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

"""Rules over several fields, each in two forms: CEL for the API server, Python for `dpo run` and the operator.

A contract test feeds the same jobs to both forms and wants the same answer. In CEL, a field of camelCase is
`self.fieldName`; optional fields need `has()`. The rules of the losses, the data and the failure policy have modules of
their own.
"""

import re
from collections.abc import Callable

from pydantic import BaseModel

from dpo_operator.api import names
from dpo_operator.api.access import hub_repository, is_registry
from dpo_operator.api.iterative import Iterative
from dpo_operator.api.model import Adapter, AdapterType
from dpo_operator.api.pods import RESERVED_ENV, RESERVED_ENV_TEXT, Toleration, Volume
from dpo_operator.api.rules.data import DATA_RULES, EVALUATES, evaluates
from dpo_operator.api.rules.iterative import ITERATIVE_RULES
from dpo_operator.api.rules.method import METHOD_RULES
from dpo_operator.api.rules.pods import POD_RULES
from dpo_operator.api.rules.resuming import RESUME_RULES
from dpo_operator.api.rules.rule import Rule
from dpo_operator.api.rules.selection import SELECTION_RULES
from dpo_operator.api.rules.size import SIZE_RULES
from dpo_operator.api.rules.sweep import SWEEP_RULES
from dpo_operator.api.rules.thresholds import THRESHOLDS, unknown_words
from dpo_operator.api.sweep.grid import leg_spec
from dpo_operator.api.training import Checkpoint
from dpo_operator.api.types import DPOJob, DPOJobSpec

# Zero of any unit, and parts of a byte.
NO_SIZE = "^[0.]+[A-Za-z]*$|m$|[.][0-9]+$"


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


def _is_shaped_by_default(adapter: Adapter) -> bool:
    """Whether nothing is said about an adapter's shape; its type and dropout are no part of that."""
    return _unused(adapter.model_copy(update={"dropout": _NO_ADAPTER.dropout}))


def _aliases(model: type[BaseModel], except_: str) -> tuple[str, ...]:
    """Names of a part's fields in YAML, without one."""
    return tuple(str(field.alias) for name, field in model.model_fields.items() if name != except_)


def _has_gpu(spec: DPOJobSpec) -> bool:
    return spec.training.device != "cpu" and spec.gpus_per_node > 0


_HAS_GPU = "(self.training.device != 'cpu' && self.gpusPerNode > 0)"
_NO_ADAPTER = Adapter()
_THRESHOLDS = ", ".join(f"'{name}'" for name in THRESHOLDS)
_MODULES = ", ".join(f"'{module}'" for module in _NO_ADAPTER.target_modules)

FAILURE_RULES: tuple[Rule, ...] = (
    Rule(
        "failurePolicy.maxBackoffSeconds",
        "self.failurePolicy.maxBackoffSeconds >= self.failurePolicy.backoffSeconds",
        lambda s: s.failure_policy.max_backoff_seconds >= s.failure_policy.backoff_seconds,
        "must be at least backoffSeconds",
    ),
    Rule(
        "failurePolicy.rules",
        "self.failurePolicy.rules.all(r, r.exitCodes.size() > 0 || r.reasons.size() > 0 || has(r.messageContains))",
        lambda s: all(r.exit_codes or r.reasons or r.message_contains for r in s.failure_policy.rules),
        "every rule needs exitCodes, reasons or messageContains",
    ),
)

SPEC_RULES: tuple[Rule, ...] = (
    *DATA_RULES,
    *METHOD_RULES,
    *SELECTION_RULES,
    *ITERATIVE_RULES,
    *SWEEP_RULES,
    *POD_RULES,
    *FAILURE_RULES,
    *SIZE_RULES,
    Rule(
        "earlyStopping",
        f"!has(self.earlyStopping) || {EVALUATES}",
        lambda s: s.early_stopping is None or evaluates(s),
        "needs data.eval or data.evalFraction above 0",
    ),
    Rule(
        "diagnosis.thresholds",
        f"!has(self.diagnosis.thresholds) || self.diagnosis.thresholds.all(name, name in [{_THRESHOLDS}])",
        lambda s: all(name in THRESHOLDS for name in s.diagnosis.thresholds),
        "has a name that is no threshold; docs/diagnosis.md lists them",
        lambda s: unknown_words(s.diagnosis.thresholds),
    ),
    Rule(
        "export.checkpoint",
        f"!has(self.export.checkpoint) || self.export.checkpoint != 'best' || {EVALUATES}",
        lambda s: s.export.checkpoint != "best" or evaluates(s),
        "best needs data.eval or data.evalFraction above 0: without an evaluation no checkpoint is the best",
    ),
    Rule(
        "export.merge",
        "!self.export.merge || self.adapter.type != 'none'",
        lambda s: not s.export.merge or s.adapter.type is not AdapterType.NONE,
        "needs adapter.type lora or qlora; without an adapter there is nothing to merge",
    ),
    Rule(
        "export.push",
        "!has(self.export.push) || self.export.push.to.startsWith('hf://') || "
        "(self.export.push.private && !has(self.export.push.commitMessage))",
        lambda s: (
            s.export.push is None
            or hub_repository(s.export.push.to) is not None
            or (s.export.push.private and s.export.push.commit_message is None)
        ),
        "private and commitMessage are a hub's; leave them out for an object store or a registry",
    ),
    Rule(
        "export.push",
        "!has(self.export.push) || self.export.push.to.startsWith('oci://') || "
        "(!self.export.push.plainHttp && !has(self.export.push.format))",
        lambda s: (
            s.export.push is None
            or is_registry(s.export.push.to)
            or (not s.export.push.plain_http and s.export.push.format is None)
        ),
        "format and plainHttp are a registry's; leave them out for an object store or a hub",
    ),
    Rule(
        "tracking.wandb.apiKeySecretRef",
        "!has(self.tracking.wandb) || (self.tracking.wandb.mode == 'online') == has(self.tracking.wandb.apiKeySecretRef)",
        lambda s: (
            s.tracking.wandb is None
            or (s.tracking.wandb.mode == "online") == (s.tracking.wandb.api_key_secret_ref is not None)
        ),
        "must be given with mode online and left out with mode offline, which sends nothing",
    ),
    Rule(
        "checkpoint.keepBest",
        "self.checkpoint.keepBest > 0 || "
        "(has(self.export.checkpoint) ? self.export.checkpoint == 'last' : !has(self.earlyStopping))",
        lambda s: s.checkpoint.keep_best > 0 or not s.exports_best,
        "must be at least 1 when the best checkpoint is exported (export.checkpoint best, or earlyStopping without "
        "export.checkpoint last)",
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
        "training.optimizer",
        f"self.training.optimizer != 'adamw-8bit' || {_HAS_GPU}",
        lambda s: s.training.optimizer != "adamw-8bit" or _has_gpu(s),
        "adamw-8bit needs a GPU: gpusPerNode of at least 1, and training.device other than cpu",
    ),
    Rule(
        "training.hierarchicalPartition",
        "!self.training.hierarchicalPartition || (self.nodes > 1 && self.gpusPerNode > 1)",
        lambda s: not s.training.hierarchical_partition or (s.nodes > 1 and s.gpus_per_node > 1),
        "needs nodes and gpusPerNode of at least 2: a copy of the weights in each node saves traffic between nodes",
    ),
    Rule(
        "training.gradientReduction",
        "self.training.gradientReduction != 'bf16' || self.training.precision == 'bf16'",
        lambda s: s.training.gradient_reduction != "bf16" or s.training.precision == "bf16",
        "bf16 needs precision bf16: in fp16 and fp32 gradients would lose more than they were computed with",
    ),
    Rule(
        "training.routerAuxLoss",
        "!has(self.training.routerAuxLoss) || self.method.name != 'reward-model'",
        lambda s: s.training.router_aux_loss is None or not s.method.trains_reward_model,
        "is not there for method.name reward-model; leave it out",
    ),
    Rule(
        "adapter.type",
        "self.adapter.type != 'none' || ("
        f"self.adapter.rank == {_NO_ADAPTER.rank} && self.adapter.alpha == {float(_NO_ADAPTER.alpha)} && "
        f"self.adapter.dropout == {_NO_ADAPTER.dropout} && !self.adapter.dora && !self.adapter.rslora && "
        f"self.adapter.targetModules == [{_MODULES}])",
        lambda s: s.adapter.type is not AdapterType.NONE or _unused(s.adapter),
        "must be lora or qlora when rank, alpha, dropout, dora, rslora or targetModules are set; with none, the default, all weights "
        "are trained and they would mean nothing",
    ),
    Rule(
        "model.adapter",
        "!has(self.model.adapter) || self.adapter.type == 'lora'",
        lambda s: s.model.adapter is None or s.adapter.type is AdapterType.LORA,
        "needs adapter.type lora, because adapters are trained; to train all weights, merge the adapter into the model first",
    ),
    Rule(
        "model.adapter.train",
        "!has(self.model.adapter) || self.model.adapter.train == 'new' || ("
        f"self.adapter.rank == {_NO_ADAPTER.rank} && self.adapter.alpha == {float(_NO_ADAPTER.alpha)} && "
        f"!self.adapter.dora && !self.adapter.rslora && self.adapter.targetModules == [{_MODULES}])",
        lambda s: s.model.adapter is None or s.model.adapter.train == "new" or _is_shaped_by_default(s.adapter),
        "must be new when adapter.rank, alpha, dora, rslora or targetModules are set: with same, the adapter's own are used",
    ),
    *RESUME_RULES,
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
        "must not set a variable that chooses which code is loaded, that asks for devices, or that the operator sets: "
        + RESERVED_ENV_TEXT,
    ),
)

# What may change while a job exists steers the operator alone, or the size of the gang, which resumes from the last
# checkpoint. All else decides what is computed. The volume's size and the number of rounds have rules of their own: they may grow.
IMMUTABLE_FIELDS: tuple[str, ...] = (
    "model",
    "data",
    "method",
    "adapter",
    "training",
    "evaluation",
    "sweep",
    "resumeFrom",
    "earlyStopping",
    "export",
    "tracking",
    "pod",
    "access",
    "queue",
    *(f"checkpoint.{field}" for field in _aliases(Checkpoint, except_="volume")),
    *(f"checkpoint.volume.{field}" for field in _aliases(Volume, except_="size")),
    "cache",
    "managedBy",
)
VOLUME_SIZE = "checkpoint.volume.size"
# Within a part that may be absent, but neither added nor taken away.
ROUNDS = "iterative.rounds"
IMMUTABLE_OF_ROUNDS = _aliases(Iterative, except_="rounds")


NAME_PATTERN = names.JOB_NAME_PATTERN
NAME_MESSAGE = (
    f"metadata.name: must start with a letter, hold lower-case letters, digits and '-', and have at most "
    f"{names.MAX_JOB_NAME} characters, because pod host names are made from it"
)


def violations(job: DPOJob) -> list[str]:
    """Messages of the rules that a job breaks, each beginning with the field's path."""
    return _violations(job.spec) or _of_legs(job.spec)


def _violations(spec: DPOJobSpec) -> list[str]:
    broken = [rule for rule in SPEC_RULES if not rule.check(spec)]
    return [
        f"spec.{rule.field}: {rule.message}{f' ({found})' if (found := rule.found(spec)) else ''}" for rule in broken
    ]


def _of_legs(spec: DPOJobSpec) -> list[str]:
    """What each leg of a sweep would break as a job of its own: of equal sentences the first. CEL can't say this, so the API server does not."""
    found: dict[str, str] = {}
    for number in range(1, spec.sweep.legs + 1) if spec.sweep is not None else ():
        assert spec.sweep is not None
        where = f"leg {number} ({spec.sweep.label(number)})"
        for sentence in _violations(leg_spec(spec, number)):
            found.setdefault(sentence, f"spec.sweep: {where} would not be a valid job: {sentence}")
    return list(found.values())

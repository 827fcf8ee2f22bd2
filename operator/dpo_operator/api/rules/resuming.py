"""Which settings a run that was begun may change, and what a run may begin with: those that decide speed, memory, the log and what is kept may differ."""

import re
from typing import Any

from dpo_operator.api.iterative import Iterative
from dpo_operator.api.rules.data import ODD_URL, PARENT_FOLDER
from dpo_operator.api.rules.rule import Rule

# Settings of spec.training that change speed, memory or the log, and not the result.
NEUTRAL_TRAINING = frozenset(
    {
        "microBatchTokens", "microBatchSize", "packing", "logitsChunkMiB", "gradientCheckpointing", "zeroStage", "hierarchicalPartition", "offload",
        "device", "logEverySteps", "nonFinite",
    }
)  # fmt: skip

# And of spec.checkpoint. The volume is one of a cluster alone, and several nodes ask for another one.
NEUTRAL_CHECKPOINT = frozenset({"everySteps", "keepLast", "keepBest", "async", "volume", "mirror"})

# And of spec.evaluation: samples draw from no generator that training uses, and an earlier version wrote other defaults into job.json.
NEUTRAL_EVALUATION = frozenset({"samples", "sampleTokens"})

# Parts of spec that change nothing of the result. Over another number of ranks sums are made in another order.
_NEUTRAL_PARTS = frozenset(
    {
        "nodes", "gpusPerNode", "failurePolicy", "pod", "access", "queue", "suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished",
        "cleanPodPolicy", "managedBy", "cache", "diagnosis",
    }
)  # fmt: skip

# Of a run that begins with another job's checkpoint: how long it is may differ from the other one.
LENGTH = frozenset({"spec.training.epochs", "spec.training.maxSteps"})

_ODD = f"{ODD_URL}|^pvc:.*{PARENT_FOLDER}"
RESUME_RULES: tuple[Rule, ...] = (
    Rule(
        "resumeFrom.source",
        f"!has(self.resumeFrom) || !self.resumeFrom.source.matches('{_ODD}')",
        lambda s: s.resume_from is None or not re.search(_ODD, s.resume_from.source),
        "must be pvc://claim/folder with a claim of the job's namespace and no '..', a folder in an object store without '::', or a path",
    ),
    Rule(
        "resumeFrom",
        "!has(self.resumeFrom) || !has(self.iterative)",
        lambda s: s.resume_from is None or s.iterative is None,
        "excludes iterative: a round begins with the policy of the round before; to begin rounds with another job's weights, name its "
        "export in model.name",
    ),
)

# May grow.
ROUNDS = "spec.iterative.rounds"


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Paths of the changed settings that forbid resuming.

    before, now: specs as JSON, without what is at its default. Of training, checkpoint, evaluation and iterative each
    setting is named, else the part.
    """
    left, right = _decisive(before), _decisive(now)
    return sorted(
        path
        for path in left.keys() | right.keys()
        if left.get(path) != right.get(path) and not _grew(path, left, right)
    )


def _grew(path: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether only more rounds were asked for: those that were trained stay."""
    default = Iterative.model_fields["rounds"].default
    return path == ROUNDS and before.get(path, default) <= now.get(path, default)


def _decisive(spec: dict[str, Any]) -> dict[str, Any]:
    """What a run can't change, by path."""
    neutral = {
        "training": NEUTRAL_TRAINING, "checkpoint": NEUTRAL_CHECKPOINT, "evaluation": NEUTRAL_EVALUATION, "iterative": frozenset[str]()
    }  # fmt: skip
    found: dict[str, Any] = {}
    for part, value in spec.items():
        if part in neutral and isinstance(value, dict):
            found |= {f"spec.{part}.{key}": inner for key, inner in value.items() if key not in neutral[part]}
        elif part not in _NEUTRAL_PARTS:
            found[f"spec.{part}"] = value
    return found

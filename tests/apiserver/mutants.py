"""Many DPOJobs, right and wrong, made from the schema: each differs from a complete valid one in one place."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from dpo_operator.api import names
from dpo_operator.generate import crd

REMOVE = object()


def a_job(name: str = "a-job", **spec: Any) -> dict[str, Any]:
    """The shortest valid DPOJob, with some parts of the spec replaced."""
    least = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": "default"},
        "spec": least | spec,
    }


# Every field that may be set together with the others is set; claimName, serviceAccountName and the settings of other losses exclude some.
COMPLETE: dict[str, Any] = a_job(
    model={
        "name": "org/model",
        "revision": "main",
        "adapter": {"name": "pvc://sft/adapter", "revision": "main", "train": "new"},
        "reference": {"name": "org/other", "revision": "main"},
        "tokenSecretRef": {"name": "hub", "key": "token"},
        "chatTemplate": "{{ messages }}",
        "attention": "sdpa",
    },
    data={
        "train": {
            "source": "pvc://pairs/train.jsonl",
            "split": "train[:10%]",
            "config": "default",
            "revision": "v1.0",
            "format": "pairs",
            "columns": {
                "prompt": "question",
                "system": "role.system",
                "tools": "functions",
                "chosen": "good",
                "rejected": "bad",
                "completion": "answer",
                "label": "liked",
                "responses": "answers",
                "scores": "ratings.overall",
                "chosenScore": "good_score",
                "rejectedScore": "bad_score",
                "answerA": "one",
                "answerB": "other",
                "votes": "winner",
                "annotators": ["first", "second.vote"],
                "firstVote": 1,
                "confidence": "score",
            },
            "ignoreColumns": ["id", "meta.system"],
            "limit": 1000,
            "weight": 0.5,
        },
        "mixture": [{"source": "org/more", "split": "train", "format": "votes", "weight": 2}, {"source": "gs://b/k"}],
        "eval": {"source": "s3://bucket/eval.parquet"},
        "evalFraction": 0,
        "maxLength": 1024,
        "maxPromptLength": 512,
        "truncation": "keep_start",
        "template": {"keepReasoning": "answers", "specialTokens": "read"},
        "filters": {
            "minConfidence": 0.7,
            "minScoreGap": 0.5,
            "minAgreement": 0.75,
            "maxLengthRatio": 3,
            "dropDuplicates": True,
            "where": [
                {"column": "language", "operator": "In", "values": ["en", "de"]},
                {"column": "info.score", "operator": "AtLeast", "values": ["-1.5e2"]},
                {"column": "flag", "operator": "DoesNotExist"},
            ],
            "maxBadRows": 0,
        },
    },
    method={
        "name": "dpo",
        "beta": 0.1,
        "weight": 0.5,
        "labelSmoothing": 0.1,
        "robust": True,
        "plus": [{"name": "ln-dpo", "beta": 5, "weight": 2, "labelSmoothing": 0.2, "robust": True}, {"name": "orpo"}],
        "nllWeight": 0.1,
        "nllOver": "all",
    },
    adapter={
        "type": "lora",
        "rank": 8,
        "alpha": 16,
        "dropout": 0.05,
        "dora": True,
        "rslora": True,
        "targetModules": ["q_proj", "all-linear"],
    },
    resumeFrom={"source": "pvc://other-work/0b1e", "step": 50, "digest": "0" * 64},
    training={
        "epochs": 1.5,
        "maxSteps": 100,
        "learningRate": 5e-7,
        "globalBatchSize": 64,
        "microBatchSize": 2,
        "warmupRatio": 0.1,
        "scheduler": "linear",
        "minLearningRateRatio": 0.1,
        "optimizer": "adamw-8bit",
        "adamBeta1": 0.85,
        "adamBeta2": 0.95,
        "adamEpsilon": 1e-6,
        "weightDecay": 0.01,
        "maxGradNorm": 0.5,
        "precision": "fp32",
        "gradientCheckpointing": False,
        "zeroStage": 3,
        "hierarchicalPartition": False,
        "gradientReduction": "fp32",
        "routerAuxLoss": 0.01,
        "offload": "cpu",
        "device": "cuda",
        "seed": 42,
        "shuffle": False,
        "logEverySteps": 10,
        "selection": {
            "by": "rewardGap",
            "warmup": 0.2,
            "keep": {"quantiles": [0.1, 0.9]},
            "order": "easyFirst",
            "refresh": "epoch",
        },
    },
    evaluation={"everySteps": 25, "microBatchSize": 4, "samples": 8, "sampleTokens": 128},
    earlyStopping={"metric": "eval_loss", "patience": 2, "minDelta": 0.001},
    export={
        "checkpoint": "best",
        "merge": True,
        "push": {"to": "s3://models/team/out", "credentialsSecretRef": {"name": "writer"}},
    },
    access={
        "credentialsSecretRef": {"name": "keys"},
        "s3": {"endpoint": "https://minio.example.org:9000", "region": "us-east-1"},
        "gs": {"endpoint": "https://gcs.example.org"},
        "azure": {"account": "account1", "endpoint": "https://blobs.example.org"},
        "hub": {"endpoint": "https://hub.example.org/mirror"},
        "proxy": {"url": "http://proxy.example.org:3128", "exceptions": [".svc", "10.0.0.0/8"]},
        "caBundleRef": {"name": "ca", "key": "ca.crt"},
    },
    tracking={
        "wandb": {
            "project": "alignment",
            "entity": "team",
            "mode": "online",
            "apiKeySecretRef": {"name": "wandb", "key": "key"},
        }
    },
    nodes=2,
    gpusPerNode=4,
    pod={
        "image": "registry.example/trainer@sha256:" + "0" * 64,
        "imagePullPolicy": "Always",
        "imagePullSecrets": ["pull"],
        "resources": {
            "requests": {"cpu": 8, "memory": "64Gi", "example.org/fpga": 1},
            "limits": {"memory": "64Gi", "example.org/fpga": 1},
        },
        "prepareResources": {"requests": {"cpu": "500m"}, "limits": {}},
        "nodeSelector": {"topology.kubernetes.io/zone": "a"},
        "tolerations": [
            {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 5}
        ],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "gpuResource": "nvidia.com/mig-3g.40gb",
        "resourceClaims": [{"name": "imex", "resourceClaimTemplateName": "imex-channel"}],
        "annotations": {"k8s.v1.cni.cncf.io/networks": '[{"name": "ib0"}]'},
        "labels": {"sidecar.istio.io/inject": "false"},
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": "NCCL_IB_HCA", "value": ""}],
        "sharedMemory": "8Gi",
        "network": {"hostNetwork": True, "rdmaResource": "rdma/ib", "interface": "ib0", "isolate": False},
        "topology": {"packBy": "example.org/rack", "spreadBy": "topology.kubernetes.io/zone", "required": True},
        "evictions": "Refuse",
    },
    queue={"kind": "Kueue", "name": "team", "priorityClass": "high"},
    checkpoint={
        "everySteps": 25,
        "keepLast": 3,
        "keepBest": 2,
        "volume": {
            "storageClassName": "fast",
            "size": "1.5Ti",
            "accessMode": "ReadWriteMany",
            "retention": "Delete",
        },
        "mirror": {"to": "s3://checkpoints/team/run", "credentialsSecretRef": {"name": "keeper"}},
    },
    cache={"claimName": "models"},
    failurePolicy={
        "maxRestarts": 0,
        "windowSeconds": 600,
        "hangTimeoutSeconds": 60,
        "gangTimeoutSeconds": 60,
        "backoffSeconds": 5,
        "maxBackoffSeconds": 30,
        "rules": [
            {"exitCodes": [139], "reasons": ["SegmentationFault"], "messageContains": "NCCL", "action": "Restart"}
        ],
    },
    suspend=True,
    activeDeadlineSeconds=3600,
    ttlSecondsAfterFinished=0,
    managedBy="example.org/other",
)


# Settings of one loss: the complete job has another.
LOSS_OF = {
    "lengthDesensitization": "ld-dpo",
    "reduction": "ipo",
    "marginRatio": "simpo",
    "margin": "simpo",
    "marginPerScore": "reward-model",
    "desirableWeight": "kto",
    "undesirableWeight": "kto",
}


# Rounds exclude the best checkpoint, which the complete job exports. Each judge excludes the others.
ROUNDS: dict[str, Any] = {
    "rounds": 2,
    "prompts": {"source": "pvc://prompts/p.jsonl", "split": "train", "config": "c", "revision": "v1", "column": "p", "limit": 1000},
    "promptsPerRound": 100,
    "mixOffline": 0.5,
    "reference": "initial",
    "generation": {"samplesPerPrompt": 8, "temperature": 0.7, "topP": 0.9, "maxNewTokens": 64, "unitPrompts": 8, "microBatchSize": 4},
    "judge": {"type": "builtin", "builtin": {"name": "distinctWords", "words": ["kind"], "badWords": ["rude"]}},
    "pairs": {"select": "smallestGap", "minGap": 0.5, "maxLengthRatio": 2, "lengthPenalty": 0.01, "minPairs": 0.2},
    "winRate": {"prompts": 50},
}  # fmt: skip
JUDGES: dict[str, Any] = {
    "rewardModel": {"name": "org/judge", "revision": "v1", "maxLength": 512, "microBatchSize": 4, "gpus": 1},
    "endpoint": {
        "url": "http://judge.team.svc:8000/v1", "model": "judge", "apiKeySecretRef": {"name": "judge", "key": "key"}, "mode": "score",
        "rubric": "concise", "maxTokens": 64, "concurrency": 2, "timeoutSeconds": 30, "retries": 2, "maxUnparsable": 0.1,
        "allowTo": {"namespace": "team", "podLabels": {"app": "judge"}, "port": 8000},
    },
    "builtin": {"name": "length", "tokens": 20},
}  # fmt: skip
# A sweep excludes what it has values of, and a mirror.
SWEEP: dict[str, Any] = {
    "method": ["dpo", "ln-dpo"], "adapterRank": [8, 16], "beta": [0.1, 5], "learningRate": [5e-7, 1e-6], "seed": [1, 2],
    "select": "eval_reward_accuracy", "stopUnhealthy": False,
}  # fmt: skip
# What other builtin judges need.
BUILTIN_OF = {
    "pattern": {"name": "regex", "pattern": "a+"},
    "answerColumn": {"name": "exactMatch", "answerColumn": "a"},
}


def _with_rounds(job: dict[str, Any], path: tuple[str | int, ...]) -> None:
    del job["spec"]["earlyStopping"], job["spec"]["export"]["checkpoint"], job["spec"]["resumeFrom"]
    job["spec"]["iterative"] = rounds = copy.deepcopy(ROUNDS)
    kind = str(path[2]) if len(path) > 2 and path[2] in JUDGES else "endpoint" if "budget" in path else "builtin"
    if path[1:2] == ("judge",) and "words" not in path and "badWords" not in path:
        rounds["judge"] = {"type": kind, kind: copy.deepcopy(BUILTIN_OF.get(str(path[-1]), JUDGES[kind]))}


def _base(path: tuple[str | int, ...]) -> dict[str, Any]:
    """A complete valid job in which the field may be set, as far as there is one."""
    job = copy.deepcopy(COMPLETE)
    if path[0] == "method" and path[-1] in LOSS_OF:
        loss = {"name": LOSS_OF[str(path[-1])]}
        job["spec"]["method"] = {"name": "dpo", "plus": [loss]} if "plus" in path else loss
        if loss["name"] == "reward-model":
            del (
                job["spec"]["model"]["reference"],
                job["spec"]["model"]["adapter"],
                job["spec"]["training"]["routerAuxLoss"],
            )
        if loss["name"] == "kto":
            del job["spec"]["training"]["selection"]
    if path == ("pod", "serviceAccountName"):
        del job["spec"]["access"]
        job["spec"]["pod"]["serviceAccountName"] = "reader"
    if path[0] == "sweep":
        del job["spec"]["method"], job["spec"]["training"]["learningRate"], job["spec"]["adapter"]["rank"]
        # Not every method has a reference, and each leg must be valid, which CEL does not look at.
        del job["spec"]["resumeFrom"], job["spec"]["model"]["reference"]
        job["spec"]["sweep"] = copy.deepcopy(SWEEP)
    if path[0] == "iterative":
        _with_rounds(job, path)
    return job


def mutants(*, each: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and DPOJob, for every field of the spec and everything that its schema says about it.

    A field of a type that is used in several places, such as the columns of train, mixture and eval, is tried in the first. each: whether
    a field is tried whose schema says the same as another's.
    """
    tried = set()
    for path, schema in _fields(crd.spec_schema(), ()):
        kind = (path[-1], json.dumps(schema, sort_keys=True)) if each else _bounds(schema)
        if kind in tried:
            continue
        tried.add(kind)
        for what, value in _values(schema):
            job = _base(path)
            if _put(job["spec"], path, value):
                yield f"{'.'.join(map(str, path))} {what}", job


def _bounds(schema: dict[str, Any]) -> str:
    """What a schema allows, without what the fields inside it allow: these are tried themselves."""
    said = {key: value for key, value in schema.items() if key not in ("description", "default", "properties")}
    return json.dumps(said, sort_keys=True)


def _fields(schema: dict[str, Any], path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    for key, child in schema.get("properties", {}).items():
        yield (*path, key), child
        yield from _fields(child, (*path, key))
    if "items" in schema:
        yield (*path, 0), schema["items"]
        yield from _fields(schema["items"], (*path, 0))
    if "additionalProperties" in schema:
        yield (*path, "cpu"), schema["additionalProperties"]


def _values(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What to put in the field's place: values of other types, at each bound and just beyond it."""
    yield from (("removed", REMOVE), ("null", None), ("a text", "text"), ("a number", 1), ("a fraction", 1.25))
    yield from (("true", True), ("a list", []), ("an object", {}), ("zero", 0), ("less than zero", -1))
    yield from ((f"the choice {choice}", choice) for choice in schema.get("enum", ()))
    for bound, step in (("minimum", -1), ("maximum", 1)):
        if bound in schema:
            yield f"at its {bound}", schema[bound]
            yield f"beyond its {bound}", schema[bound] + step
    if schema.get("type") == "string" or schema.get("x-kubernetes-int-or-string"):
        yield from (("empty", ""), ("with a space", "a b"), ("with a line break", "a\n"), ("with a slash", "a/b"))
        yield from (("with a NUL", "a\0"), ("upper case", "ABC"), ("not ASCII", "é"), ("of dots", ".."))
        yield from (("a long number", "1" * 32), ("a longer number", "1" * 33), ("a hard space", "a\u00a0b"))
        if "maxLength" in schema:
            yield "as long as allowed", "a" * schema["maxLength"]
            yield "one character too long", "a" * (schema["maxLength"] + 1)
            yield "as long as allowed, not ASCII", "é" * schema["maxLength"]
    if "maxItems" in schema and schema["items"].get("type") == "string":
        yield "full", ["a"] * schema["maxItems"]
        yield "too full", ["a"] * (schema["maxItems"] + 1)
    if "maxProperties" in schema:
        for what, count in (("full", schema["maxProperties"]), ("too full", schema["maxProperties"] + 1)):
            yield what, {f"k{i}": "1" for i in range(count)}
        for key in ("", "a b", "a/b", "a/b/c", "/a", "A.B/c", "a" * 317, "a" * 318, "-a", "a_", "é"):
            yield f"with the key {key[:12]!r} of {len(key)}", {key: "1"}
        yield "with a null", {"a": None}


def _put(spec: Any, path: tuple[str | int, ...], value: Any) -> bool:
    """Set or remove what is at a path, in place; False where the complete job has no such place."""
    at = spec
    for step in path[:-1]:
        try:
            at = at[step]
        except (KeyError, IndexError):
            return False
    if value is not REMOVE:
        at[path[-1]] = value
        return True
    if isinstance(at, list):
        del at[path[-1]]
        return True
    return at.pop(path[-1], REMOVE) is not REMOVE

"""`dpo run` and the operator accept exactly the DPOJobs that the API server accepts, and read them alike."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from dpo_operator.api.rules import spec as rules
from dpo_operator.api.types import DPOJob, DPOJobSpec
from dpo_trainer.data.formats import Rejection, detect, normalize
from tests.apiserver.client import Answer, Requests
from tests.apiserver.mutants import COMPLETE, JUDGES, ROUNDS, a_job, mutants
from tests.unit.trainer.data.formats import layouts

pytestmark = pytest.mark.apiserver


def problems(job: dict[str, Any]) -> list[str]:
    """What the Python side finds wrong with a DPOJob."""
    try:
        return rules.violations(DPOJob.model_validate(job))
    except ValidationError as error:
        return [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]


def disagreement(job: dict[str, Any], answer: Answer) -> str | None:
    """How the two differ about a job; None when they agree."""
    found = problems(job)
    if answer.status not in (201, 400, 422):
        return f"the API server answered {answer.status}: {answer.message}"
    if answer.accepted == bool(found):
        return f"Python: {found or 'accepted'}; API server: {answer.message or 'accepted'}"
    if answer.accepted and DPOJob.model_validate(answer.body).spec != DPOJob.model_validate(job).spec:
        return f"read differently: {answer.body['spec']}"
    return None


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_every_field_has_the_same_bounds(dpojobs: Requests, each: bool) -> None:
    verdicts = {True: 0, False: 0}
    differing = []
    for label, job in mutants(each=each):
        answer = dpojobs.dry_run(job)
        verdicts[answer.accepted] += 1
        if difference := disagreement(job, answer):
            differing.append(f"{label}: {difference}")
    assert not differing, "\n".join(differing)
    # Both kinds are there in numbers: neither side says yes or no to everything.
    assert min(verdicts.values()) > 300


def test_layouts_are_read_with_the_defaults_of_the_api_server(dpojobs: Requests) -> None:
    """The server fills in the usual names of all columns, and the operator's job file has them too: none of them is a mapping."""
    for name, shape, row, columns, expected in layouts.SHAPES:
        mapped = {to_camel(key): value for key, value in columns.items()}
        answer = dpojobs.dry_run(a_job(data={"train": {"source": "org/pairs", "columns": mapped}}))
        filled = answer.body["spec"]["data"]["train"]["columns"]
        assert len(filled) > len(mapped), name
        found = layouts.in_the_job_file(answer.body)
        assert detect([row], found) == shape, name
        pair = normalize(row, shape, found)  # type: ignore[arg-type]
        assert not isinstance(pair, Rejection), name
        assert (pair.prompt, pair.chosen, pair.rejected) == (expected.prompt, expected.chosen, expected.rejected), name


LOSSES = ("dpo", "ld-dpo", "ln-dpo", "ipo", "hinge", "kto", "orpo", "simpo")


def losses() -> Iterator[dict[str, Any]]:
    """Each loss with each setting, as the first loss and as one that is added."""
    registries = (
        "oci://r.example:5000/a/b:v1",
        "oci://r/a",
        "oci://r/A:v1",
        "oci://r:0/a:v1",
        "oci://r/a:v1/b",
        "oci://u@r/a:v1",
    )
    for to in ("s3://b/k", "hf://org/name", "s3://b/", "s3://b", "hf://org", "file:///x", "az://c/k d", *registries):
        for more in (
            {}, {"private": True}, {"private": False}, {"commitMessage": "m"}, {"commitMessage": ""}, {"plainHttp": True}, {"plainHttp": False},
            {"format": "image"}, {"format": "artifact"}, {"format": "tar"},
        ):  # fmt: skip
            yield {"export": {"push": {"to": to, **more}}}
    settings: tuple[dict[str, Any], ...] = (
        *({}, {"labelSmoothing": 0.2}, {"robust": True}, {"labelSmoothing": 0.2, "robust": True}),
        *({"lengthDesensitization": 0}, {"reduction": "sum"}, {"margin": 0}, {"marginRatio": 0}),
        {"marginPerScore": 0},
        *({"margin": 1, "marginRatio": 1}, {"desirableWeight": 0}, {"undesirableWeight": 0}),
        {"desirableWeight": 0, "undesirableWeight": 0},
        {"desirableWeight": 0, "undesirableWeight": 1},
    )
    for name, rest in itertools.product(LOSSES, settings):
        yield {"method": {"name": name, **rest}}
        yield {"method": {"name": "dpo", "plus": [{"name": "dpo"}, {"name": name, **rest}]}}
    for name, added, weight, over in itertools.product(LOSSES, (None, "orpo"), (None, 0, 0.5), (None, "answer", "all")):
        plus = [] if added is None else [{"name": added}]
        yield {"method": {"name": name, "plus": plus, "nllWeight": weight, "nllOver": over}}
    for name, formats in itertools.product(("kto", "ipo"), itertools.product((None, "unpaired"), repeat=3)):
        train, mixed, held_out = ({"source": "t", "format": row_format} for row_format in formats)
        yield {
            "method": {"name": name},
            "data": {"train": train, "mixture": [{"source": "m"}, mixed], "eval": held_out},
        }


def reward_models() -> Iterator[dict[str, Any]]:
    """What makes no sense for a classifier that scores answers."""
    for name, other in (("reward-model", "dpo"), ("dpo", "reward-model")):
        yield {"method": {"name": name, "plus": [{"name": other}]}}
        yield {
            "method": {"name": name},
            "iterative": {"judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 9}}},
        }
        for settings in (
            {"beta": 1},
            {"nllWeight": 0},
            {"nllWeight": 1},
            {"margin": 1},
            {"marginPerScore": 1},
            {"labelSmoothing": 0.1},
        ):
            yield {"method": {"name": name, **settings}}
        for kind in ("none", "lora", "qlora"):
            yield {"method": {"name": name}, "adapter": {"type": kind}}
        yield {"method": {"name": name}, "model": {"name": "m", "adapter": {"name": "a"}}, "adapter": {"type": "lora"}}
        yield {"method": {"name": name}, "model": {"name": "m", "reference": {"name": "r"}}}


def data_and_tracking() -> Iterator[dict[str, Any]]:
    """Conditions, what is exported, trackers and 8-bit optimizers."""
    values = (
        (),
        ("a",),
        ("1", "2"),
        *((number,) for number in ("1", "-.5e-3", "1.", ".", "1e", "1e999", "1e9999", "1\n", "nan")),
    )
    for operator, compared in itertools.product(("In", "NotIn", "AtLeast", "AtMost", "Exists", "DoesNotExist"), values):
        where = [{"column": "ok", "values": ["x"]}, {"column": "c", "operator": operator, "values": list(compared)}]
        yield {"data": {"train": {"source": "t"}, "filters": {"where": where}}}
    for fraction, stopping, checkpoint, kept in itertools.product((0, 0.1), (None, {}), (None, "last", "best"), (0, 1)):
        yield {
            "data": {"train": {"source": "t"}, "evalFraction": fraction},
            "earlyStopping": stopping,
            "export": {"checkpoint": checkpoint},
            "checkpoint": {"keepBest": kept},
        }
    for weight in (None, 0.5, 1):
        yield {"data": {"train": {"source": "t", "weight": weight}, "eval": {"source": "e", "weight": weight}}}
    for merge, adapter in itertools.product((False, True), ("none", "lora")):
        yield {"export": {"merge": merge}, "adapter": {"type": adapter}}
    for mode, key in itertools.product((None, "offline", "online"), (None, {"name": "wandb"})):
        yield {"tracking": {"wandb": {"project": "p", "mode": mode, "apiKeySecretRef": key}}}
    for optimizer, device, gpus in itertools.product(("adamw", "adamw-8bit"), ("auto", "cuda", "cpu"), (0, 1)):
        yield {"training": {"optimizer": optimizer, "device": device}, "gpusPerNode": gpus}
    for nodes, gpus in itertools.product((1, 2), (1, 2)):
        yield {"training": {"hierarchicalPartition": True}, "nodes": nodes, "gpusPerNode": gpus}
    for by, warmup, refresh, epochs, steps in itertools.product(
        ("rewardGap", "scoreGap"), (None, 0.2), (None, "once", "epoch"), (1, 2), (None, 10)
    ):
        asked = {"by": by, "warmup": warmup, "refresh": refresh}
        yield {"training": {"selection": asked, "epochs": epochs, "maxSteps": steps}}
    for by, method in itertools.product(("heldOutLoss", "scoreGap"), ("dpo", "kto", "reward-model")):
        yield {"training": {"selection": {"by": by}}, "method": {"name": method}}
        yield {"training": {"selection": {"by": by}}, "method": {"name": method}, "iterative": ROUNDS}
    for quantiles in ([0, 1], [0.5, 0.5], [0.6, 0.5], [0.1], [0.1, 0.2, 0.3], [-0.1, 1], [0, 1.1]):
        yield {"training": {"selection": {"by": "rewardGap", "keep": {"quantiles": quantiles}}}}
    for precision, reduction in itertools.product(("bf16", "fp32"), (None, "bf16", "fp32")):
        yield {"training": {"precision": precision, "gradientReduction": reduction}}


def placement() -> Iterator[dict[str, Any]]:
    """Queues, topology and network."""
    named = (None, "team")
    kinds = ("Kueue", "Volcano", "SchedulerPlugins", "KAI")
    for kind, name, priority in itertools.product(kinds, named, named):
        yield {"queue": {"kind": kind, "name": name, "priorityClass": priority}}
    for kind, pack, tier, required in itertools.product(kinds, (None, "rack"), (None, 1), (False, True)):
        asked = {"packBy": pack, "highestTier": tier, "required": required}
        name = None if kind == "SchedulerPlugins" else "team"
        yield {"queue": {"kind": kind, "name": name, "topology": asked}}
        yield {"queue": {"kind": kind, "name": name, "topology": asked}, "pod": {"topology": {"packBy": "rack"}}}
    keys = (None, "a", "b", "kubernetes.io/hostname")
    for pack, spread in itertools.product(keys, keys):
        yield {"pod": {"topology": {"packBy": pack, "spreadBy": spread}}}
    for resource in ("rdma/ib", "cpu", "nvidia.com/gpu"):
        for resources in ({}, {"requests": {"rdma/ib": 1}}, {"limits": {"rdma/ib": "1", "cpu": "1"}}):
            yield {"pod": {"network": {"rdmaResource": resource}, "resources": resources}}
    for interface, name in itertools.product(
        (None, "ib0"), ("NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME_")
    ):
        yield {"pod": {"network": {"interface": interface}, "env": [{"name": name, "value": "x"}]}}


def resources() -> Iterator[dict[str, Any]]:
    """Names and amounts of what a container asks for."""
    names = (
        *(
            "cpu",
            "memory",
            "foo",
            "pods",
            "nvidia.com/gpu",
            "amd.com/gpu",
            "nvidia.com/gpu.shared",
            "nvidia.com/mig-1g.5gb",
        ),
        *("nvidia.com/hostdev", "rdma/ib", "requests.a/b", "kubernetes.io/batteries", "hugepages-2Mi", "hugepages-x"),
        *("hugepages-2Mi/x", "a..b/c", "-a/b", f"{'a' * 244}/b", f"{'a' * 245}/b", f"a/{'b' * 63}", f"a/{'b' * 64}"),
    )
    for name, part in itertools.product(names, ("resources", "prepareResources")):
        yield {"pod": {part: {"requests": {name: 1}}}}
        yield {"pod": {part: {"limits": {name: 1}}}}
        yield {"pod": {part: {"requests": {name: "1"}, "limits": {name: 1, "memory": "1Gi"}}}}
    for name in (*names, "x" * 254):
        yield {"pod": {"network": {"rdmaResource": name}}}
        yield {
            "pod": {"gpuResource": name, "network": {"rdmaResource": "rdma/ib"}, "resources": {"limits": {"a/b": 1}}}
        }
        yield {"pod": {"nodeSelector": {name: "x"}}}
        yield {"pod": {"tolerations": [{"key": name, "operator": "Exists"}]}}
        yield {"pod": {"topology": {"packBy": name}}}
    amounts = (1, 2, "1", "2", "0.5", "500m", "1k", "1000", "1Ki", "0.001", "1m", "0.3", "300m", "1.024k")
    for name, asked, most in itertools.product(("cpu", "a/b", "hugepages-2Mi"), amounts, amounts):
        wanted = {"requests": {name: asked}, "limits": {name: most}}
        yield {"pod": {"resources": wanted, "prepareResources": {}}}
        if most in ("1", asked):  # the same rule, at another place
            yield {"pod": {"resources": {}, "prepareResources": wanted}}
    for name in ("system-node-critical", "system", "my-system-", "a..b", "a.b"):
        yield {"pod": {"priorityClassName": name, "runtimeClassName": name}}
    keys = (
        "kubernetes.io/x",
        "a.k8s.io/x",
        "x-k8s.io/x",
        "azure.workload.identity/use",
        "kai.scheduler/queue",
        "job-name",
        "job-names",
    )
    for key in (*names, *keys, "cluster-autoscaler.kubernetes.io/safe-to-evict", "kueue.x-k8s.io/pod-group-x"):
        yield {"pod": {"annotations": {key: "[]"}, "labels": {}}}
        yield {"pod": {"annotations": {}, "labels": {key: "x"}}}
        yield {"queue": {"kind": "Volcano", "priorityClass": name}}


def rounds() -> Iterator[dict[str, Any]]:
    """Judges with what they need and with what is another's, and what rounds exclude."""
    least = {"judge": {"type": "builtin", "builtin": JUDGES["builtin"]}}
    for kind, given in itertools.product(
        JUDGES, itertools.chain.from_iterable(itertools.combinations(JUDGES, n) for n in range(4))
    ):
        yield {"iterative": {"judge": {"type": kind} | {name: JUDGES[name] for name in given}}}
    for kind, budget in itertools.product(JUDGES, ({}, {"calls": 1}, {"tokens": 1}, {"onExhausted": "fail"})):
        yield {"iterative": {"judge": {"type": kind, kind: JUDGES[kind], "budget": budget}}}
    own: tuple[dict[str, Any], ...] = (
        *(
            {},
            {"words": ["a"]},
            {"badWords": ["a"]},
            {"words": []},
            {"tokens": 5},
            {"pattern": "a"},
            {"answerColumn": "a"},
        ),
        *({"words": ["é" * 256] * 64}, {"words": ["é" * 256] * 64, "badWords": ["a"]}),
    )
    for name, fields in itertools.product(("distinctWords", "length", "regex", "exactMatch"), own):
        yield {"iterative": {"judge": {"type": "builtin", "builtin": {"name": name, **fields}}}}
    selections: tuple[dict[str, Any], ...] = (
        {}, {"minGap": 0}, {"minGap": 0.1}, {"lengthPenalty": 0.1}, {"select": "smallestGap"}, {"select": "bestRandom"}
    )  # fmt: skip
    for mode, both, pairs in itertools.product((None, "pairwise", "score"), (None, False, True), selections):
        endpoint = {"url": "http://j/v1", "model": "m", "mode": mode, "bothOrders": both}
        yield {"iterative": {"judge": {"type": "endpoint", "endpoint": endpoint}, "pairs": pairs}}
    for pairs in selections:
        yield {"iterative": least | {"pairs": pairs}}
    for tokens, length in itertools.product((1, 15, 16, 17), (8, 16)):
        yield {
            "iterative": least | {"generation": {"maxNewTokens": tokens}},
            "data": {"train": {"source": "t"}, "maxLength": length},
        }
    for count, each, limit, compared, again in itertools.product(
        (1, 3), (None, 10), (None, 29, 30, 35), (0, 5), (False, True)
    ):
        prompts = {"source": "p", "limit": limit}
        yield {
            "iterative": least
            | {
                "rounds": count,
                "promptsPerRound": each,
                "prompts": prompts,
                "winRate": {"prompts": compared},
                "reusePrompts": again,
            }
        }
    yield {"iterative": least | {"promptsPerRound": 10, "rounds": 3}}
    yield {"iterative": least, "resumeFrom": {"source": "pvc://c/x"}}
    for name, plus, other, reference in itertools.product(
        ("dpo", "kto", "orpo", "simpo"), ((), ("orpo",), ("ipo",)), (None, {"name": "r"}), ("initial", "previous")
    ):
        yield {
            "iterative": least | {"reference": reference},
            "method": {"name": name, "plus": [{"name": n} for n in plus]},
            "model": {"name": "m", "reference": other},
        }
    for stopping, kept in itertools.product((None, {}), (None, "last", "best")):
        data = {"train": {"source": "t"}, "evalFraction": 0.1}
        yield {"iterative": least, "data": data, "earlyStopping": stopping, "export": {"checkpoint": kept}}
    for source in ("org/name", "s3://b/k", "http://x", "pvc://c/../x", "hf://org/name", "hf://datasets/org/name"):
        yield {"iterative": least | {"prompts": {"source": source}}}
        yield {"iterative": {"judge": {"type": "rewardModel", "rewardModel": {"name": source}}}}


def sweeps() -> Iterator[dict[str, Any]]:
    """Grids of all sizes, values that are given twice, and measures. Methods are such that every leg is valid, which CEL does not look at."""
    data = {"train": {"source": "t"}, "evalFraction": 0.1}
    lists: tuple[dict[str, Any], ...] = (
        {}, {"beta": [0.1]}, {"beta": [0.1, 0.1]}, {"beta": [1, 1.0]}, {"seed": list(range(32))}, {"seed": list(range(33))},
        {"seed": list(range(16)), "beta": [1, 2]}, {"seed": list(range(17)), "beta": [1, 2]}, {"seed": [1, 2, 1]}, {"method": ["dpo", "ipo"]},
        {"method": ["dpo", "dpo"]}, {"method": ["dpo", "reward-model"]}, {"learningRate": [1e-6, 2e-6]}, {"learningRate": [1e-6, 1e-6]}, {"adapterRank": [8, 16]},
        {"adapterRank": [8, 8]},
    )  # fmt: skip
    for grid, select, adapter in itertools.product(lists, (None, "eval_loss"), ("none", "lora")):
        yield {"sweep": grid | {"select": select}, "data": data, "adapter": {"type": adapter}}
    two = {"beta": [0.1, 0.2]}
    for stop, looks in itertools.product((None, False, True), (None, False, True)):
        yield {"sweep": two | {"stopUnhealthy": stop}, "diagnosis": {"enabled": looks}, "data": data}
    yield {"sweep": two, "iterative": {"judge": {"type": "builtin", "builtin": JUDGES["builtin"]}}, "data": data}
    yield {"sweep": two}
    yield {"sweep": two, "data": data, "resumeFrom": {"source": "pvc://c/x"}}
    for grid, given in (
        (two, {"method": {"beta": 0.1}}),
        ({"learningRate": [1e-6, 2e-6]}, {"training": {"learningRate": 1e-6}}),
        ({"method": ["dpo", "ipo"]}, {"method": {"name": "ipo"}}),
        ({"adapterRank": [8, 16]}, {"adapter": {"type": "lora", "rank": 4}}),
        ({"adapterRank": [8, 16]}, {"adapter": {"type": "lora"}, "model": {"name": "m", "adapter": {"name": "a"}}}),
        ({"seed": [8, 16]}, {"training": {"seed": 4}}),
    ):
        yield {"sweep": grid, "data": data, **given}


def engines() -> Iterator[dict[str, Any]]:
    """What generates a round's answers, with which image, on how many GPUs, and from which adapters."""
    judge = {"type": "builtin", "builtin": {"name": "length", "tokens": 9}}

    def rounds_by(**generation: Any) -> dict[str, Any]:
        return {"iterative": {"judge": judge, "generation": generation}}

    yield {"pod": {"generateImage": "i"}}
    for engine, image in itertools.product(("transformers", "vllm"), (None, "i")):
        yield {**rounds_by(engine=engine), "pod": {"generateImage": image}}
        for parallel, gpus in itertools.product((1, 2, 3), (0, 1, 2, 4)):
            yield {**rounds_by(engine=engine, tensorParallel=parallel), "gpusPerNode": gpus}
        for adapter, train in itertools.product(
            ({"type": "qlora"}, {"type": "lora", "dora": True}, {"type": "lora"}), ("new", "same")
        ):
            start = {"name": "sft", "train": train} if adapter["type"] == "lora" else None
            yield {**rounds_by(engine=engine), "adapter": adapter, "model": {"name": "m", "adapter": start}}


def combinations() -> Iterator[dict[str, Any]]:
    """Settings that the rules are about, in all their combinations within a rule's reach."""
    yield from losses()
    yield from reward_models()
    yield from data_and_tracking()
    yield from failure_policies()
    yield from placement()
    yield from rounds()
    yield from engines()
    yield from sweeps()
    for held_out, fraction, stopping in itertools.product((None, {"source": "x"}), (None, 0, 0.1), (None, {})):
        yield {
            "data": {"train": {"source": "t"}, "eval": held_out, "evalFraction": fraction},
            "earlyStopping": stopping,
        }
    for names in ((), ("flatLoss",), ("noSuchLimit",), ("flatLoss", "noSuchLimit")):
        yield {"diagnosis": {"thresholds": dict.fromkeys(names, 0.5)}}
    for method in ("dpo", "reward-model"):
        yield {"method": {"name": method}, "training": {"routerAuxLoss": 0.01}}
    for nodes, claim, storage, mode, retention in itertools.product(
        (1, 2), (None, "c"), (None, "s"), (None, "ReadWriteMany", "ReadWriteOnce"), (None, "Retain", "Delete")
    ):
        volume = {"claimName": claim, "storageClassName": storage, "accessMode": mode, "retention": retention}
        yield {"nodes": nodes, "checkpoint": {"volume": volume}}
    for source in (
        "pvc://c",
        "pvc://c/a/../b",
        "pvc://c/a..b",
        "s3://b/a/../b",
        "s3://b/k::x",
        "/a/../b",
        f"pvc://{'a' * 254}/x",
    ):
        yield {"resumeFrom": {"source": source}}
    for size in ("0", "0.0", "0Gi", "00.5Gi", "10", "10m", "1M", "1.0Mi", "0.1", "1.5", "1.5k"):
        yield {"checkpoint": {"volume": {"size": size}}}
        yield {"pod": {"sharedMemory": size}}
    for source in (
        *("org/name", "../x", "://", "a://b", "http://x", "s3://", "s3:///k", "s3://b", "gs://b/k/../l", "S3://b"),
        *(
            "pvc://",
            "pvc:///x",
            "pvc://../x",
            "pvc://.",
            "pvc://c",
            "pvc://c/",
            "pvc://c.d/e",
            "pvc://C/x",
            "pvc://c/..",
        ),
        *("pvc://c/../x", "pvc://c/a..b", "pvc://c/...", "x/pvc://c", "pvc://c?x"),
        *(
            "pvc://a..b/x",
            f"pvc://{'a' * 253}/x",
            f"pvc://{'a' * 254}/x",
            "s3://b::file:///x",
            "gs://b/k::x",
            "org/a::b",
        ),
        *(
            "az://c/k",
            "az://",
            "abfs://c",
            "hf://org/name",
            "hf://org/name@main",
            "hf://org/name/x",
            "hf://datasets/org/name",
        ),
        *(
            "hf://datasets/org/name@v1/a/b.jsonl",
            "hf://datasets/org/name/../x",
            "hf://spaces/org/name",
            "hf://name",
            "hf://models/o/n",
        ),
    ):
        yield {"model": {"name": source}}
        yield {"data": {"train": {"source": source}}}
        yield {"data": {"train": {"source": "t"}, "mixture": [{"source": "m"}, {"source": source}]}}
        yield {"data": {"train": {"source": "t"}, "eval": {"source": source}}}
    settings: tuple[dict[str, Any], ...] = (
        *({}, {"rank": 16}, {"rank": 8}, {"alpha": 32}, {"alpha": 32.5}, {"dropout": 0}, {"dropout": 0.1}),
        *({"targetModules": ["q_proj", "v_proj"]}, {"targetModules": ["v_proj", "q_proj"]}),
        *({"dora": True}, {"rslora": True}, {"dora": False, "rslora": False}),
    )
    names = ("dpo", "orpo", "simpo")
    for name, plus, other in itertools.product(
        names, ((), ("orpo",), ("ipo",)), (None, {"name": "r"}, {"name": "pvc://"})
    ):
        yield {
            "model": {"name": "m", "reference": other},
            "method": {"name": name, "plus": [{"name": n} for n in plus]},
        }
    starts = (None, {"name": "sft"}, {"name": "sft", "train": "new"}, {"name": "pvc://"})
    for kind, rest, start in itertools.product((None, "none", "lora"), settings, starts):
        yield {"adapter": {"type": kind, **rest}, "model": {"name": "m", "adapter": start}}
    for key, operator, value, effect, seconds in itertools.product(
        (None, "k"), (None, "Exists", "Equal"), (None, "", "v"), (None, "NoExecute", "NoSchedule"), (None, 5)
    ):
        toleration = {"key": key, "operator": operator, "value": value, "effect": effect, "tolerationSeconds": seconds}
        yield {"pod": {"tolerations": [{"operator": "Exists"}, toleration]}}
    ways: tuple[dict[str, Any] | None, ...] = (
        *(None, {}, {"gs": {}}, {"gs": {"endpoint": "https://a.b"}}, {"azure": {"account": "abc"}}),
        *({"azure": {"endpoint": "https://a.b"}}, {"s3": {"endpoint": "https://a.b", "region": "r"}}, {"proxy": None}),
        *({"proxy": {"url": "http://a.b:1"}}, {"caBundleRef": {"name": "ca"}}, {"hub": {"endpoint": "https://a.b"}}),
        {"credentialsSecretRef": {"name": "s"}, "caBundleRef": {"name": "ca"}},
    )
    for account, way in itertools.product((None, "reader"), ways):
        yield {"pod": {"serviceAccountName": account}, "access": way}
    for nodes, gpus, batch in itertools.product((1, 2, 1024), (0, 1, 8, 64), (1, 2, 15, 16, 65536)):
        yield {"nodes": nodes, "gpusPerNode": gpus, "training": {"globalBatchSize": batch}}
    for gpus, device, adapter in itertools.product((0, 1), ("auto", "cuda", "cpu"), ("none", "lora", "qlora")):
        yield {"gpusPerNode": gpus, "training": {"device": device}, "adapter": {"type": adapter}}
    for length, prompt in itertools.product((8, 16), (None, 1, 7, 8, 15, 16, 17)):
        yield {"data": {"train": {"source": "t"}, "maxLength": length, "maxPromptLength": prompt}}
    for count in (16, 17):
        where = [{"column": "c", "values": ["é" * 1024]}] * count
        yield {"data": {"train": {"source": "t"}, "filters": {"where": where}}}
        yield {"data": {"train": {"source": "t"}, "mixture": [{"source": "é" * 512}] * count}}
    for count in (2, 3):
        failures = [{"action": "Fail", "reasons": ["R" * 63] * 32}] * count
        yield {"failurePolicy": {"rules": failures}}
    for count in (4, 5):
        yield {"pod": {"env": [{"name": f"NCCL_{i}", "value": "é" * 4096} for i in range(count)]}}
    yield from resources()
    for name in (
        *(
            "NCCL_DEBUG",
            "LD_PRELOAD",
            "LD_",
            "PYTHONPATH",
            "PYTHON",
            "PATH",
            "PATHS",
            "HOME",
            "HTTPS_PROXY",
            "no_proxy",
        ),
        *(
            "PROXY",
            "HF_ENDPOINT",
            "HF_TOKEN",
            "HF_HOME",
            "HF_HUB_OFFLINE",
            "PET_NNODES",
            "DPO_X",
            "MASTER_ADDR",
            "MASTER",
        ),
        *("RANK", "RANKS", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "LOCAL_WORLD_SIZE", "ld_preload"),
        *("NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "CUDA_VISIBLE_DEVICES", "CUDA_INJECTION64_PATH"),
        *("HUGGING_FACE_HUB_TOKEN", "TORCHELASTIC_RUN_ID"),
        *(
            "CC",
            "CCC",
            "CFLAGS",
            "TRITON_PTXAS_PATH",
            "NCCL_NET_PLUGIN",
            "NCCL_NET",
            "NCCL_CONF_FILE",
            "MPLBACKEND",
            "UCX_MODULE_DIR",
        ),
        *(
            "UCX_TLS",
            "TORCHINDUCTOR_CACHE_DIR",
            "TORCH_COMPILE_DEBUG",
            "TORCH_NCCL_TRACE",
            "OMPI_MCA_btl",
            "TMPDIR",
            "WANDB_BASE_URL",
        ),
    ):
        yield {"pod": {"env": [{"name": "A"}, {"name": name, "value": "v"}]}}


def failure_policies() -> Iterator[dict[str, Any]]:
    """What the failure policy's fields say about one another."""
    for first, longest in itertools.product((None, 1, 60, 61), (None, 1, 59, 61)):
        yield {"failurePolicy": {"backoffSeconds": first, "maxBackoffSeconds": longest}}
    for codes, reasons, text in itertools.product((None, [], [70]), (None, [], ["Hang"]), (None, "NCCL")):
        rule = {"exitCodes": codes, "reasons": reasons, "messageContains": text, "action": "Fail"}
        yield {"failurePolicy": {"rules": [{"reasons": ["Hang"], "action": "Fail"}, rule]}}
    for length in (51, 52):
        yield {"failurePolicy": {"rules": [{"reasons": ["R" * length] * 4, "action": "Fail"}] * 20}}
    for length in (256, 257):
        yield {"data": {"train": {"source": "a/b"}, "mixture": [{"source": "x" * length}] * 32}}


def test_every_rule_has_the_same_verdict(dpojobs: Requests) -> None:
    broken = set()
    differing = []
    for spec in combinations():
        job = a_job(**spec)
        if difference := disagreement(job, dpojobs.dry_run(job)):
            differing.append(f"{spec}: {difference}")
        broken |= set(problems(job))
    assert not differing, "\n".join(differing)
    messages = {f"spec.{rule.field}: {rule.message}" for rule in rules.SPEC_RULES}
    # What was found may follow.
    assert {message for message in messages if not any(problem.startswith(message) for problem in broken)} == set()


def test_mixtures_of_settings_have_the_same_verdict(dpojobs: Requests) -> None:
    parts = list(combinations())
    chance = random.Random(20)
    differing = []
    for _ in range(300):
        spec: dict[str, Any] = {}
        for part in chance.sample(parts, 3):
            spec |= part
        job = a_job(**spec)
        if difference := disagreement(job, dpojobs.dry_run(job)):
            differing.append(f"{spec}: {difference}")
    assert not differing, "\n".join(differing)


@pytest.mark.parametrize(
    "name",
    ["a", "a" * 44, "a" * 45, "a" * 253, "a" * 254, "a-1", "a-", "-a", "1a", "a.b", "a/b", "A", "a_b", "", "é", "a\n"],
)
def test_names_have_the_same_verdict(dpojobs: Requests, name: str) -> None:
    job = a_job(name)
    assert disagreement(job, dpojobs.dry_run(job)) is None


def test_the_api_server_fills_in_the_defaults_of_the_types(dpojobs: Requests) -> None:
    shortest = a_job()
    filled = dpojobs.dry_run(shortest).body["spec"]
    expected = DPOJobSpec.model_validate(shortest["spec"]).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert filled == expected


def test_the_complete_job_is_right_and_kept_as_written(dpojobs: Requests) -> None:
    answer = dpojobs.dry_run(COMPLETE)
    assert answer.accepted, answer.message
    assert problems(COMPLETE) == []
    written = DPOJob.model_validate(COMPLETE)
    assert DPOJob.model_validate(answer.body).spec == written.spec

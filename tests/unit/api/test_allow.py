"""What the administrator lets DPOJobs ask for."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from dpo_operator.api.allowed.allow import DEFAULT_ALLOW, Allow, refusals
from dpo_operator.api.allowed.environment import VARIABLES
from dpo_operator.api.pods import RESERVED_ENV
from dpo_operator.api.types import DPOJobSpec

IMAGE = "registry.example/trainer:1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fields(allow: dict[str, Any] | None = None, *, generate_image: str = "", **parts: Any) -> list[str]:
    """The fields that are refused. generate_image: the cluster's own with vLLM."""
    spec = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}} | parts
    found = refusals(DPOJobSpec.model_validate(spec), Allow.model_validate(allow or {}), IMAGE, "team", generate_image)
    return [line.split(":")[0] for line in found]


def test_a_plain_job_may_run() -> None:
    assert fields() == []


# What a job asks for, the field that is named, and the value of the chart that allows it.
def judged_in(namespace: str, **more: Any) -> dict[str, Any]:
    """Rounds whose judge is in a namespace."""
    allow_to = {"namespace": namespace, "podLabels": {"app": "judge"}, "port": 80}
    endpoint = {"url": "http://judge/v1", "model": "m", "allowTo": allow_to, **more}
    return {"iterative": {"judge": {"type": "endpoint", "endpoint": endpoint}}}


LENGTH = {"judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}}
VLLM = {"iterative": LENGTH | {"generation": {"engine": "vllm"}}}

CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"pod": {"env": [{"name": "WANDB_BASE_URL"}]}}, "spec.pod.env", {"env": ["WANDB_BASE_URL"]}),
    ({"pod": {"env": [{"name": "WANDB_MODE"}]}}, "spec.pod.env", {"env": ["WANDB_*"]}),
    ({"pod": {"image": "registry.example/trainer:2"}}, "spec.pod.image", {"images": ["registry.example/trainer:*"]}),
    ({"pod": {"image": "own.example/a/b"}}, "spec.pod.image", {"images": ["own.example/a/*"]}),
    ({"pod": {"generateImage": "own.example/a/b"}, **VLLM}, "spec.pod.generateImage", {"images": ["own.example/a/*"]}),
    ({"pod": {"network": {"hostNetwork": True}}}, "spec.pod.network.hostNetwork", {"hostNetwork": True}),
    ({"pod": {"network": {"isolate": False}}}, "spec.pod.network.isolate", {"unisolated": True}),
    ({"pod": {"tolerations": [{"key": "a", "operator": "Exists"}]}}, "spec.pod.tolerations", {"tolerations": ["a"]}),
    ({"pod": {"tolerations": [{"operator": "Exists"}]}}, "spec.pod.tolerations", {"tolerations": ["*"]}),
    (
        {"pod": {"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}},
        "spec.pod.nodeSelector",
        {"nodeSelectors": ["node-role.kubernetes.io/control-plane"]},
    ),
    ({"pod": {"priorityClassName": "high"}}, "spec.pod.priorityClassName", {"priorityClasses": ["high"]}),
    (
        {"queue": {"kind": "Kueue", "name": "q", "priorityClass": "high"}},
        "spec.queue.priorityClass",
        {"priorityClasses": ["h*"]},
    ),
    ({"pod": {"runtimeClassName": "nvidia"}}, "spec.pod.runtimeClassName", {"runtimeClasses": ["nvidia"]}),
    (
        {"pod": {"annotations": {"k8s.v1.cni.cncf.io/networks": "rdma"}}},
        "spec.pod.annotations",
        {"podAnnotations": ["k8s.v1.cni.cncf.io/networks"]},
    ),
    ({"pod": {"labels": {"sidecar.istio.io/inject": "false"}}}, "spec.pod.labels", {"podLabels": ["sidecar.*"]}),
    (
        {"pod": {"gpuResource": "nvidia.com/mig-3g.40gb"}},
        "spec.pod.gpuResource",
        {"gpuResources": ["nvidia.com/mig-*"]},
    ),
    (
        {"pod": {"resourceClaims": [{"name": "imex", "resourceClaimTemplateName": "imex-channel"}]}},
        "spec.pod.resourceClaims",
        {"resourceClaimTemplates": ["imex-*"]},
    ),
    ({"pod": {"serviceAccountName": "reader"}}, "spec.pod.serviceAccountName", {"serviceAccounts": ["reader"]}),
    (judged_in("judges"), "spec.iterative.judge.endpoint.allowTo.namespace", {"judgeNamespaces": ["judge*"]}),
]


@pytest.mark.parametrize(("parts", "field", "allow"), CASES)
def test_what_reaches_beyond_the_job_is_refused_unless_allowed(
    parts: dict[str, Any], field: str, allow: dict[str, Any]
) -> None:
    assert fields(**parts) == [field]
    assert fields(allow, **parts) == []


def test_a_refusal_names_what_was_found_and_the_chart_value() -> None:
    spec = DPOJobSpec.model_validate(
        {
            "model": {"name": "org/model"},
            "data": {"train": {"source": "org/pairs"}},
            "pod": {"env": [{"name": "SSL_CERT_FILE"}], "priorityClassName": "high"},
        }
    )
    variable, priority = refusals(spec, DEFAULT_ALLOW, IMAGE, "team")
    assert "SSL_CERT_FILE" in variable
    assert "allow.env" in variable
    assert "high" in priority
    assert "allow.priorityClasses" in priority


def test_labels_of_the_control_plane_need_a_pattern_of_their_own() -> None:
    selected = {"pod": {"nodeSelector": {"node-role.kubernetes.io/master": ""}}}
    assert fields({"nodeSelectors": ["*", "node*"]}, **selected) == ["spec.pod.nodeSelector"]
    assert fields({"nodeSelectors": []}, pod={"nodeSelector": {"pool": "gpu"}}) == ["spec.pod.nodeSelector"]


def test_the_charts_own_image_may_be_named() -> None:
    assert fields(pod={"image": IMAGE}) == []
    assert fields(pod={"image": f"{IMAGE}0"}) == ["spec.pod.image"]


def test_vllm_needs_an_image_from_the_chart_or_the_job() -> None:
    assert fields(**VLLM) == ["spec.pod.generateImage"]
    assert fields(generate_image="vllm:1", **VLLM) == []
    assert fields(generate_image="vllm:1", pod={"generateImage": "vllm:1"}, **VLLM) == []
    assert fields(generate_image="vllm:1", pod={"generateImage": "vllm:10"}, **VLLM) == ["spec.pod.generateImage"]


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe"])
def test_well_known_gpus_need_no_leave(resource: str) -> None:
    assert fields(pod={"gpuResource": resource}) == []


def test_secrets_can_be_limited_to_some_names() -> None:
    parts = {
        "model": {"name": "org/model", "tokenSecretRef": {"name": "database"}},
        "tracking": {"wandb": {"project": "p", "mode": "online", "apiKeySecretRef": {"name": "admin"}}},
        "pod": {"imagePullSecrets": ["dpo-registry", "other"]},
        "access": {"credentialsSecretRef": {"name": "s3"}},
        "export": {"push": {"to": "s3://b/k", "credentialsSecretRef": {"name": "writer"}}},
        "checkpoint": {"mirror": {"to": "s3://b/c", "credentialsSecretRef": {"name": "keeper"}}},
    }
    assert fields(**parts) == []
    assert sorted(fields({"secrets": ["dpo-*"]}, **parts)) == [
        "spec.access.credentialsSecretRef",
        "spec.checkpoint.mirror.credentialsSecretRef",
        "spec.export.push.credentialsSecretRef",
        "spec.model.tokenSecretRef",
        "spec.pod.imagePullSecrets",
        "spec.tracking.wandb.apiKeySecretRef",
    ]


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:39], COMMIT + "0", COMMIT.upper()])
def test_commits_of_a_hub_can_be_required(revision: str | None) -> None:
    only = {"branches": False}
    train = {"source": "org/pairs", "revision": COMMIT}
    parts = {"model": {"name": "org/model", "revision": revision}, "data": {"train": train}}
    assert fields(**parts) == []
    assert fields(only, **parts) == ["spec.model.revision"]
    assert fields(only, model={"name": "org/model", "revision": COMMIT}, data={"train": train}) == []
    for url, refused in ((f"hf://org/model@{COMMIT}", []), ("hf://org/model@main", ["spec.model.revision"])):
        assert fields(only, model={"name": url}, data={"train": train}) == refused
    for path, refused in (
        (f"@{COMMIT}/x.jsonl", []),
        (f"/x@{COMMIT}/f.jsonl", ["spec.data"]),
        (f"@main/x@{COMMIT}", ["spec.data"]),
    ):
        pairs = {"source": f"hf://datasets/org/pairs{path}"}
        assert fields(only, model={"name": f"hf://org/model@{COMMIT}"}, data={"train": pairs}) == refused
    model = {"name": "org/model", "revision": COMMIT, "reference": {"name": "org/sft", "revision": revision}}
    assert fields(only, model=model, data={"train": train}) == ["spec.model.reference.revision"]
    elsewhere = {"model": {"name": "pvc://claim/model"}, "data": {"train": {"source": "/data/x.jsonl"}}}
    assert fields(only, **elsewhere) == []


# Variables that choose code, files, hosts or certificates, by what reads them.
CHOOSING = (
    "NCCL_NET_PLUGIN NCCL_TUNER_PLUGIN NCCL_PROFILER_PLUGIN NCCL_ENV_PLUGIN NCCL_CONF_FILE NCCL_TOPO_FILE NCCL_GRAPH_FILE NCCL_DEBUG_FILE "
    "NCCL_TOPO_DUMP_FILE NCCL_COMM_ID NCCL_NET NCCL_RAS_ADDR NCCL_GIN_PLUGIN TORCH_NCCL_DEBUG_INFO_TEMP_FILE TORCH_NCCL_DEBUG_INFO_PIPE_FILE "
    "CC CXX TRITON_PTXAS_PATH CUDA_HOME TORCHINDUCTOR_CACHE_DIR NVTX_INJECTION64_PATH RDMAV_DRIVERS SSL_CERT_FILE SSL_CERT_DIR "
    "REQUESTS_CA_BUNDLE CURL_CA_BUNDLE LOCALDOMAIN RES_OPTIONS HOSTALIASES RESOLV_HOST_CONF TZ LANG LC_ALL WANDB_BASE_URL WANDB_API_KEY "
    "WANDB_DIR HF_HOME HF_ENDPOINT HTTPS_PROXY https_proxy ALL_PROXY NO_PROXY AWS_ENDPOINT_URL AWS_PROFILE AWS_CA_BUNDLE AWS_ROLE_ARN "
    "GOOGLE_APPLICATION_CREDENTIALS GCE_METADATA_HOST FI_PROVIDER_PATH UCX_MODULE_DIR KMP_CPUINFO_FILE MKL_VML_MODE TORCH_LOGS_OUT "
    "TORCH_TRACE MALLOC_TRACE LD_PRELOAD nccl_debug NCCL_DEBUG_ NCCL_ PATH BASH_FUNC_x"
)


@pytest.mark.parametrize("name", CHOOSING.split())
def test_a_variable_that_chooses_code_or_hosts_is_on_no_list(name: str) -> None:
    assert fields(pod={"env": [{"name": name}]}) == ["spec.pod.env"]


@pytest.mark.parametrize("name", VARIABLES)
def test_every_variable_that_is_allowed_only_tunes(name: str) -> None:
    assert not re.search(RESERVED_ENV, name.removesuffix("*"))
    assert not re.search(r"FILE|PATH|DIR|PLUGIN|LIB|URL|HOST(?!_ENABLE)|ADDR|PROXY|_TOKEN|KEY|ENDPOINT", name)
    assert name.isupper()
    assert fields(pod={"env": [{"name": name.replace("*", "HCA")}]}) == []


@pytest.mark.parametrize(
    "allow",
    [{"images": ["registry.example*"]}, {"images": ["a b/*"]}, {"env": ["a*b"]}, {"env": ["x'"]}, {"env": [""]}, {"envs": []}],
)  # fmt: skip
def test_a_pattern_that_would_surprise_is_no_setting(allow: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Allow.model_validate(allow)


def test_a_judge_of_the_job_s_own_namespace_needs_nobodys_leave() -> None:
    assert fields(**judged_in("team")) == []
    keyed = judged_in("team", apiKeySecretRef={"name": "key"})
    assert fields(**keyed) == []
    assert fields({"secrets": ["other"]}, **keyed) == ["spec.iterative.judge.endpoint.apiKeySecretRef"]

from typing import Any

import pytest
from pydantic import ValidationError

from dpo_operator.api import names
from dpo_operator.api.rules import spec as rules
from dpo_operator.api.rules import support
from dpo_operator.api.types import DPOJob

pytestmark = pytest.mark.unit

LENGTH = {"judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}}}


def job(name: str = "helpful", **spec: Any) -> DPOJob:
    base = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}}
    return DPOJob.model_validate({"metadata": {"name": name}, "spec": base | spec})


def test_the_shortest_job_is_complete() -> None:
    spec = job().spec
    assert (spec.method.name.value, spec.method.strength, spec.learning_rate) == ("dpo", 0.1, 5e-7)
    assert (spec.training.global_batch_size, spec.training.warmup_ratio, spec.training.scheduler) == (
        128,
        0.1,
        "cosine",
    )
    assert rules.violations(job()) == []
    assert support.unsupported(spec) == []


def test_adapters_have_a_larger_learning_rate() -> None:
    assert job(adapter={"type": "lora"}).spec.learning_rate == 5e-6
    assert job(adapter={"type": "lora"}, training={"learningRate": 1e-3}).spec.learning_rate == 1e-3


def test_several_nodes_share_a_volume() -> None:
    assert job(nodes=2).spec.access_mode == "ReadWriteMany"
    assert job(nodes=1).spec.access_mode == "ReadWriteOnce"


@pytest.mark.parametrize("name", ["a" * 45, "Upper", "1st", "dots.are.out", "ends-", "", "x/y", "a\nb"])
def test_names_that_do_not_fit_a_host_name_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        job(name=name)


def test_the_longest_name_fits_a_host_name() -> None:
    name = "a" * names.MAX_JOB_NAME
    assert job(name=name).metadata.name == name
    for phase in names.PHASES:
        assert len(f"{names.child_job_name(name, phase, 9_999)}-1023") <= 63


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"nodes": 0}, "nodes"),
        ({"nodes": "two"}, "nodes"),
        ({"gpusPerNode": -1}, "gpusPerNode"),
        ({"method": {"name": "ppo"}}, "method.name"),
        ({"method": {"beta": 0}}, "method.beta"),
        ({"training": {"epoch": 2}}, "training.epoch"),
        ({"training": {"learningRate": -1e-6}}, "training.learningRate"),
        ({"training": {"precision": "int8"}}, "training.precision"),
        ({"model": {"name": "a b"}}, "model.name"),
        ({"model": {"name": "m\n"}}, "model.name"),
        ({"model": {"name": "m", "trustRemoteCode": True}}, "model.trustRemoteCode"),
        ({"checkpoint": {"volume": {"size": "lots"}}}, "checkpoint.volume.size"),
        ({"checkpoint": {"volume": {"claimName": "other-ns/claim"}}}, "checkpoint.volume.claimName"),
        ({"pod": {"volumes": []}}, "pod.volumes"),
        ({"pod": {"image": "x;y"}}, "pod.image"),
        ({"pod": {"resourceClaims": [{"name": "a", "resourceClaimTemplateName": "t"}] * 2}}, "pod.resourceClaims"),
        (
            {"pod": {"resourceClaims": [{"name": "a", "resourceClaimName": "t"}]}},
            "pod.resourceClaims.0.resourceClaimName",
        ),
    ],
)
def test_a_wrong_value_names_its_field(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        job(**spec)
    assert field in [".".join(str(part) for part in error["loc"][1:]) for error in caught.value.errors()]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"data": {"train": {"source": "a"}, "maxLength": 64, "maxPromptLength": 64}}, "data.maxPromptLength"),
        ({"data": {"train": {"source": "a"}, "eval": {"source": "b"}, "evalFraction": 0.1}}, "data.evalFraction"),
        ({"method": {"robust": True}}, "method.robust"),
        ({"method": {"name": "ipo", "labelSmoothing": 0.1}}, "method.labelSmoothing"),
        ({"method": {"plus": [{"name": "hinge", "labelSmoothing": 0.1}]}}, "method.plus"),
        ({"method": {"name": "kto", "plus": [{"name": "dpo"}]}}, "method.plus"),
        ({"method": {"name": "simpo", "margin": 0, "marginRatio": 0}}, "method.margin"),
        ({"method": {"name": "kto", "nllWeight": 0.5}}, "method.nllWeight"),
        ({"method": {"name": "orpo", "nllWeight": 0, "nllOver": "all"}}, "method.nllOver"),
        ({"method": {"name": "reward-model", "beta": 1}}, "method.beta"),
        ({"method": {"name": "reward-model", "labelSmoothing": 0.1}}, "method.labelSmoothing"),
        ({"method": {"name": "reward-model", "nllWeight": 1}}, "method.nllWeight"),
        ({"method": {"name": "reward-model", "plus": [{"name": "dpo"}]}}, "method.plus"),
        ({"method": {"name": "dpo", "plus": [{"name": "reward-model"}]}}, "method.plus"),
        ({"method": {"name": "reward-model"}, "model": {"name": "m", "reference": {"name": "r"}}}, "model.reference"),
        (
            {
                "method": {"name": "reward-model"},
                "model": {"name": "m", "adapter": {"name": "a"}},
                "adapter": {"type": "lora"},
            },
            "model.adapter",
        ),
        ({"method": {"name": "reward-model"}, "adapter": {"type": "qlora"}}, "adapter.type"),
        ({"data": {"train": {"source": "a"}, "mixture": [{"source": "pvc://"}]}}, "data.mixture"),
        ({"data": {"train": {"source": "a"}, "mixture": [{"source": "x" * 257}] * 32}}, "data.mixture"),
        ({"failurePolicy": {"rules": [{"reasons": ["R" * 52] * 4, "action": "Fail"}] * 20}}, "failurePolicy.rules"),
        ({"earlyStopping": {}}, "earlyStopping"),
        ({"checkpoint": {"volume": {"claimName": "c", "storageClassName": "s"}}}, "checkpoint.volume.claimName"),
        ({"nodes": 2, "checkpoint": {"volume": {"accessMode": "ReadWriteOnce"}}}, "checkpoint.volume.accessMode"),
        ({"nodes": 8, "gpusPerNode": 8, "training": {"globalBatchSize": 63}}, "training.globalBatchSize"),
        ({"gpusPerNode": 0, "training": {"device": "cuda"}}, "training.device"),
        ({"pod": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}, "pod.resources"),
        ({"pod": {"env": [{"name": "LD_PRELOAD", "value": "/x"}]}}, "pod.env"),
        ({"pod": {"env": [{"name": "MASTER_ADDR", "value": "x"}]}}, "pod.env"),
        ({"pod": {"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}}, "pod.env"),
        ({"model": {"name": "pvc://../x"}}, "model.name"),
        ({"model": {"name": "https://example.org/model"}}, "model.name"),
        ({"model": {"name": "hf://datasets/org/name"}}, "model.name"),
        ({"model": {"name": "hf://org/name/folder"}}, "model.name"),
        ({"data": {"train": {"source": "hf://org/name"}}}, "data.train.source"),
        ({"data": {"train": {"source": "hf://datasets/org/name/../x"}}}, "data.train.source"),
        ({"data": {"train": {"source": "az:///k"}}}, "data.train.source"),
        ({"export": {"push": {"to": "s3://b/k", "private": False}}}, "export.push"),
        ({"export": {"push": {"to": "s3://b/k", "commitMessage": "x"}}}, "export.push"),
        ({"data": {"train": {"source": "pvc://"}}}, "data.train.source"),
        ({"data": {"train": {"source": "pvc://Claim/x"}}}, "data.train.source"),
        ({"data": {"train": {"source": "pvc://claim/a/../../b"}}}, "data.train.source"),
        ({"data": {"train": {"source": "a"}, "eval": {"source": "s3://"}}}, "data.eval.source"),
        ({"checkpoint": {"volume": {"claimName": "c", "retention": "Delete"}}}, "checkpoint.volume.claimName"),
        ({"checkpoint": {"volume": {"size": "0Gi"}}}, "checkpoint.volume.size"),
        ({"checkpoint": {"volume": {"size": "500m"}}}, "checkpoint.volume.size"),
        ({"pod": {"sharedMemory": "0"}}, "pod.sharedMemory"),
        ({"adapter": {"rank": 64}}, "adapter.type"),
        ({"adapter": {"type": "none", "targetModules": ["all-linear"]}}, "adapter.type"),
        ({"model": {"name": "m", "adapter": {"name": "pvc://"}}, "adapter": {"type": "lora"}}, "model.adapter.name"),
        ({"model": {"name": "m", "adapter": {"name": "a"}}}, "model.adapter"),
        ({"model": {"name": "m", "reference": {"name": "s3://"}}}, "model.reference.name"),
        ({"model": {"name": "m", "reference": {"name": "r"}}, "method": {"name": "orpo"}}, "model.reference"),
        (
            {"model": {"name": "m", "adapter": {"name": "a"}}, "adapter": {"type": "lora", "rank": 8}},
            "model.adapter.train",
        ),
        ({"pod": {"tolerations": [{"key": "gpu", "operator": "Exists", "value": "x"}]}}, "pod.tolerations"),
        ({"pod": {"tolerations": [{"value": "x"}]}}, "pod.tolerations"),
        ({"pod": {"tolerations": [{"key": "gpu", "tolerationSeconds": 5}]}}, "pod.tolerations"),
    ],
)
def test_a_broken_rule_names_its_field(spec: dict[str, Any], field: str) -> None:
    assert [line.split(":")[0] for line in rules.violations(job(**spec))] == [f"spec.{field}"]


# By what reads them: shells and glibc, caches, matplotlib, compilers, torch, Triton, NCCL, UCX and MPI, profilers, clients.
CODE = (
    "BASH_ENV GCONV_PATH OPENSSL_CONF PYTHONSTARTUP LD_AUDIT TMPDIR XDG_CACHE_HOME MPLBACKEND MPLCONFIGDIR MATPLOTLIBRC CC CXX CFLAGS "
    "LIBRARY_PATH COMPILER_PATH NVCC_PREPEND_FLAGS CUDA_HOME CUDA_PATH CUDA_CACHE_PATH TORCH_EXTENSIONS_DIR TORCHINDUCTOR_CACHE_DIR "
    "TORCHINDUCTOR_REDIS_HOST TORCH_COMPILE_OVERRIDE_BACKENDS TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD TRITON_PTXAS_PATH TRITON_CACHE_MANAGER "
    "LLVM_PASS_PLUGIN_PATH NCCL_NET_PLUGIN NCCL_TUNER_PLUGIN NCCL_ENV_PLUGIN NCCL_IBVERBS_LIB NCCL_CONF_FILE IBV_DRIVERS FI_PROVIDER_PATH "
    "UCX_MODULE_DIR UCX_MODULES OMPI_MCA_mca_base_component_path PMIX_MCA_base CUDA_INJECTION64_PATH NVTX_INJECTION64_PATH "
    "INTEL_LIBITTNOTIFY64 OMP_TOOL_LIBRARIES BNB_CUDA_VERSION DS_ACCELERATOR LOCAL_KERNELS WANDB_X_EXECUTABLE AWS_CONFIG_FILE"
)
SETTINGS = (
    "NCCL_DEBUG NCCL_NET NCCL_IB_HCA NCCL_TOPO_FILE NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME TORCH_NCCL_ASYNC_ERROR_HANDLING UCX_TLS "
    "UCX_NET_DEVICES IBV_FORK_SAFE TORCH_DISTRIBUTED_DEBUG PYTORCH_CUDA_ALLOC_CONF CUDA_LAUNCH_BLOCKING CUBLAS_WORKSPACE_CONFIG MKL_CBWR "
    "OMP_NUM_THREADS MALLOC_ARENA_MAX HF_HOME HF_HUB_CACHE WANDB_BASE_URL SSL_CERT_FILE TOKENIZERS_PARALLELISM TZ NVIDIA_TF32_OVERRIDE"
)


@pytest.mark.parametrize("name", CODE.split())
def test_a_variable_that_chooses_code_is_refused(name: str) -> None:
    assert [line.split(":")[0] for line in rules.violations(job(pod={"env": [{"name": name}]}))] == ["spec.pod.env"]


@pytest.mark.parametrize("name", SETTINGS.split())
def test_a_variable_that_only_tunes_is_allowed(name: str) -> None:
    assert rules.violations(job(pod={"env": [{"name": name}]})) == []


@pytest.mark.parametrize(
    "source",
    ["org/name", "./a", "/data/a..b", "pvc://claim", "pvc://my.claim/", "pvc://claim/a..b/c", "s3://b/k", "gs://b"],
)
def test_a_source_that_prepare_can_read_is_allowed(source: str) -> None:
    sources = {"train": {"source": source}, "eval": {"source": source}}
    assert rules.violations(job(model={"name": source}, data=sources)) == []


def test_urls_of_a_hub_name_a_model_or_a_dataset() -> None:
    data = {"train": {"source": "hf://datasets/org/name@v1.0/data/train.parquet"}, "eval": {"source": "az://c/p.jsonl"}}
    assert rules.violations(job(model={"name": "hf://org/name@main"}, data=data)) == []


@pytest.mark.parametrize(
    "method",
    [
        {"plus": [{"name": "dpo"}, {"name": "dpo", "beta": 0.5}]},  # the same loss twice, at two temperatures
        {"name": "orpo", "nllOver": "all"},
        {"name": "ipo", "plus": [{"name": "simpo", "margin": 0.5}], "nllWeight": 0.1, "nllOver": "all"},
        {"name": "ln-dpo", "labelSmoothing": 0.1, "robust": True},
        {"name": "kto", "desirableWeight": 0, "undesirableWeight": 1, "nllWeight": 0},
        {"name": "reward-model", "margin": 1.0, "nllWeight": 0},
    ],
)
def test_settings_that_belong_together_are_allowed(method: dict[str, Any]) -> None:
    assert rules.violations(job(method=method)) == []


@pytest.mark.parametrize("name", ["NCCL_DEBUG", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TORCH_NCCL_BLOCKING_WAIT"])
def test_network_tuning_is_allowed(name: str) -> None:
    assert rules.violations(job(pod={"env": [{"name": name, "value": "1"}]})) == []


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"adapter": {"type": "qlora", "dora": True}}, "spec.adapter.dora"),
        ({"training": {"zeroStage": 2}}, "spec.training.zeroStage"),
        ({"training": {"offload": "nvme"}}, "spec.training.offload"),
        ({"training": {"optimizer": "adamw-8bit", "offload": "cpu"}}, "spec.training.offload"),
        ({"training": {"precision": "fp16", "device": "cpu"}}, "spec.training.precision"),
        ({"training": {"precision": "fp16"}, "gpusPerNode": 0}, "spec.training.precision"),
        ({"iterative": LENGTH, "checkpoint": {"mirror": {"to": "s3://b/k"}}}, "spec.checkpoint.mirror"),
        ({"sweep": {"beta": [0.1, 0.2]}, "checkpoint": {"mirror": {"to": "s3://b/k"}}}, "spec.checkpoint.mirror"),
    ],
)
def test_what_is_not_implemented_is_said(spec: dict[str, Any], field: str) -> None:
    problems = support.unsupported(job(**spec).spec)
    assert len(problems) == 1
    assert problems[0].startswith(field)


@pytest.mark.parametrize(
    "spec",
    [
        {"iterative": LENGTH},
        {"iterative": LENGTH | {"generation": {"engine": "vllm", "tensorParallel": 2}}, "gpusPerNode": 4},
        {
            "iterative": LENGTH | {"generation": {"engine": "vllm"}},
            "adapter": {"type": "lora"},
            "pod": {"generateImage": "i"},
        },
        {"training": {"precision": "fp16"}},
        {"training": {"optimizer": "adamw-8bit"}},
        {"training": {"offload": "cpu", "device": "cpu"}, "gpusPerNode": 0},
        {"adapter": {"type": "lora", "dora": True, "rslora": True}, "export": {"merge": True}},
        {"model": {"name": "m", "adapter": {"name": "a"}}, "adapter": {"type": "lora", "dropout": 0.1}},
        {"model": {"name": "m", "reference": {"name": "r"}}, "method": {"name": "orpo", "plus": [{"name": "dpo"}]}},
        {"model": {"name": "m", "adapter": {"name": "a", "train": "new"}}, "adapter": {"type": "lora", "rank": 8}},
    ],
)
def test_what_is_implemented_is_not_refused(spec: dict[str, Any]) -> None:
    assert rules.violations(job(**spec)) + support.unsupported(job(**spec).spec) == []


def test_the_job_file_round_trips() -> None:
    one = job(nodes=2, adapter={"type": "lora"}, pod={"resources": {"limits": {"cpu": 2}}})
    assert DPOJob.model_validate(one.model_dump(mode="json", by_alias=True, exclude_none=True)) == one

"""How trainer pods are placed and run, and the volume that they share."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, StrictBool, StrictInt, StringConstraints, field_validator

from dpo_operator.api import names
from dpo_operator.api.base import ApiModel, LabelKey, LabelValue, ObjectName, Quantity, ResourceQuantity


class Volume(ApiModel):
    """Where model, tokens, checkpoints and the export are. Each job uses one folder."""

    claim_name: ObjectName | None = Field(
        default=None, description="Existing PersistentVolumeClaim to use. Default: the operator creates one."
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the claim that the operator creates. Default: the cluster's."
    )
    size: Quantity = Field(
        default="100Gi",
        description="Size of the claim that the operator creates: room for the model twice and for the optimizer state of each kept checkpoint.",
    )
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] | None = Field(
        default=None,
        description="Access mode of the claim that the operator creates. Default: ReadWriteMany, or ReadWriteOnce when nodes is 1.",
    )
    retention: Literal["Retain", "Delete"] = Field(
        default="Retain", description="Whether the claim that the operator created is kept or deleted with the DPOJob."
    )


class Cache(ApiModel):
    """Files of a hub, of models and of datasets, that jobs of a namespace share, so that each is downloaded once."""

    claim_name: ObjectName = Field(
        description="Existing PersistentVolumeClaim of the job's namespace, ReadWriteMany, or ReadWriteOnce for jobs on one node. Only the prepare "
        "pod mounts it. Everyone who can write to it could change what other jobs read, so each file is checked against the hub's digest when it is used."
    )


class Toleration(ApiModel):
    """A pod toleration, as in core/v1."""

    key: LabelKey | None = Field(default=None, description="Taint key; none matches all with operator Exists.")
    operator: Literal["Exists", "Equal"] = Field(default="Equal", description="How the value is compared.")
    value: LabelValue | None = Field(default=None, description="Taint value.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; none matches all."
    )
    toleration_seconds: StrictInt | None = Field(
        default=None, ge=0, le=31_536_000, description="How long a NoExecute taint is tolerated."
    )


# Variables that no job may set, whatever the administrator allows (api/allowed/allow.py), in groups: those that decide which code a process loads or which program it starts, then
# those that the operator sets. They are read by the interpreter, glibc, compilers, torch and Triton, NCCL, UCX, MPI, matplotlib,
# wandb and the clients of object stores. A folder for temporary or cached files is among them, because compiled code is loaded
# from there. Libraries read *_PROXY in any case. The container runtime's variables could request devices of other pods.
_ENDINGS = "PATHS?|DIR|DIRECTORY|LIBS?|LIBRARY|LIBRARIES|PLUGINS?|EXECUTABLE|BINARY"
_RESERVED = (
    "LD_.*", "PYTHON.*", "PATH", "HOME", "ENV", "BASH_ENV", "GIT_.*", "OPENSSL_.*", "GLIBC_TUNABLES", "LOCPATH",
    f".*_({_ENDINGS})", "XDG_.*", "TMPDIR", "TEMP", "TMP", "MPL.*", "MATPLOTLIB.*",
    "CC", "CXX", "CPP", "CUDACXX", "CUDAHOSTCXX", "CPATH", "(C|CXX|CPP|LD)FLAGS", "GCC_.*", "LLVM_.*", "NVCC_.*", "PYTORCH_NVCC",
    "CUDA_HOME", "ROCM_HOME", "TRITON_.*", "TORCH_?(INDUCTOR|COMPILE|FORCE|PYTHON)_.*", "TORCH_DEVICE_BACKEND_AUTOLOAD", "DS_.*", "BNB_.*",
    "NCCL_CONF_FILE", "IBV_DRIVERS", "RDMAV_DRIVERS", "UCX_(MODULE|CONFIG).*", "UCC_CONFIG.*", "OMPI_.*", "OPAL_.*", "PMIX_.*", "PRTE_.*",
    ".*_INJECTION.*", "INTEL_(LIBITT|JIT).*", "OMP_TOOL.*", "HSA_TOOLS.*", "LOCAL_KERNELS", "USE_HUB_KERNELS", ".*TRUST_REMOTE_CODE",
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "BOTO_CONFIG", "GOOGLE_EXTERNAL_ACCOUNT.*",
    ".*_[Pp][Rr][Oo][Xx][Yy]", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN.*", "HF_MODULES_CACHE", "HUGGING.*",
    "TORCHELASTIC_.*", "PET_.*", "DPO_.*", "KUBERNETES_.*", "MASTER_.*", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK",
    ".*_VISIBLE_DEVICES", "NVIDIA_([A-SU-Z].*|T[A-EG-Z].*)",
)  # fmt: skip
RESERVED_ENV = f"^({'|'.join(_RESERVED)})$"
# The same for people; those that nobody would try are left out.
RESERVED_ENV_TEXT = (
    "LD_*, PYTHON*, PATH, HOME, ENV, BASH_ENV, GIT_*, OPENSSL_*, GLIBC_TUNABLES, LOCPATH, TMPDIR, XDG_*, MPL*, names that end in _PATH, "
    "_DIR, _LIB, _LIBRARY, _PLUGIN or _EXECUTABLE, compilers and their flags (CC, CXX, CFLAGS, NVCC_*, CUDA_HOME, LLVM_*), TRITON_*, "
    "TORCHINDUCTOR_*, TORCH_COMPILE_*, TORCH_FORCE_*, TORCH_DEVICE_BACKEND_AUTOLOAD, DS_*, BNB_*, NCCL_CONF_FILE, UCX_MODULE*, OMPI_*, "
    "*_INJECTION*, OMP_TOOL*, *TRUST_REMOTE_CODE, AWS_CONFIG_FILE, *_PROXY, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN*, HF_MODULES_CACHE, HUGGING*, "
    "TORCHELASTIC_*, PET_*, DPO_*, KUBERNETES_*, MASTER_*, RANK, LOCAL_RANK, GROUP_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, "
    "*_VISIBLE_DEVICES, NVIDIA_* but NVIDIA_TF32_OVERRIDE"
)


# Labels and annotations that no job may set, whatever the administrator allows: those of Kubernetes and its controllers, among them AppArmor
# profiles; those of this operator; those by which queues find pods, which spec.queue sets; and those that give a pod an identity in a cloud, which
# ranks never have. One of Kubernetes' own only keeps the cluster autoscaler from removing a pod's node.
_OWNED_DOMAINS = r"([^/]*[.])?(kubernetes[.]io|k8s[.]io|dpo-operator[.]dev)|azure[.]workload[.]identity|scheduling[.](x-k8s[.]io|volcano[.]sh)"
_OWNED_KEYS = "job-name|controller-uid|controller-revision-hash|pod-template-hash|pod-template-generation"
_OWNED_BY_QUEUES = r"kueue[.]x-k8s[.]io/(queue-name|priority-class|managed|pod-group-.*)|kai[.]scheduler/queue"
RESERVED_METADATA = f"^(({_OWNED_DOMAINS})/.*|{_OWNED_KEYS}|{_OWNED_BY_QUEUES})$"
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
# The same for people.
RESERVED_METADATA_TEXT = (
    "dpo-operator.dev/*, *kubernetes.io/* and *.k8s.io/* but cluster-autoscaler.kubernetes.io/safe-to-evict, job-name, controller-uid, names of "
    "controllers' revisions, scheduling.x-k8s.io/*, scheduling.volcano.sh/*, kueue.x-k8s.io/queue-name and the like, kai.scheduler/queue (spec.queue "
    "sets those), azure.workload.identity/*"
)
AnnotationValue = Annotated[str, StringConstraints(max_length=2048, pattern=r"^[^\x00]*$")]


class EnvVar(ApiModel):
    """An environment variable of the trainer, such as NCCL_SOCKET_IFNAME."""

    name: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        min_length=1,
        max_length=128,
        description="Name. Allowed are those that tune (docs/reference/environment.md) and what the administrator adds. Those that choose code or "
        "that the operator sets (LD_*, PYTHON*, PATH, *_PATH, *_PLUGIN, CC, TRITON_*, *_PROXY, HF_ENDPOINT, RANK, MASTER_*, NVIDIA_*, …) never are.",
    )
    value: str = Field(
        default="", max_length=4096, pattern=r"^[^\x00]*$", description="Value, taken literally; no NUL fits in it."
    )


class ResourceList(ApiModel):
    """Requests and limits of a container."""

    requests: dict[LabelKey, ResourceQuantity] = Field(
        default={}, max_length=32, description="What the scheduler reserves."
    )
    limits: dict[LabelKey, ResourceQuantity] = Field(
        default={}, max_length=32, description="What the container may use at most."
    )


class ResourceClaim(ApiModel):
    """A claim of dynamic resource allocation (DRA), made for each training pod from a template."""

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Name of the claim in the pod.",
    )
    resource_claim_template_name: ObjectName = Field(
        description="ResourceClaimTemplate of the job's namespace. Refused unless the administrator allows it.",
    )


class Network(ApiModel):
    """How ranks reach each other."""

    host_network: StrictBool = Field(
        default=False,
        description="Use the node's network, for fabrics that need it. Not allowed under restricted Pod Security.",
    )
    rdma_resource: LabelKey | None = Field(
        default=None,
        description="Extended resource of the RDMA device, such as rdma/ib; one is requested for each training pod.",
    )
    interface: str | None = Field(
        default=None,
        min_length=1,
        max_length=15,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        description="Network interface of the ranks, such as ib0, for NCCL and gloo. Default: what they choose.",
    )
    isolate: StrictBool = Field(
        default=True,
        description="Make NetworkPolicies: ranks reach their own ranks and DNS alone, prepare what it downloads from, and only the operator and "
        "Prometheus reach them. false is refused unless the administrator allows it. It takes a network plugin that enforces policies, and "
        "does not cover hostNetwork.",
    )


Named = TypeVar("Named", EnvVar, ResourceClaim)


class Topology(ApiModel):
    """Where the ranks of a job are placed relative to one another, by labels of nodes."""

    pack_by: LabelKey | None = Field(
        default=None,
        description="Node label whose value all ranks share, such as that of a rack or of an NVLink domain.",
    )
    spread_by: LabelKey | None = Field(
        default=None,
        description="Node label over whose values the ranks are spread evenly, such as that of a power feed.",
    )
    required: StrictBool = Field(
        default=False, description="Wait for nodes that fit; false prefers such nodes and accepts others."
    )


class Pod(ApiModel):
    """How trainer pods are placed and run. There is no pod template: what isn't here can't be set."""

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
        description="Trainer image. Default: the operator's.",
    )
    generate_image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$",
        description="Image of pods that generate with iterative.generation.engine vllm: the trainer beside vLLM. Default: the operator's, where it has one.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When the image is pulled. Default: the operator's."
    )
    image_pull_secrets: list[ObjectName] = Field(
        default=[], max_length=8, description="Secrets for the image's registry."
    )
    resources: ResourceList = Field(
        default=ResourceList(),
        description="CPU and memory of each pod that trains or generates. GPUs come from gpusPerNode.",
    )
    gpu_resource: LabelKey = Field(
        default=names.GPU,
        description="Extended resource that gpusPerNode counts: nvidia.com/gpu, amd.com/gpu, gpu.intel.com/i915, gpu.intel.com/xe, or another that the "
        "administrator allows, such as nvidia.com/mig-3g.40gb. The image's torch must present such GPUs as CUDA devices, as builds for ROCm do.",
    )
    resource_claims: list[ResourceClaim] = Field(
        default=[],
        max_length=8,
        description="Claims of dynamic resource allocation for each training pod, such as an IMEX channel of a ComputeDomain, in addition to gpusPerNode; each "
        "name once.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    prepare_resources: ResourceList = Field(
        default=ResourceList(), description="CPU and memory of the pods that prepare, judge and export."
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default={},
        max_length=32,
        description="Labels that the node of a pod that trains, generates or judges with a GPU must have.",
    )
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=32,
        description="Taints that the pods tolerate; training pods always tolerate nvidia.com/gpu and pod.gpuResource.",
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of all pods of the job.")
    service_account_name: ObjectName | None = Field(
        default=None,
        description="ServiceAccount whose identity in a cloud (IRSA or EKS Pod Identity, GKE, Azure) the prepare pod has, and an export pod that pushes, for "
        "access to object stores without keys. Refused unless the administrator allows it, and with endpoints of access.gs and access.azure, access.proxy and "
        "access.caBundleRef, which would be shown its token. Training pods never have it. Default: the namespace's default.",
    )
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of training pods.")
    annotations: dict[LabelKey, AnnotationValue] = Field(
        default={},
        max_length=16,
        description="Annotations of all pods of the job, such as k8s.v1.cni.cncf.io/networks for another network interface. Refused unless the "
        "administrator allows the key.",
    )
    labels: dict[LabelKey, LabelValue] = Field(
        default={},
        max_length=16,
        description="Labels of all pods of the job, such as sidecar.istio.io/inject. Refused unless the administrator allows the key.",
    )
    env: list[EnvVar] = Field(
        default=[],
        max_length=64,
        description="More environment variables of pods that train or generate; each name once.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    shared_memory: Quantity = Field(
        default="2Gi",
        description="Size of /dev/shm, which NCCL uses between GPUs; it counts as memory of the pod.",
    )
    termination_grace_period_seconds: StrictInt = Field(
        default=120,
        ge=10,
        le=3600,
        description="Time between SIGTERM and SIGKILL for pods that are stopped. In training it has to do for the rest of a step and two saves.",
    )
    network: Network = Field(default=Network(), description="How ranks reach each other.")
    topology: Topology | None = Field(default=None, description="Which nodes the ranks of the job share or avoid.")
    evictions: Literal["OneAtATime", "Refuse"] = Field(
        default="OneAtATime",
        description="Evictions of pods that train or generate, such as by kubectl drain. OneAtATime: one pod at a time, after a save. Refuse: none; drains "
        "wait until that is over.",
    )

    @field_validator("env", "resource_claims")
    @classmethod
    def _names_differ(cls, named: list[Named]) -> list[Named]:
        names_seen = [each.name for each in named]
        if twice := {name for name in names_seen if names_seen.count(name) > 1}:
            raise ValueError(f"set more than once: {', '.join(sorted(twice))}")
        return named

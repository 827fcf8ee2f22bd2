"""The DPOJob resource, `dpo-operator.dev/v1alpha1`.

Fields are snake_case in Python and camelCase in YAML. Defaults are written here and nowhere else; the CRD, the
trainer, `dpo run` and the reference page are made from them. A rule over several fields is in `rules.py`.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from dpo_operator.api import names

# A quantity as Kubernetes writes it: 500Gi, 1.5, 200m.
Quantity = Annotated[
    str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$", max_length=32)
]
# In a list of resources Kubernetes takes whole numbers too: cpu: 2.
ResourceQuantity = Annotated[
    Quantity,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
# DNS names of Kubernetes objects. No "/" fits, so a reference can never name another namespace.
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
LabelKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        max_length=317,
    ),
]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
# A hub id, a path, a URL of an object store, or pvc://claim/path. Control characters and spaces fit nowhere in them.
Source = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x20\x7f-\xa0]+$", min_length=1, max_length=512)]
ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128)]


def _without_null(value: Any) -> Any:
    return {k: _without_null(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class ApiModel(BaseModel):
    """Base of every part of the spec: unknown fields are errors, values don't change once read.

    `dpo run` takes what the API server takes: numbers and booleans are strict ("4" isn't 4), and a field that is null
    counts as left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: Any) -> Any:
        return _without_null(value)


class SecretKeyRef(ApiModel):
    """A key of a Secret in the job's namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: str = Field(
        default="token",
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key in the Secret.",
    )


class Model(ApiModel):
    """The model to align: the policy's starting point and, for DPO, the reference."""

    name: Source = Field(
        description="Hub id (org/name), pvc://claim/folder, s3:// or gs:// URL, or a folder inside the container "
        "(a local folder for `dpo run`). Weights must be safetensors; code from a hub is never run."
    )
    revision: str | None = Field(
        default=None,
        max_length=128,
        pattern=r"^[A-Za-z0-9._/-]+$",
        description="Branch, tag or, better, the 40-digit commit of the hub repository; the commit used is recorded.",
    )
    token_secret_ref: SecretKeyRef | None = Field(
        default=None,
        description="Secret with a hub token for gated or private models and datasets. Only the prepare pod sees it.",
    )
    chat_template: str | None = Field(
        default=None,
        min_length=1,
        max_length=32768,
        description="Jinja chat template that replaces the tokenizer's own. It must be the one used for supervised fine-tuning.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto",
        description="Attention implementation; auto takes the model's default, SDPA where it has one.",
    )


class Columns(ApiModel):
    """Names of the dataset's columns, where they differ from the usual ones."""

    prompt: ColumnName | None = Field(
        default=None, description="Column of the prompt (text or chat messages). Default: prompt."
    )
    chosen: ColumnName = Field(default="chosen", description="Column of the preferred answer.")
    rejected: ColumnName = Field(default="rejected", description="Column of the other answer.")
    confidence: ColumnName = Field(default="confidence", description="Column that filters.minConfidence reads, 0 to 1.")


class Dataset(ApiModel):
    """One split of preference data."""

    source: Source = Field(
        description="Hub id (org/name), a .jsonl, .json or .parquet file or a folder of them: a path, pvc://claim/path, s3:// or gs:// URL."
    )
    split: str = Field(
        default="train",
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9_.\[\]:%+-]+$",
        description="Split of a hub dataset; files ignore it.",
    )
    config: str | None = Field(
        default=None,
        max_length=128,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Configuration (subset) of a hub dataset.",
    )
    revision: str | None = Field(
        default=None,
        max_length=128,
        pattern=r"^[A-Za-z0-9._/-]+$",
        description="Branch, tag or commit of a hub dataset.",
    )
    format: Literal["auto", "pairs", "messages", "dialogue"] = Field(
        default="auto",
        description="pairs: prompt, chosen, rejected as text. messages: the same as chat messages. dialogue: chosen and rejected are "
        "whole '\\n\\nHuman: … \\n\\nAssistant: …' texts that share their prompt. auto: decided by looking at the rows.",
    )
    columns: Columns = Field(default=Columns(), description="Names of the columns.")
    limit: StrictInt | None = Field(
        default=None, ge=1, le=1_000_000_000_000, description="Use only the first rows, for trials."
    )


class Filters(ApiModel):
    """Which rows are left out, and how many may be."""

    min_confidence: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Drop pairs whose confidence column is below this; ambiguous pairs flatten the margin.",
    )
    max_bad_rows: StrictFloat = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of rows that may be unusable (malformed, empty, equal answers, differing prompts) before the job fails in prepare.",
    )


class Data(ApiModel):
    """Training and evaluation data, and how it becomes tokens."""

    train: Dataset = Field(description="Pairs to train on.")
    eval: Dataset | None = Field(
        default=None,
        description="Pairs to evaluate on. Without it, evalFraction of the training pairs is held out.",
    )
    eval_fraction: StrictFloat = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="Share of the training pairs held out for evaluation when eval is not given; 0 means no evaluation.",
    )
    max_length: StrictInt = Field(
        default=2048, ge=8, le=1048576, description="Most tokens of prompt and answer together."
    )
    max_prompt_length: StrictInt | None = Field(
        default=None,
        ge=1,
        le=1048576,
        description="Most tokens of the prompt. Default: half of maxLength, more where the answers are short.",
    )
    truncation: Literal["keep_end", "keep_start"] = Field(
        default="keep_end",
        description="Which part of a prompt that is too long stays; answers lose their end. An answer always keeps at least one token.",
    )
    filters: Filters = Field(default=Filters(), description="Which rows are left out.")


class MethodName(StrEnum):
    """Preference losses. Papers: DPO 2305.18290, IPO 2310.12036, KTO 2402.01306, ORPO 2403.07691, SimPO 2405.14734."""

    DPO = "dpo"
    IPO = "ipo"
    KTO = "kto"
    ORPO = "orpo"
    SIMPO = "simpo"
    LN_DPO = "ln-dpo"


class Method(ApiModel):
    """The loss."""

    name: MethodName = Field(default=MethodName.DPO, description="Preference loss.")
    beta: StrictFloat = Field(
        default=0.1,
        gt=0,
        le=100,
        description="Strength of the pull to the reference, 1/nats. 0.1 is stable; raise it (0.2 to 0.5) when the model drifts, lower it "
        "(0.01 to 0.05) when margins stay flat after the first epoch.",
    )
    label_smoothing: StrictFloat = Field(
        default=0.0, ge=0, lt=0.5, description="Probability that a label is wrong (conservative DPO)."
    )
    robust: StrictBool = Field(
        default=False,
        description="Unbiased loss under label noise of labelSmoothing (robust DPO, 2403.00409).",
    )


class AdapterType(StrEnum):
    """Which weights are trained."""

    NONE = "none"
    LORA = "lora"
    QLORA = "qlora"


class Adapter(ApiModel):
    """Low-rank adapters; with type none all weights are trained."""

    type: AdapterType = Field(
        default=AdapterType.NONE,
        description="none: all weights. lora: low-rank adapters. qlora: adapters on a 4-bit base.",
    )
    rank: StrictInt = Field(default=16, ge=1, le=1024, description="Rank of the update.")
    alpha: StrictFloat = Field(default=32, gt=0, le=4096, description="Scale of the update; the factor is alpha/rank.")
    dropout: StrictFloat = Field(
        default=0.0, ge=0, lt=1, description="Dropout before the adapters. DPO's first-step checks need 0."
    )
    target_modules: list[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", min_length=1, max_length=128)]
    ] = Field(
        default=["q_proj", "v_proj"],
        min_length=1,
        max_length=64,
        description="Modules that get an adapter, by the end of their name, or all-linear.",
    )


class Training(ApiModel):
    """Optimization."""

    epochs: StrictFloat = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Passes over the training pairs. DPO overfits fast: 1, at most 3.",
    )
    max_steps: StrictInt | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Stop after so many optimizer steps, whatever epochs says.",
    )
    learning_rate: StrictFloat | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak learning rate. Default: 5e-7 for all weights, 5e-6 with adapters. Larger ones often diverge.",
    )
    global_batch_size: StrictInt = Field(
        default=128,
        ge=1,
        le=1_000_000,
        description="Pairs in one optimizer step over all GPUs, exact for any number of nodes.",
    )
    micro_batch_size: StrictInt = Field(
        default=1,
        ge=1,
        le=4096,
        description="Pairs in one forward and backward pass on one GPU; the rest is accumulated.",
    )
    warmup_ratio: StrictFloat = Field(
        default=0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises from 0."
    )
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the learning rate after the warm-up."
    )
    weight_decay: StrictFloat = Field(default=0.0, ge=0, le=10, description="AdamW's decoupled weight decay.")
    max_grad_norm: StrictFloat = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="Gradients are clipped to this global norm; 0 turns clipping off.",
    )
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        default="bf16", description="Arithmetic of the model; master weights and losses are always fp32."
    )
    gradient_checkpointing: StrictBool = Field(
        default=True,
        description="Recompute activations in the backward pass: less memory, about a third more time.",
    )
    zero_stage: StrictInt = Field(
        default=3,
        ge=1,
        le=3,
        description="What DeepSpeed partitions: 1 optimizer state, 2 and gradients, 3 and weights.",
    )
    offload: Literal["none", "cpu", "nvme"] = Field(
        default="none", description="Where DeepSpeed keeps optimizer state."
    )
    device: Literal["auto", "cuda", "cpu"] = Field(
        default="auto",
        description="auto: CUDA when the container has a GPU (one that can't be used is an error), else the CPU.",
    )
    seed: StrictInt = Field(default=0, ge=0, le=2**31 - 1, description="Seed of shuffling, adapters and dropout.")
    shuffle: StrictBool = Field(
        default=True, description="Shuffle the pairs anew in each epoch; false keeps the files' order."
    )
    log_every_steps: StrictInt = Field(
        default=1, ge=1, le=1_000_000, description="Steps between two lines of the log and of metrics.jsonl."
    )


class Evaluation(ApiModel):
    """Evaluation on the held-out pairs."""

    every_steps: StrictInt | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Steps between two evaluations. Default: checkpoint.everySteps.",
    )
    micro_batch_size: StrictInt | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Pairs in one forward pass. Default: twice training.microBatchSize.",
    )


class EarlyStopping(ApiModel):
    """Stop when an evaluation metric no longer improves."""

    metric: Literal["eval_reward_margin", "eval_loss", "eval_reward_accuracy"] = Field(
        default="eval_reward_margin", description="What is watched."
    )
    patience: StrictInt = Field(
        default=3, ge=1, le=1000, description="Evaluations without improvement before the run stops."
    )
    min_delta: StrictFloat = Field(
        default=0.01, ge=0, le=1000, description="Smallest change that counts as an improvement."
    )


class Volume(ApiModel):
    """Where model, tokens, checkpoints and the export live. One folder on it belongs to the job."""

    claim_name: ObjectName | None = Field(
        default=None, description="Existing PersistentVolumeClaim to use. Without it, one is made."
    )
    storage_class_name: ObjectName | None = Field(
        default=None, description="StorageClass of the claim that is made. Default: the cluster's."
    )
    size: Quantity = Field(
        default="100Gi",
        description="Size of the claim that is made: model twice, and optimizer state for each kept checkpoint.",
    )
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] | None = Field(
        default=None,
        description="Access mode of the claim that is made. Default: ReadWriteMany, or ReadWriteOnce when nodes is 1.",
    )
    retention: Literal["Retain", "Delete"] = Field(
        default="Retain", description="What becomes of the claim that was made when the DPOJob is deleted."
    )


class Checkpoint(ApiModel):
    """Committed checkpoints."""

    every_steps: StrictInt = Field(
        default=50, ge=1, le=100_000_000, description="Optimizer steps between two checkpoints."
    )
    keep_last: StrictInt = Field(default=2, ge=1, le=1000, description="Newest checkpoints to keep.")
    keep_best: StrictInt = Field(
        default=1, ge=0, le=1000, description="Checkpoints with the lowest evaluation loss to keep besides."
    )
    volume: Volume = Field(default=Volume(), description="The work volume.")


class FailurePolicy(ApiModel):
    """When to restart, and when to stop trying."""

    max_restarts: StrictInt = Field(
        default=5, ge=0, le=10_000, description="Counted restarts allowed within the window."
    )
    window_seconds: StrictInt = Field(
        default=3600, ge=1, le=31_536_000, description="Restarts older than this are forgotten."
    )
    hang_timeout_seconds: StrictInt = Field(
        default=300,
        ge=10,
        le=86_400,
        description="Time without a finished step after which the ranks are restarted.",
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


# What decides which code a process loads, or what the operator itself sets, is not the job's to change.
# NVIDIA_VISIBLE_DEVICES could ask the container runtime for GPUs that the scheduler gave to somebody else.
RESERVED_ENV = (
    r"^(LD_.*|PYTHON.*|PATH|HOME|.*_PROXY|.*_proxy|HF_ENDPOINT|HF_HUB_OFFLINE|HF_TOKEN|HUGGING_FACE_HUB_TOKEN|PET_.*|DPO_.*|"
    r"TORCHELASTIC_.*|MASTER_.*|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_RANK|NVIDIA_VISIBLE_DEVICES|"
    r"CUDA_VISIBLE_DEVICES|CUDA_INJECTION.*)$"
)


class EnvVar(ApiModel):
    """An environment variable of the trainer, such as NCCL_SOCKET_IFNAME."""

    name: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        min_length=1,
        max_length=128,
        description="Name. Variables that choose code or that the operator sets (LD_*, PYTHON*, PATH, *_PROXY, HF_ENDPOINT, RANK, MASTER_*, …) are refused.",
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


class Network(ApiModel):
    """How ranks reach each other."""

    host_network: StrictBool = Field(
        default=False,
        description="Use the node's network, for fabrics that need it. Not allowed under restricted Pod Security.",
    )
    rdma_resource: LabelKey | None = Field(
        default=None,
        description="Extended resource of the RDMA device, such as rdma/ib; one is requested for each pod.",
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
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="When the image is pulled. Default: the operator's."
    )
    image_pull_secrets: list[ObjectName] = Field(
        default=[], max_length=8, description="Secrets for the image's registry."
    )
    resources: ResourceList = Field(
        default=ResourceList(), description="CPU and memory of each training pod. GPUs come from gpusPerNode."
    )
    prepare_resources: ResourceList = Field(
        default=ResourceList(), description="CPU and memory of the prepare and export pods."
    )
    node_selector: dict[LabelKey, LabelValue] = Field(
        default={}, max_length=32, description="Labels that a training pod's node must have."
    )
    tolerations: list[Toleration] = Field(
        default=[],
        max_length=32,
        description="Taints that the pods tolerate; training pods always tolerate nvidia.com/gpu.",
    )
    priority_class_name: ObjectName | None = Field(default=None, description="PriorityClass of all pods of the job.")
    runtime_class_name: ObjectName | None = Field(default=None, description="RuntimeClass of training pods.")
    env: list[EnvVar] = Field(
        default=[],
        max_length=64,
        description="More environment variables of training pods; each name once.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    shared_memory: Quantity = Field(
        default="2Gi",
        description="Size of /dev/shm, which NCCL uses between GPUs; it counts as memory of the pod.",
    )
    network: Network = Field(default=Network(), description="How ranks reach each other.")

    @field_validator("env")
    @classmethod
    def _names_differ(cls, env: list[EnvVar]) -> list[EnvVar]:
        names_seen = [variable.name for variable in env]
        if twice := {name for name in names_seen if names_seen.count(name) > 1}:
            raise ValueError(f"set more than once: {', '.join(sorted(twice))}")
        return env


class DPOJobSpec(ApiModel):
    """What to train, on what, and how."""

    model: Model = Field(description="The model to align.")
    data: Data = Field(description="Preference data.")
    method: Method = Field(default=Method(), description="The loss.")
    adapter: Adapter = Field(default=Adapter(), description="Low-rank adapters.")
    training: Training = Field(default=Training(), description="Optimization.")
    evaluation: Evaluation = Field(default=Evaluation(), description="Evaluation on held-out pairs.")
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Stop when the evaluation no longer improves."
    )
    nodes: StrictInt = Field(default=1, ge=1, le=1024, description="GPU nodes; one pod runs on each.")
    gpus_per_node: StrictInt = Field(
        default=1,
        ge=0,
        le=64,
        description="GPUs, and so processes, of each pod. 0 runs one process on the CPU.",
    )
    pod: Pod = Field(default=Pod(), description="How trainer pods are placed and run.")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="Checkpoints and the volume they are on.")
    failure_policy: FailurePolicy = Field(default=FailurePolicy(), description="When to restart.")
    suspend: StrictBool = Field(
        default=False, description="Stop the pods (after a save) and keep everything else; false goes on."
    )
    active_deadline_seconds: StrictInt | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Fail the job when it has run this long; suspended time does not count.",
    )
    ttl_seconds_after_finished: StrictInt | None = Field(
        default=None, ge=0, le=315_360_000, description="Delete the DPOJob this long after it finished."
    )
    managed_by: str = Field(
        default=names.MANAGER,
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="Controller that acts on this job; another value makes this operator leave it alone.",
    )

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, with the default that depends on what is trained."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        return 5e-7 if self.adapter.type is AdapterType.NONE else 5e-6

    @property
    def processes_per_node(self) -> int:
        """Ranks in each pod."""
        return max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes_per_node

    @property
    def eval_every_steps(self) -> int:
        """Optimizer steps between two evaluations."""
        return self.evaluation.every_steps or self.checkpoint.every_steps

    @property
    def access_mode(self) -> str:
        """Access mode of the claim that the operator makes."""
        return self.checkpoint.volume.access_mode or ("ReadWriteMany" if self.nodes > 1 else "ReadWriteOnce")


class ObjectMeta(BaseModel):
    """The part of metadata that this project reads."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, alias_generator=to_camel)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=names.MAX_JOB_NAME)]
    namespace: str = "default"
    uid: str = ""
    generation: StrictInt = 1
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class DPOJob(BaseModel):
    """A DPOJob without its status: the file that a user writes, and the job file that the trainer reads."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, alias_generator=to_camel)

    api_version: Literal["dpo-operator.dev/v1alpha1"] = names.API_VERSION  # type: ignore[assignment]
    kind: Literal["DPOJob"] = "DPOJob"
    metadata: ObjectMeta
    spec: DPOJobSpec

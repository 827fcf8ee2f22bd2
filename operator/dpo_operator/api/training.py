"""How the model is trained, and what is measured, kept and exported."""

from typing import Literal, NamedTuple

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from dpo_operator.api.access import REGISTRY_REPOSITORY, STORE_FOLDER, SecretRef
from dpo_operator.api.base import ApiModel, SecretKeyRef
from dpo_operator.api.pods import Volume
from dpo_operator.api.trainingparts.selection import Selection


class Budget(NamedTuple):
    """Limit of one forward pass on one rank. tokens: with padding; a single longer pair is still allowed. pairs: None: any number."""

    tokens: int
    pairs: int | None = None


class NonFinite(ApiModel):
    """What happens when a step's loss or gradient is NaN or infinite. Such a step never changes a weight."""

    action: Literal["skip", "rollback", "fail"] = Field(
        default="skip",
        description="skip: leave the step's update out and continue with the next pairs. rollback: go back to the last committed checkpoint first, "
        "then skip the step on replay. fail: end the run.",
    )
    max: StrictInt = Field(
        default=3,
        ge=1,
        le=1_000_000,
        description="Steps that may be skipped over the whole run; one more fails the run.",
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
        description="Stop after this many optimizer steps, whatever epochs says.",
    )
    learning_rate: StrictFloat | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Peak learning rate. Default: 5e-7 for all weights, 5e-6 with adapters; 1e-5 and 1e-4 for reward-model. Larger "
        "ones often diverge.",
    )
    global_batch_size: StrictInt = Field(
        default=128,
        ge=1,
        le=1_000_000,
        description="Pairs in one optimizer step over all GPUs, exact for any number of nodes.",
    )
    micro_batch_tokens: StrictInt | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Most tokens in one forward and backward pass on one GPU: whole pairs are packed up to it, and a longer pair goes alone. "
        "Memory for activations and logits grows with it. Default: twice data.maxLength, which the longest pair may take anyway.",
    )
    micro_batch_size: StrictInt | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Most pairs in one forward and backward pass on one GPU. Default: as many as microBatchTokens holds.",
    )
    warmup_ratio: StrictFloat = Field(
        default=0.1, ge=0, le=1, description="Share of the steps in which the learning rate rises from 0."
    )
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Shape of the learning rate after the warm-up."
    )
    min_learning_rate_ratio: StrictFloat = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end of the run, as a share of its peak."
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        default="adamw",
        description="adamw: fp32 state, fused on GPUs. adamw-8bit: state in 8 bits (bitsandbytes, GPUs alone).",
    )
    adam_beta1: StrictFloat = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the mean of gradients.")
    adam_beta2: StrictFloat = Field(default=0.999, ge=0, lt=1, description="AdamW's decay of their squares' mean.")
    adam_epsilon: StrictFloat = Field(default=1e-8, gt=0, le=1, description="AdamW's term against division by 0.")
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
    packing: Literal["shared", "plain", "off"] = Field(
        default="shared",
        description="How pairs are laid out. shared: in one row without padding, each prompt encoded once for both answers. plain: without "
        "padding, each answer with its own copy of the prompt. off: padded rows. The numbers are the same; a model whose attention can't be "
        "packed falls back to off, which the log says.",
    )
    logits_chunk_mi_b: StrictInt = Field(
        default=256,
        ge=0,
        le=1_048_576,
        alias="logitsChunkMiB",
        description="Upper bound of float32 logits in memory, MiB. More answer tokens than fit are scored in chunks, which are computed "
        "again in the backward pass. 0: all of a micro-batch at once.",
    )
    zero_stage: StrictInt = Field(
        default=3,
        ge=1,
        le=3,
        description="What DeepSpeed partitions: 1 optimizer state, 2 and gradients, 3 and weights.",
    )
    hierarchical_partition: StrictBool = Field(
        default=False,
        description="With several nodes: each node also keeps a copy of the weights, partitioned over its own GPUs, which the backward pass gathers "
        "without the network between nodes (hpZ of ZeRO++). The numbers are the same. Takes the size of the weights, divided by gpusPerNode, of each GPU.",
    )
    gradient_reduction: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Precision in which ranks send gradients to one another. bf16 halves the traffic and rounds every gradient once for each sum; the "
        "sums over micro-batches and the master weights stay fp32.",
    )
    router_aux_loss: StrictFloat | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Coefficient of the auxiliary loss by which the routers of a model with experts use all experts alike (2101.03961), such as 0.001; over "
        "both answers of all pairs of a step. With several micro-batches on a GPU it costs a forward pass more. Default: without it.",
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
        default=True, description="Reshuffle the pairs in every epoch; false keeps the files' order."
    )
    selection: Selection | None = Field(
        default=None, description="Train on a part of the pairs, chosen after a warm-up. Default: on all of them."
    )
    non_finite: NonFinite = Field(default=NonFinite(), description="What a NaN or an infinity does to the run.")
    log_every_steps: StrictInt = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="Steps between two lines of the log and of metrics.jsonl. The first and the last step always have one.",
    )


class Evaluation(ApiModel):
    """Evaluation on the held-out pairs."""

    every_steps: StrictInt | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Steps between two evaluations. Default: checkpoint.everySteps.",
    )
    micro_batch_tokens: StrictInt | None = Field(
        default=None,
        ge=1,
        le=16_777_216,
        description="Most tokens in one forward pass without gradients: of evaluations and of the reference. Default: twice "
        "training.microBatchTokens.",
    )
    micro_batch_size: StrictInt | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Most pairs in one such pass. Default: twice training.microBatchSize where that is set.",
    )
    samples: StrictInt = Field(
        default=32,
        ge=0,
        le=256,
        description="Number of prompts that policy and reference answer for samples.jsonl, at the start, at the end and at as many "
        "evaluations as take 3% of the time. Diagnosis needs 16. 0 turns it off. A reward model answers nothing.",
    )
    sample_tokens: StrictInt = Field(default=64, ge=1, le=8192, description="Most tokens of each such answer.")


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


class Mirror(ApiModel):
    """Where committed checkpoints are copied to while training goes on."""

    to: str = Field(
        min_length=1,
        max_length=512,
        pattern=f"^{STORE_FOLDER}$",
        description="Folder in an object store, s3://bucket/path, gs://bucket/path or az://container/path. It must be new, empty, or this job's mirror. "
        "Endpoint, region, proxy and certificates are those of access.",
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with keys that may read, write and delete there, in the form of access.credentialsSecretRef. Default: that Secret, or the "
        "identity of pod.serviceAccountName.",
    )


class Push(ApiModel):
    """Where the exported model is copied to."""

    to: str = Field(
        min_length=1,
        max_length=512,
        pattern=f"^({STORE_FOLDER}|hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*|{REGISTRY_REPOSITORY})$",
        description="Folder in an object store, s3://bucket/path, gs://bucket/path or az://container/path, a hub repository, hf://org/name, which is created "
        "if it is missing, or a tag in an OCI registry, oci://host/repository:tag. It must be new, empty, or an earlier push of this job. Endpoint, region, "
        "proxy and certificates are those of access.",
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with keys that may write there, in the form of access.credentialsSecretRef; for a registry one of type "
        "kubernetes.io/dockerconfigjson. Default: that Secret, or the identity of pod.serviceAccountName; for a registry none.",
    )
    format: Literal["image", "artifact"] | None = Field(
        default=None,
        description="In a registry. image: an image with the files below /models, which pods can mount as a volume and KServe's ModelCar is built on. artifact: an OCI "
        "artifact with one blob for each file, for oras pull. Default: image.",
    )
    plain_http: StrictBool = Field(
        default=False, description="The registry has no TLS: passwords and weights go over the network as they are."
    )
    private: StrictBool = Field(
        default=True, description="Create a new hub repository as private, and refuse an existing one that is not."
    )
    commit_message: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f-\xa0]+$",
        description="Message of the commit on a hub. Default: Export of dpo-operator.",
    )


class Export(ApiModel):
    """How the trained weights are exported."""

    checkpoint: Literal["last", "best"] | None = Field(
        default=None,
        description="Which checkpoint is exported: the last, or the one with the best evaluation (earlyStopping.metric, or eval_loss). "
        "Default: best with earlyStopping, else last.",
    )
    merge: StrictBool = Field(
        default=False,
        description="With adapters: also write the whole model with the adapter merged into it.",
    )
    push: Push | None = Field(
        default=None,
        description="Copy the verified export to an object store or a hub. Default: it stays on the volume.",
    )


class WandB(ApiModel):
    """Weights & Biases."""

    project: str = Field(
        min_length=1, max_length=128, pattern=r"^[^/\\#?%:\x00-\x1f]+$", description="Project that the run belongs to."
    )
    entity: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="User or team. Default: the key's.",
    )
    mode: Literal["offline", "online"] = Field(
        default="offline",
        description="offline: a run folder on the volume, for `wandb sync`. online: rank 0 sends it, for which its pod needs a way out.",
    )
    api_key_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Secret with the API key, for mode online."
    )


class Tracking(ApiModel):
    """Experiment trackers in addition to metrics.jsonl, TensorBoard files and Prometheus, which are always written."""

    wandb: WandB | None = Field(default=None, description="Log to Weights & Biases.")


class Checkpoint(ApiModel):
    """Committed checkpoints."""

    every_steps: StrictInt = Field(
        default=50, ge=1, le=100_000_000, description="Optimizer steps between two checkpoints."
    )
    keep_last: StrictInt = Field(default=2, ge=1, le=1000, description="Newest checkpoints to keep.")
    keep_best: StrictInt = Field(
        default=1,
        ge=0,
        le=1000,
        description="Checkpoints with the best evaluation (earlyStopping.metric, or eval_loss) to keep in addition; one is also made when an "
        "evaluation is the best so far.",
    )
    require_recorded_digest: StrictBool = Field(
        default=False,
        description="Resume only from checkpoints whose digest is in status.recordedCheckpoints. By default a checkpoint that was committed just "
        "before its attempt ended, and so was not recorded, is used with a warning; true discards it, which also rejects checkpoints planted "
        "by others who can write to the volume.",
    )
    asynchronous: StrictBool = Field(
        default=True,
        alias="async",
        description="Write checkpoints in the background: training waits only for a copy of its state in memory. Costs host memory for "
        "each GPU's share of the state, 12 bytes for each parameter trained, divided by the number of GPUs. false: wait until it is committed.",
    )
    volume: Volume = Field(default=Volume(), description="The work volume.")
    mirror: Mirror | None = Field(
        default=None,
        description="Copy committed checkpoints to an object store, by a pod of its own. If the volume is lost, training resumes from the newest copy. "
        "keepLast and keepBest hold there too. Default: checkpoints are on the volume alone.",
    )

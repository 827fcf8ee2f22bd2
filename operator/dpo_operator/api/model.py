"""What training starts from, a model or another job's checkpoint, its reference, and what of it is trained."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StringConstraints

from dpo_operator.api.access import STORE_FOLDER
from dpo_operator.api.base import SUBDOMAIN, ApiModel, Revision, SecretKeyRef, Source

# Of a path on a claim.
_PATH = r"[^\x00-\x20\x7f-\xa0]"

# A branch, a tag or a commit of a hub repository.


class StartAdapter(ApiModel):
    """A LoRA adapter from supervised fine-tuning, not merged: the model with it is the policy's start and the reference."""

    name: Source = Field(
        description="Hub id, pvc://claim/folder, URL or folder, as model.name: PEFT's adapter_config.json and adapter_model.safetensors."
    )
    revision: Revision | None = Field(
        default=None, description="Branch, tag or commit of the adapter's hub repository."
    )
    train: Literal["same", "new"] = Field(
        default="same",
        description="same: this adapter is trained further, with its own rank, alpha and modules; the export replaces it. new: it is frozen "
        "and a new adapter is trained on top of it; the export needs it and has a copy of it.",
    )


class ReferenceModel(ApiModel):
    """Another model as the reference. It must have the same tokens; its size may differ."""

    name: Source = Field(description="Hub id, pvc://claim/folder, URL or folder, as model.name.")
    revision: Revision | None = Field(default=None, description="Branch, tag or commit of its hub repository.")


class Model(ApiModel):
    """The model to align: the policy's starting point and, for DPO, the reference."""

    name: Source = Field(
        description="Hub id (org/name), pvc://claim/folder, s3://, gs://, az:// or hf:// URL, or a folder inside the container "
        "(a local folder for `dpo run`). Weights must be safetensors; code from a hub is never run."
    )
    revision: Revision | None = Field(
        default=None,
        description="Branch, tag or, better, the 40-digit commit of the hub repository; the commit used is recorded.",
    )
    adapter: StartAdapter | None = Field(
        default=None,
        description="LoRA adapter that the policy starts from; the model with it is also the reference, unless reference is set. "
        "Its chat template is used, if it has one.",
    )
    reference: ReferenceModel | None = Field(
        default=None,
        description="Reference model. It is loaded to compute the log-probs of the pairs and dropped before the policy is loaded. Default: the "
        "policy before its first update, including model.adapter.",
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
    attention: Literal["auto", "sdpa", "flex", "eager", "flash_attention_2"] = Field(
        default="auto",
        description="Attention implementation; auto takes the model's default, SDPA where it has one; on GPUs in bf16 and fp16 packed pairs then go through one "
        "variable-length FlashAttention call, otherwise, and with sdpa, through two calls for each pair. flex: FlexAttention for packed pairs, "
        "which torch compiles when training starts; it has no backward pass on CPUs, where SDPA computes gradients. eager and "
        "flash_attention_2 train in padded rows.",
    )

    @property
    def sources(self) -> tuple[tuple[str, str, str | None], ...]:
        """What is fetched beside the data: field, source, revision."""
        others = (("adapter", self.adapter), ("reference", self.reference))
        return (
            ("spec.model.revision", self.name, self.revision),
            *((f"spec.model.{field}.revision", part.name, part.revision) for field, part in others if part is not None),
        )


class ResumeFrom(ApiModel):
    """A checkpoint of another job."""

    source: Annotated[
        str,
        StringConstraints(
            pattern=f"^(pvc://{SUBDOMAIN}(/{_PATH}*)?|{STORE_FOLDER}|[/.~]{_PATH}*)$", min_length=1, max_length=512
        ),
    ] = Field(
        description="Where it is: pvc://claim/folder, with the job's folder on its volume (status.volume); s3://bucket/path, gs://bucket/path or "
        "az://container/path, with a mirror as checkpoint.mirror makes it; or a path, for `dpo run` the work folder of another run. It is only read."
    )
    step: StrictInt | None = Field(
        default=None, ge=1, le=2**53, description="Step of the checkpoint. Default: the newest that is committed there."
    )
    digest: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$", max_length=64)] | None = Field(
        default=None,
        description="SHA-256 of its manifest, hex, as status.checkpoint.digest of the other job has it; a checkpoint with another one is refused. Default: "
        "whoever may write to the source decides what training begins with.",
    )


# The target that means all linear layers and experts.
ALL_LINEAR: Final = "all-linear"


class AdapterType(StrEnum):
    """Which weights are trained."""

    NONE = "none"
    LORA = "lora"
    QLORA = "qlora"


class Adapter(ApiModel):
    """Low-rank adapters; with type none all weights are trained."""

    type: AdapterType = Field(
        default=AdapterType.NONE,
        description="none: all weights. lora: low-rank adapters. qlora: adapters on a base in 4 bits (NF4), which every GPU holds whole.",
    )
    rank: StrictInt = Field(default=16, ge=1, le=1024, description="Rank of the update.")
    alpha: StrictFloat = Field(default=32, gt=0, le=4096, description="Scale of the update; the factor is alpha/rank.")
    dropout: StrictFloat = Field(
        default=0.0, ge=0, lt=1, description="Dropout before the adapters. DPO's first-step checks need 0."
    )
    dora: StrictBool = Field(
        default=False,
        description="Also train the magnitude of each weight column, not only its direction (DoRA, 2402.09353): closer to full weights at low "
        "ranks, slower.",
    )
    rslora: StrictBool = Field(
        default=False,
        description="Scale the update by alpha/sqrt(rank) (rsLoRA, 2312.03732), so that high ranks keep learning.",
    )
    target_modules: list[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", min_length=1, max_length=128)]
    ] = Field(
        default=["q_proj", "v_proj"],
        min_length=1,
        max_length=64,
        description="Modules that get an adapter, by the end of their name, or all-linear: all linear layers and experts, without the output "
        "layer, embeddings and routers. The log says what it covers.",
    )

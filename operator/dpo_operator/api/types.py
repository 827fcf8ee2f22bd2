"""The DPOJob resource, `dpo-operator.dev/v1alpha1`: the whole spec, put together from its parts.

Fields are snake_case in Python and camelCase in YAML. Defaults are written here and in the modules of the parts, and nowhere
else; the CRD, the trainer, `dpo run` and the reference page are made from them. A rule over several fields is in `rules.py`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StringConstraints
from pydantic.alias_generators import to_camel

from dpo_operator.api import names
from dpo_operator.api.access import Access
from dpo_operator.api.base import ApiModel
from dpo_operator.api.data import Data
from dpo_operator.api.diagnosis import Diagnosis
from dpo_operator.api.failurepolicy import FailurePolicy
from dpo_operator.api.iterative import Iterative
from dpo_operator.api.method import Method
from dpo_operator.api.model import Adapter, AdapterType, Model, ResumeFrom
from dpo_operator.api.pods import Cache, Pod
from dpo_operator.api.queue import Queue
from dpo_operator.api.sweep.grid import Sweep
from dpo_operator.api.training import Budget, Checkpoint, EarlyStopping, Evaluation, Export, Tracking, Training


class DPOJobSpec(ApiModel):
    """What to train, on what, and how."""

    model: Model = Field(description="The model to align.")
    data: Data = Field(description="Preference data.")
    method: Method = Field(default=Method(), description="The loss.")
    adapter: Adapter = Field(default=Adapter(), description="Low-rank adapters.")
    training: Training = Field(default=Training(), description="Optimization.")
    evaluation: Evaluation = Field(default=Evaluation(), description="Evaluation on held-out pairs.")
    iterative: Iterative | None = Field(
        default=None,
        description="Rounds on fresh answers of the policy: generate, judge, train, again. Default: train once, on data.train.",
    )
    sweep: Sweep | None = Field(
        default=None,
        description="Several trainings on the same prepared data, one after another, of which the best is exported. Default: one training.",
    )
    resume_from: ResumeFrom | None = Field(
        default=None,
        description="Begin with a checkpoint of another job of the same settings: its weights, optimizer state and place in the data. Default: begin at step 0. To "
        "begin with another job's weights alone, name its export in model.name.",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Stop when the evaluation no longer improves."
    )
    diagnosis: Diagnosis = Field(default=Diagnosis(), description="Rules that say why a run does not learn.")
    export: Export = Field(default=Export(), description="How the trained weights are exported.")
    tracking: Tracking = Field(default=Tracking(), description="Experiment trackers.")
    nodes: StrictInt = Field(default=1, ge=1, le=1024, description="GPU nodes; one pod runs on each.")
    gpus_per_node: StrictInt = Field(
        default=1,
        ge=0,
        le=64,
        description="GPUs, and so processes, of each pod. 0 runs one process on the CPU.",
    )
    pod: Pod = Field(default=Pod(), description="How trainer pods are placed and run.")
    access: Access | None = Field(
        default=None,
        description="How prepare and export.push reach object stores and hubs. Default: without keys, over the internet.",
    )
    queue: Queue | None = Field(
        default=None,
        description="Queue that decides when training pods are placed. Default: the operator places one gang at a time.",
    )
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="Checkpoints and the volume they are on.")
    cache: Cache | None = Field(
        default=None, description="Claim that keeps a hub's files for several jobs. Default: each job downloads."
    )
    failure_policy: FailurePolicy = Field(default=FailurePolicy(), description="When to restart.")
    suspend: StrictBool = Field(
        default=False, description="Stop the pods (after a save) and keep everything else; false resumes."
    )
    active_deadline_seconds: StrictInt | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Fail the job when it has run this long; time in which it is suspended or waits in a queue does not count. "
        "It restarts when spec.suspend becomes false again, and with a retry.",
    )
    ttl_seconds_after_finished: StrictInt | None = Field(
        default=None, ge=0, le=315_360_000, description="Delete the DPOJob this long after it finished."
    )
    clean_pod_policy: Literal["Running", "All", "None"] = Field(
        default="Running",
        description="What is deleted when the job ends. Running: pods that still run, so that the logs of the others stay. All: all "
        "pods. None: nothing, unless the deadline ended the job.",
    )
    managed_by: str = Field(
        default=names.MANAGER,
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="Controller that acts on this job; another value makes this operator leave it alone.",
    )

    @property
    def way_out(self) -> Access:
        """How prepare, and an export that is pushed, reach stores and hubs."""
        return self.access or Access()

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, with the default that depends on what is trained."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        if self.method.trains_reward_model:
            return 1e-5 if self.adapter.type is AdapterType.NONE else 1e-4
        return 5e-7 if self.adapter.type is AdapterType.NONE else 5e-6

    @property
    def micro_batch(self) -> Budget:
        """Budget of a forward and backward pass on one rank."""
        tokens = self.training.micro_batch_tokens or 2 * self.data.max_length
        return Budget(tokens, self.training.micro_batch_size)

    @property
    def eval_batch(self) -> Budget:
        """Budget of a forward pass without gradients on one rank: evaluations and reference log-probs."""
        tokens, pairs = self.micro_batch
        return Budget(
            self.evaluation.micro_batch_tokens or 2 * tokens,
            self.evaluation.micro_batch_size or (2 * pairs if pairs is not None else None),
        )

    @property
    def processes_per_node(self) -> int:
        """Ranks in each pod."""
        return max(1, self.gpus_per_node)

    @property
    def generators_per_node(self) -> int:
        """Processes of each pod that generates; each has one copy of the model."""
        parallel = self.iterative.generation.tensor_parallel if self.iterative is not None else 1
        return max(1, self.gpus_per_node // parallel)

    @property
    def generates_with_vllm(self) -> bool:
        """Whether pods that generate have vLLM's image."""
        return self.iterative is not None and self.iterative.generation.engine == "vllm"

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.processes_per_node

    @property
    def eval_every_steps(self) -> int:
        """Optimizer steps between two evaluations."""
        return self.evaluation.every_steps or self.checkpoint.every_steps

    @property
    def selection_metric(self) -> str:
        """Evaluation metric by which the best checkpoint is chosen, as earlyStopping.metric has it."""
        return self.early_stopping.metric if self.early_stopping is not None else "eval_loss"

    @property
    def exports_best(self) -> bool:
        """Whether the best checkpoint is exported instead of the last."""
        wanted = self.export.checkpoint or ("best" if self.early_stopping is not None else "last")
        return wanted == "best"

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
    annotations: dict[str, str] = {}
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    finalizers: list[str] = []


class DPOJob(BaseModel):
    """A DPOJob without its status: the file that a user writes, and the job file that the trainer reads."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, alias_generator=to_camel)

    api_version: Literal["dpo-operator.dev/v1alpha1"] = names.API_VERSION  # type: ignore[assignment]
    kind: Literal["DPOJob"] = "DPOJob"
    metadata: ObjectMeta
    spec: DPOJobSpec

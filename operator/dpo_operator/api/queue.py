"""Queues of other projects, which decide when a job's training pods are placed."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictInt, StringConstraints

from dpo_operator.api.base import SUBDOMAIN, ApiModel, LabelKey

# Names that must fit a label's value.
QueueName = Annotated[str, StringConstraints(pattern=f"^{SUBDOMAIN}$", min_length=1, max_length=63)]


class QueueTopology(ApiModel):
    """How close together the queue places the ranks. It checks room for all of them before it admits the first."""

    pack_by: LabelKey | None = Field(
        default=None, description="Kueue: node label whose value all ranks share; a level of its Topology."
    )
    highest_tier: StrictInt | None = Field(
        default=None,
        ge=1,
        le=32,
        description="Volcano, with required: highest tier of HyperNodes that the ranks may need.",
    )
    required: StrictBool = Field(
        default=False, description="Wait for nodes that fit; false prefers such nodes and accepts others."
    )


class Queue(ApiModel):
    """Which queue, of which project. Only training is queued: it's what holds GPUs."""

    kind: Literal["Kueue", "Volcano", "SchedulerPlugins", "KAI"] = Field(
        description="Kueue: the training Job is made suspended and carries the label of a LocalQueue. Volcano, SchedulerPlugins: a PodGroup is "
        "made and the pods use that project's scheduler. KAI: the training Job and its pods carry the label of a queue, and the pods use KAI's scheduler.",
    )
    name: QueueName | None = Field(
        default=None,
        description="Kueue: LocalQueue in the job's namespace. Volcano: queue; its own default where none is named. KAI: queue.",
    )
    priority_class: QueueName | None = Field(
        default=None,
        description="Kueue: WorkloadPriorityClass. Volcano: PriorityClass of the PodGroup. Pods have pod.priorityClassName.",
    )
    topology: QueueTopology | None = Field(
        default=None,
        description="Topology request to Kueue or Volcano, instead of pod.topology. Default: none.",
    )

"""Queues of other projects, which decide when a job's training pods are placed."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dpo_operator.api.base import SUBDOMAIN, ApiModel

# Names that must fit a label's value.
QueueName = Annotated[str, StringConstraints(pattern=f"^{SUBDOMAIN}$", min_length=1, max_length=63)]


class Queue(ApiModel):
    """Which queue, of which project. Only training is queued: it's what holds GPUs."""

    kind: Literal["Kueue", "Volcano", "SchedulerPlugins"] = Field(
        description="Kueue: the training Job is made suspended and carries the label of a LocalQueue. Volcano, SchedulerPlugins: a PodGroup is "
        "made and the pods use that project's scheduler.",
    )
    name: QueueName | None = Field(
        default=None,
        description="Kueue: LocalQueue in the job's namespace. Volcano: queue; its own default where none is named.",
    )
    priority_class: QueueName | None = Field(
        default=None,
        description="Kueue: WorkloadPriorityClass. Volcano: PriorityClass of the PodGroup. Pods have pod.priorityClassName.",
    )

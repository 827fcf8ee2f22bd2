"""Job of one copy of the checkpoints to the mirror."""

from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import RecordedCheckpoints
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata
from dpo_operator.builders.pod import TrainerImage, build_pod_template

# A copy that takes longer is ended, and the next one continues it.
LONGEST_SECONDS = 6 * 3600


def build_mirror_job(job: DPOJob, number: int, image: TrainerImage, recorded: RecordedCheckpoints) -> Manifest:
    """Job that copies once. number: of the copy, from 1. recorded: the checkpoints that may be copied.

    A failed copy is not repeated by Kubernetes: the operator makes another one when there is another checkpoint.
    """
    spec: dict[str, Any] = {
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "activeDeadlineSeconds": LONGEST_SECONDS,
        "template": build_pod_template(job, "mirror", number, image, recorded),
    }
    name = names.child_job_name(job.metadata.name, "mirror", number)
    metadata = build_metadata(job, name, phase="mirror", attempt=number)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}

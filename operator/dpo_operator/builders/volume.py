"""The PersistentVolumeClaim for a job that brings none."""

from typing import Any

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata


def claim_name(job: DPOJob) -> str:
    """Claim that the job's files are on: its own, or the one it names."""
    return job.spec.checkpoint.volume.claim_name or names.volume_claim_name(job.metadata.name)


def source_claims(job: DPOJob) -> list[str]:
    """Claims that models, data and another job's checkpoint are read from (pvc://claim/path), each once, in a fixed order."""
    spec = job.spec
    rounds = spec.iterative.sources if spec.iterative is not None else ()
    sources = [*(source for _, source, _ in spec.model.sources), *(data.source for data in spec.data.datasets), *rounds]
    sources += [spec.resume_from.source] if spec.resume_from is not None else []
    claims = [s.removeprefix("pvc://").partition("/")[0] for s in sources if s.startswith("pvc://")]
    return list(dict.fromkeys(claims))


def input_claims(job: DPOJob) -> list[str]:
    """Claims that prepare mounts, without the one with the job's files."""
    cache = [job.spec.cache.claim_name] if job.spec.cache is not None else []
    return [claim for claim in dict.fromkeys([*source_claims(job), *cache]) if claim != claim_name(job)]


def build_claim(job: DPOJob, token: str) -> Manifest:
    """Claim for the work volume. token: by which the operator knows it again. With retention Delete the job owns it, so that it is deleted with the job."""
    volume = job.spec.checkpoint.volume
    spec: dict[str, Any] = {
        "accessModes": [job.spec.access_mode],
        "resources": {"requests": {"storage": volume.size}},
    }
    if volume.storage_class_name is not None:
        spec["storageClassName"] = volume.storage_class_name
    metadata = build_metadata(job, claim_name(job), owned=volume.retention == "Delete")
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata | {"annotations": {names.ANNOTATION_CLAIM_TOKEN: token}},
        "spec": spec,
    }

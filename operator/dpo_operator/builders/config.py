"""The job file that every trainer container reads, as a ConfigMap."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.data import Template
from dpo_operator.api.diagnosis import Diagnosis
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata

JOB_FILE_KEY = "job.json"

# Settings of the operator alone, excluded from the job file: changing the first ones needs no new ConfigMap, and earlier trainer images, which
# refuse fields that they don't know, can read the file of a job that has the others.
_OPERATOR_ONLY: dict[str, Any] = {
    **dict.fromkeys(
        ("suspend", "active_deadline_seconds", "ttl_seconds_after_finished", "clean_pod_policy", "managed_by"), True
    ),
    "pod": {"annotations", "labels", "gpu_resource", "resource_claims", "generate_image"},
}


def job_file(job: DPOJob) -> str:
    """The job with its defaults as JSON, without later fields that it does not use: earlier trainer images refuse fields that they don't know."""
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_OPERATOR_ONLY)
    for part, field, default in _later_fields(spec):
        if part[field] == default:
            del part[field]
    metadata = job.metadata.model_dump(mode="json", by_alias=True, include={"name", "namespace", "uid"})
    document = {"apiVersion": job.api_version, "kind": job.kind, "metadata": metadata, "spec": spec}
    return json.dumps(document, sort_keys=True, ensure_ascii=False)


def _later_fields(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Fields that the first trainer images of this API version don't know: part of the job file, name, default. Null is left out anyway."""
    yield spec, "diagnosis", Diagnosis().model_dump(mode="json", by_alias=True)
    yield spec["training"], "hierarchicalPartition", False
    yield spec["training"], "gradientReduction", "fp32"
    if "iterative" in spec:
        yield spec["iterative"]["generation"], "tensorParallel", 1
    data = spec["data"]
    yield data, "template", Template().model_dump(mode="json", by_alias=True)
    for dataset in (data["train"], *data["mixture"], *([data["eval"]] if "eval" in data else [])):
        yield dataset, "ignoreColumns", []
        yield dataset["columns"], "annotators", []


def job_file_digest(job: DPOJob) -> str:
    """SHA-256 of the job file, hex. Pods refuse another file."""
    return hashlib.sha256(job_file(job).encode()).hexdigest()


def config_name(job: DPOJob) -> str:
    """ConfigMap with the job as it is now: a job whose size changes, or an operator that writes the file otherwise, gets another
    one, and running pods keep theirs."""
    return names.config_name(job.metadata.name, job_file_digest(job))


def is_config_map(job: DPOJob, raw: Mapping[str, Any]) -> bool:
    """Whether a ConfigMap has the job file and nothing else, and can't be changed."""
    return (
        raw.get("data") == {JOB_FILE_KEY: job_file(job)} and not raw.get("binaryData") and raw.get("immutable") is True
    )


def build_config_map(job: DPOJob) -> Manifest:
    """Immutable ConfigMap with the job file.

    It's JSON on a mounted file, never arguments or a shell, so that no character in a field has a meaning on the way.
    """
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(job, config_name(job)),
        "immutable": True,
        "data": {JOB_FILE_KEY: job_file(job)},
    }

"""The job file that every trainer container reads, as a ConfigMap."""

import json

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata

JOB_FILE_KEY = "job.json"


def build_config_map(job: DPOJob) -> Manifest:
    """Immutable ConfigMap with the job and all its defaults.

    It's JSON on a mounted file, never arguments or a shell, so that no character in a field has a meaning on the way.
    """
    metadata = {"name", "namespace", "uid", "generation"}
    document = job.model_dump(
        mode="json", by_alias=True, exclude_none=True, include={"api_version", "kind", "spec"}
    ) | {"metadata": job.metadata.model_dump(mode="json", by_alias=True, include=metadata)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(job, names.config_name(job.metadata.name)),
        "immutable": True,
        "data": {JOB_FILE_KEY: json.dumps(document, sort_keys=True, ensure_ascii=False)},
    }

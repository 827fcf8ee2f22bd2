"""The headless Service that gives ranks their DNS names."""

from collections.abc import Mapping
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata, rank_labels
from dpo_operator.builders.ports import ports_of


def build_service(job: DPOJob) -> Manifest:
    """Headless Service over the training pods.

    publishNotReadyAddresses: ranks must find the master before anything is ready.
    """
    ports = ports_of(job)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(job, names.service_name(job.metadata.name), phase="train"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": rank_labels(job),
            "ports": [
                {"name": "master", "port": ports.master, "protocol": "TCP"},
                {"name": names.METRICS_PORT_NAME, "port": ports.metrics, "protocol": "TCP"},
            ],
        },
    }


def leads_alike(raw: Mapping[str, Any], wanted: Manifest) -> bool:
    """Whether a Service leads where the wanted one does: anybody can give it our owner, and it would send ranks to somebody else."""
    spec, wanted = raw["spec"], wanted["spec"]
    own = all(spec.get(key) == wanted[key] for key in ("selector", "clusterIP"))
    return own and spec.get("type") in (None, "ClusterIP") and not spec.get("externalIPs")

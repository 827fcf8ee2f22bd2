"""The headless Service that gives ranks their DNS names."""

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import Manifest, build_metadata


def build_service(job: DPOJob) -> Manifest:
    """Headless Service over the training pods.

    publishNotReadyAddresses: ranks must find the master before anything is ready.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(job, names.service_name(job.metadata.name), phase="train"),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_UID: job.metadata.uid, names.LABEL_PHASE: "train"},
            "ports": [
                {"name": "master", "port": names.MASTER_PORT, "protocol": "TCP"},
                {"name": names.METRICS_PORT_NAME, "port": names.METRICS_PORT, "protocol": "TCP"},
            ],
        },
    }

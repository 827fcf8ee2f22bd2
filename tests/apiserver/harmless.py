"""What child objects may hold, whatever the DPOJob that they were made for asks."""

import json
import re
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.pods import RESERVED_ENV
from dpo_operator.builders.environment import TEMPORARY

Json = dict[str, Any]
# $(NAME) is expanded by Kubernetes unless its $ is written $$.
EXPANDED = re.compile(r"(?<!\$)(?:\$\$)*\$\(")
OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
VOLUMES = {"persistentVolumeClaim", "configMap", "emptyDir", "secret"}
MOUNTS = (names.WORK_DIR, "/etc/dpo", TEMPORARY, "/dev/shm", "/etc/dpo-token", "/etc/dpo-wandb", names.CACHE_DIR)
POD_FIELDS = {
    "restartPolicy", "automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds", "securityContext",
    "containers", "volumes", "tolerations", "priorityClassName", "imagePullSecrets", "nodeSelector", "runtimeClassName", "affinity",
    "subdomain", "dnsPolicy", "schedulerName", "topologySpreadConstraints",
}  # fmt: skip
OURS = (
    "dpo-operator.dev/",
    "app.kubernetes.io/",
    "kueue.x-k8s.io/",
    "batch.kubernetes.io/",
    "job-name",
    "controller-uid",
)


def problems(child: Json, job: Json) -> list[str]:
    """Everything about a child object that could harm others; empty for a harmless one."""
    metadata, found = child["metadata"], []
    if metadata["namespace"] != job["metadata"]["namespace"]:
        found.append(f"namespace {metadata['namespace']}")
    if metadata["labels"][names.LABEL_UID] != job["metadata"]["uid"]:
        found.append("labels of another job")
    owners = {owner["uid"] for owner in metadata.get("ownerReferences", [])}
    if owners - {job["metadata"]["uid"]}:
        found.append(f"owners {owners}")
    found += [f"label {key}" for key in metadata["labels"] if not key.startswith(OURS)]
    found += [f"annotation {key}" for key in metadata.get("annotations", {}) if not key.startswith(OURS)]
    if child["kind"] == "Job":
        template = child["spec"]["template"]
        found += [f"pod label {key}" for key in template["metadata"]["labels"] if not key.startswith(OURS)]
        found += pod_problems(template["spec"], job)
    if child["kind"] == "ConfigMap" and (
        not child.get("immutable") or json.loads(child["data"]["job.json"])["metadata"]["uid"] != job["metadata"]["uid"]
    ):
        found.append("another job's file")
    return [f"{child['kind']} {metadata['name']}: {problem}" for problem in found]


def pod_problems(pod: Json, job: Json) -> list[str]:
    """The same of a pod's spec, as the API server holds it."""
    found = [f"field {key}" for key in pod if key not in POD_FIELDS and pod[key]]
    if pod.get("automountServiceAccountToken") is not False:
        found.append("a token")
    if pod["securityContext"].get("runAsNonRoot") is not True or pod["securityContext"]["runAsUser"] == 0:
        found.append("root")
    for volume in pod["volumes"]:
        kinds = set(volume) - {"name"}
        found += [f"volume {kind}" for kind in kinds - VOLUMES]
        for kind, key in (("persistentVolumeClaim", "claimName"), ("secret", "secretName"), ("configMap", "name")):
            if kind in volume and not OBJECT_NAME.fullmatch(volume[kind][key]):
                found.append(f"{kind} {volume[kind][key]}")
    if len(pod["containers"]) != 1:
        return [*found, "more containers"]
    return found + container_problems(pod["containers"][0], job)


def container_problems(container: Json, job: Json) -> list[str]:
    """The same of its only container."""
    found = []
    context = container["securityContext"]
    if context.get("privileged") or context["allowPrivilegeEscalation"] or not context["readOnlyRootFilesystem"]:
        found.append("privileges")
    if context["capabilities"] != {"drop": ["ALL"]}:
        found.append(f"capabilities {context['capabilities']}")
    if container["command"][:3] != ["python", "-m", "dpo_trainer"] or len(container["command"]) != 4:
        found.append(f"command {container['command']}")
    found += [
        f"container field {key}"
        for key in ("args", "envFrom", "lifecycle", "volumeDevices", "workingDir")
        if key in container
    ]
    for mount in container["volumeMounts"]:
        claims = mount["mountPath"].startswith(f"{names.CLAIMS_DIR}/") and ".." not in mount["mountPath"]
        if mount["mountPath"] not in MOUNTS and not claims:
            found.append(f"mount {mount['mountPath']}")
        folder = names.CACHE_FOLDER if mount["mountPath"] == names.CACHE_DIR else job["metadata"]["uid"]
        if mount.get("subPath", job["metadata"]["uid"]) != folder:
            found.append(f"folder {mount['subPath']}")
    asked = {variable["name"] for variable in job["spec"]["pod"].get("env", [])}
    seen: list[str] = []
    for variable in container["env"]:
        seen.append(variable["name"])
        if EXPANDED.search(variable.get("value", "")):
            found.append(f"{variable['name']} is expanded")
        if "valueFrom" in variable and set(variable["valueFrom"]) != {"fieldRef"}:
            found.append(f"{variable['name']} comes from elsewhere")
        if variable["name"] in asked and re.search(RESERVED_ENV, variable["name"]):
            found.append(f"{variable['name']} is set")
    if len(seen) != len(set(seen)):
        found.append("a variable twice")
    return found

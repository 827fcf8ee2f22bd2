"""Pods that copy checkpoints to the mirror: keys and a way out for them, none for the ranks."""

from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.api.reports import RecordedCheckpoints
from dpo_operator.builders.guards import build_guards
from dpo_operator.builders.job import build_child_job
from dpo_operator.builders.mirror import build_mirror_job
from dpo_operator.builders.networks import CLOSED
from dpo_operator.builders.pod import TrainerImage
from tests.unit.planning.build import UID, a_job

pytestmark = pytest.mark.unit

IMAGE = TrainerImage("registry.example/trainer:1")
KNOWN = RecordedCheckpoints(last_attempt=1)
MIRROR = {"checkpoint": {"mirror": {"to": "s3://checkpoints/run", "credentialsSecretRef": {"name": "keeper"}}}}
ACCESS = {"access": {"credentialsSecretRef": {"name": "reader"}, "caBundleRef": {"name": "ca"}}}


def mirror_pod(**spec: Any) -> dict[str, Any]:
    pod: dict[str, Any] = build_mirror_job(a_job(**spec), 3, IMAGE, KNOWN)["spec"]["template"]["spec"]
    return pod


def secrets(pod: dict[str, Any]) -> dict[str, str]:
    """Where each Secret is mounted."""
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    return {v["secret"]["secretName"]: mounts[v["name"]] for v in pod["volumes"] if "secret" in v}


def test_a_copy_reads_the_volume_and_holds_the_mirrors_keys() -> None:
    pod = mirror_pod(**MIRROR, **ACCESS)
    assert secrets(pod) == {"keeper": names.MIRROR_CREDENTIALS_DIR}
    work = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "work")
    assert (work["readOnly"], work["subPath"]) == (True, UID)
    assert pod["containers"][0]["ports"] == []
    assert "ca" in {volume["name"] for volume in pod["volumes"]}
    assert not pod["automountServiceAccountToken"]
    shared = mirror_pod(checkpoint={"mirror": {"to": "s3://checkpoints/run"}}, **ACCESS)
    assert secrets(shared) == {"reader": names.CREDENTIALS_DIR}


def test_ranks_get_no_key_of_the_mirror_and_no_way_out() -> None:
    job = a_job(**MIRROR, **ACCESS, pod={"serviceAccountName": "reader"})
    for phase in ("train", "export"):
        template = build_child_job(job, phase, 1, IMAGE, KNOWN)["spec"]["template"]["spec"]
        assert secrets(template) == {}
        assert "serviceAccountName" not in template
    # A first prepare does not get it either; one that fetches does.
    template = build_child_job(job, "prepare", 1, IMAGE)["spec"]["template"]["spec"]
    assert secrets(template) == {"reader": names.CREDENTIALS_DIR}
    template = build_child_job(job, "prepare", 2, IMAGE, KNOWN)["spec"]["template"]["spec"]
    assert secrets(template) == {"reader": names.CREDENTIALS_DIR, "keeper": names.MIRROR_CREDENTIALS_DIR}


def test_the_policy_of_a_copy_opens_the_way_for_it_alone() -> None:
    job = a_job(**MIRROR)
    policies = {g["metadata"]["name"]: g["spec"] for g in build_guards(job, "train") if g["kind"] == "NetworkPolicy"}
    assert policies["pairs-mirror"]["podSelector"] == {
        "matchLabels": {names.LABEL_UID: UID, names.LABEL_PHASE: "mirror"}
    }
    assert policies["pairs-mirror"]["ingress"] == []
    assert {"to": CLOSED.outside()} in policies["pairs-mirror"]["egress"]
    without = {g["metadata"]["name"]: g["spec"] for g in build_guards(a_job(), "train") if g["kind"] == "NetworkPolicy"}
    assert "pairs-mirror" not in without
    assert policies["pairs-train"] == without["pairs-train"]
    assert "pairs-mirror" not in {g["metadata"]["name"] for g in build_guards(job, "prepare")}


def test_a_copy_runs_on_the_node_of_a_volume_of_one_node() -> None:
    affinity = mirror_pod(**MIRROR, nodes=1)["affinity"]["podAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == {names.LABEL_UID: UID}
    gpu = {"key": names.GPU, "operator": "Exists"}
    assert gpu in mirror_pod(**MIRROR, nodes=1)["tolerations"]
    assert "affinity" not in mirror_pod(**MIRROR)
    assert gpu not in mirror_pod(**MIRROR)["tolerations"]
    # It holds no GPU and no place in a queue.
    queued = a_job(**MIRROR, queue={"kind": "Kueue", "name": "team"})
    child = build_mirror_job(queued, 3, IMAGE, KNOWN)
    assert not [label for label in child["metadata"]["labels"] if "kueue" in label]
    assert names.GPU not in str(child["spec"]["template"]["spec"]["containers"][0]["resources"])

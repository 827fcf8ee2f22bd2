"""Objects of others that look like a job's own, in a real API server, before a real operator."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.common import build_owner_reference
from dpo_operator.builders.config import build_config_map
from dpo_operator.builders.volume import build_claim
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, last_words, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver

NAMESPACE = "strangers"


@pytest.fixture(scope="module")
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Hands:
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    return Hands(dpojobs, NAMESPACE)


@pytest.fixture(scope="module")
def operator(
    hands: Hands, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    log: Path = tmp_path_factory.mktemp("strangers") / "operator.log"
    with running(OperatorProcess(control_plane.kubeconfig, NAMESPACE, log)) as process:
        yield process


def plant(hands: Hands, kind: str, manifest: dict[str, Any]) -> dict[str, Any]:
    answer = hands.requests.send("POST", hands.path(kind), {"apiVersion": "v1"} | manifest)
    assert answer.accepted, answer.message
    return answer.body


def planted_pod(hands: Hands, like: dict[str, Any], name: str, owner: list[dict[str, Any]], attempt: str) -> Any:
    """A pod with the labels of a rank."""
    labels = like["metadata"]["labels"] | {names.LABEL_ATTEMPT: attempt}
    labels = {key: value for key, value in labels.items() if not key.startswith("batch.")}
    labels[names.COMPLETION_INDEX] = "0"
    metadata = {"name": name, "labels": labels, "ownerReferences": owner, "finalizers": ["example.org/stay"]}
    container = {"name": "trainer", "image": "example.org/i"}
    return plant(hands, "pods", {"kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})


def test_planted_job_file_is_not_used(hands: Hands, operator: OperatorProcess) -> None:
    """It has the right name and owner, and other content."""
    operator.kill()
    raw = hands.apply("configured")
    job = DPOJob.model_validate(raw)
    own = build_config_map(job)
    planted = own | {"data": {"job.json": own["data"]["job.json"].replace("org/", "evil/")}}
    plant(hands, "configmaps", planted)
    operator.start()
    wait_until("conflict", lambda: hands.condition("configured", "Running") == ("False", "NameConflict"))
    assert not hands.children("jobs", "configured")
    hands.delete("configmaps", own["metadata"]["name"])
    hands.pods("configured", "prepare", 1, 1)
    made = hands.get("configmaps", own["metadata"]["name"])
    assert made is not None
    assert (made["data"], made["immutable"]) == (own["data"], True)


def test_planted_claim_is_not_used(hands: Hands, operator: OperatorProcess) -> None:
    """It has the right name, labels and owner, and is there before the operator's."""
    operator.kill()
    raw = hands.apply("claimed")
    own = build_claim(DPOJob.model_validate(raw), "guessed")
    own["metadata"]["ownerReferences"] = [build_owner_reference(DPOJob.model_validate(raw))]
    plant(hands, "persistentvolumeclaims", own)
    operator.start()
    wait_until("conflict", lambda: hands.condition("claimed", "Running") == ("False", "NameConflict"))
    assert "checkpoint.volume.claimName: claimed-work" in hands.status("claimed")["message"]
    assert not hands.children("jobs", "claimed")
    hands.patch("persistentvolumeclaims", "claimed-work", {"metadata": {"finalizers": None}})
    hands.delete("persistentvolumeclaims", "claimed-work")
    hands.pods("claimed", "prepare", 1, 1)
    made = hands.get("persistentvolumeclaims", "claimed-work")
    assert made is not None
    volume = wait_until("volume", lambda: hands.status("claimed").get("volume"))
    assert volume["claimUid"] == made["metadata"]["uid"]


def test_pods_of_strangers_decide_nothing(hands: Hands, operator: OperatorProcess) -> None:
    config = plant(hands, "configmaps", {"kind": "ConfigMap", "metadata": {"name": "theirs"}})
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "theirs", "uid": config["metadata"]["uid"]}
    hands.apply("victim")
    hands.run_phase("victim", "prepare")
    ranks = hands.pods("victim", "train", 1, 2)
    for rank in ranks:
        hands.start(rank)
    wait_until("training", lambda: hands.status("victim").get("state") == "Training")
    progress = {"phase": "train", "attempt": 1, "step": 9}
    progress["checkpoint"] = {"step": 9, "path": "c", "digest": "ee" * 32, "attempt": 1, "time": 1.0}
    owned = [owner | {"controller": True}]
    failed = planted_pod(hands, ranks[0], "planted-failure", owned, "1")
    hands.end(failed, 78, last_words(78, "train", 1, message="planted", progress=progress))
    planted_pod(hands, ranks[0], "planted-block", [], "99")
    hands.end(ranks[1], 137)
    # The restart is for its own rank, and no planted pod is waited for.
    again = wait_until(
        "attempt 2", lambda: hands.children("jobs", "victim")[-1]["metadata"]["name"] == "victim-train-2"
    )
    assert again
    for pod in ranks:
        hands.delete("pods", pod["metadata"]["name"], gracePeriodSeconds=0)
    hands.run_phase("victim", "train", 2)
    hands.run_phase("victim", "export", export_path="export")
    wait_until("end", lambda: hands.status("victim").get("state") == "Complete")
    status = hands.status("victim")
    assert [(r["reason"], r["attempt"]) for r in status["restartHistory"]] == [("Killed", 1)]
    assert "ee" * 32 not in json.dumps(status)
    for name in ("planted-failure", "planted-block"):
        kept = hands.get("pods", name)
        assert kept is not None
        assert "deletionTimestamp" not in kept["metadata"]
        hands.patch("pods", name, {"metadata": {"finalizers": None}})
        hands.delete("pods", name, gracePeriodSeconds=0)

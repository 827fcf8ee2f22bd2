"""Claims of jobs against a real API server: they grow where the StorageClass lets them, and nothing is lost silently."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, bind, last_words, make_storage_class, wait_until
from tests.apiserver.operator_process import OperatorProcess, running
from tests.apiserver.test_operator_life import Rank
from tests.cluster.rig.control_plane import ControlPlane

pytestmark = pytest.mark.apiserver

NAMESPACE = "volumes"
GIB = 2**30


@pytest.fixture(scope="module")
def hands(control_plane: ControlPlane, dpojobs: Requests) -> Hands:
    control_plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for name, grows in (("growing", True), ("fixed", False)):
        make_storage_class(control_plane, name, grows=grows)
    return Hands(dpojobs, NAMESPACE)


@pytest.fixture(scope="module")
def operator(
    hands: Hands, control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    log: Path = tmp_path_factory.mktemp("volumes") / "operator.log"
    # As the chart installs it: claims need their owner's label.
    strict = {"DPO_ALLOW": "{}"}
    with running(OperatorProcess(control_plane.kubeconfig, NAMESPACE, log, settings=strict)) as process:
        yield process


def volume(kind: str, size: str = "1Gi", **more: str) -> dict[str, Any]:
    return {"volume": {"size": size, "storageClassName": kind} | more}


def grow(hands: Hands, job: str, size: str) -> None:
    hands.patch("dpojobs", job, {"spec": {"checkpoint": {"volume": {"size": size}}}})


@pytest.mark.fault(26, 42)
def test_a_claim_is_waited_for_and_grows_with_the_spec(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    hands.apply("grows", nodes=1, checkpoint=volume("growing"))
    wait_until("pending volume", lambda: hands.condition("grows", "Running") == ("False", "VolumePending"))
    bind(control_plane, hands, "grows-work", size="1Gi", kind="growing")
    (pod,) = hands.pods("grows", "prepare", 1, 1)
    wait_until("healing", lambda: hands.condition("grows", "Running")[1] != "VolumePending")
    assert hands.condition("grows", "VolumeTooSmall") == ("", "")
    grow(hands, "grows", "2Gi")
    wait_until("request", lambda: _requested(hands, "grows-work") == "2Gi")
    wait_until("condition", lambda: hands.condition("grows", "VolumeTooSmall") == ("True", "ExpansionRequested"))
    # What a resizer does in the end.
    hands.patch("persistentvolumeclaims", "grows-work/status", {"status": {"capacity": {"storage": "2Gi"}}})
    wait_until("size", lambda: hands.condition("grows", "VolumeTooSmall") == ("False", "LargeEnough"))
    about = ("ExpansionRequested", "LargeEnough", "ExpansionRefused")
    wait_until("event", lambda: "LargeEnough" in hands.events("grows"))
    assert [e for e in hands.events("grows") if e in about] == ["ExpansionRequested", "LargeEnough"]
    assert hands.pods("grows", "prepare", 1, 1)[0]["metadata"]["uid"] == pod["metadata"]["uid"]


def _requested(hands: Hands, claim: str) -> str:
    found = hands.get("persistentvolumeclaims", claim)
    assert found is not None
    return str(found["spec"]["resources"]["requests"]["storage"])


@pytest.mark.fault(42)
def test_a_storage_class_that_refuses_stops_nothing(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    hands.apply("stays", nodes=1, checkpoint=volume("fixed"))
    bind(control_plane, hands, "stays-work", size="1Gi", kind="fixed")
    hands.pods("stays", "prepare", 1, 1)
    grow(hands, "stays", "2Gi")
    wait_until("refusal", lambda: hands.condition("stays", "VolumeTooSmall") == ("True", "ExpansionRefused"))
    (condition,) = [c for c in hands.status("stays")["conditions"] if c["type"] == "VolumeTooSmall"]
    assert "storageclass that provisions the pvc must support resize" in condition["message"]
    assert _requested(hands, "stays-work") == "1Gi"
    hands.run_phase("stays", "prepare")
    hands.pods("stays", "train", 1, 1)
    assert hands.status("stays")["restarts"] == 0
    wait_until("event", lambda: "ExpansionRefused" in hands.events("stays"))
    assert hands.events("stays").count("ExpansionRefused") == 1
    # The refusal is an answer, not an error; a status that was written on an older version of the spec is another matter.
    errors = [line for line in operator.log.read_text().splitlines() if "stays" in line and "trying again" in line]
    assert not [line for line in errors if "persistentvolumeclaims" in line]


def test_a_retained_claim_is_used_again_by_a_job_that_names_it(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    old = hands.apply("twice", nodes=1, checkpoint=volume("growing", "2Gi"))
    bind(control_plane, hands, "twice-work", size="2Gi", kind="growing")
    hands.pods("twice", "prepare", 1, 1)
    hands.delete("dpojobs", "twice")
    wait_until("no pods", lambda: not hands.children("pods", "twice"))
    # Without being asked to, the operator uses no claim that is there already: anyone could have made it.
    hands.apply("twice", nodes=1, checkpoint=volume("growing", "2Gi"))
    wait_until("conflict", lambda: hands.condition("twice", "Running") == ("False", "NameConflict"))
    assert "checkpoint.volume.claimName: twice-work" in hands.status("twice")["message"]
    assert not hands.children("jobs", "twice")
    hands.delete("dpojobs", "twice")
    wait_until("no job", lambda: hands.get("dpojobs", "twice") is None)
    hands.apply("twice", nodes=1, checkpoint={"volume": {"claimName": "twice-work"}})
    (pod,) = hands.pods("twice", "prepare", 1, 1)
    said = wait_until("event", lambda: [e for e in _events(hands, "twice") if e["reason"] == "ClaimReused"])
    assert len(said) == 1
    (mount,) = [m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == "work"]
    assert mount["subPath"] == pod["metadata"]["labels"][names.LABEL_UID] != old["metadata"]["uid"]
    hands.delete("dpojobs", "twice")
    wait_until("no pods", lambda: not hands.children("pods", "twice"))
    assert hands.get("persistentvolumeclaims", "twice-work") is not None


def _events(hands: Hands, job: str) -> list[dict[str, Any]]:
    path = f"{hands.path('events')}?fieldSelector=involvedObject.name={job},involvedObject.kind={names.KIND}"
    found: list[dict[str, Any]] = hands.requests.send("GET", path).body["items"]
    return found


@pytest.mark.fault(33)
def test_two_jobs_on_one_claim_have_folders_of_their_own(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    spec = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fixed",
    }
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    labels = {names.LABEL_ALLOW_USE: "true"}
    shared = {"name": "shared", "namespace": NAMESPACE, "labels": labels}
    control_plane.apply(claim | {"metadata": shared, "spec": spec})
    folders = set()
    for job in ("one", "other"):
        uid = hands.apply(job, nodes=1, checkpoint={"volume": {"claimName": "shared", "size": "5Gi"}})["metadata"][
            "uid"
        ]
        (pod,) = hands.pods(job, "prepare", 1, 1)
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        folders |= {m["subPath"] for m in mounts if m["name"] == "work"}
        wait_until("volume", lambda job=job, uid=uid: hands.status(job).get("volume", {}).get("folder") == uid)
        wait_until("warning", lambda job=job: hands.condition(job, "VolumeTooSmall") == ("True", "ClaimSmaller"))
    assert len(folders) == 2
    # What a user brought is not ours to change or to delete.
    assert _requested(hands, "shared") == "1Gi"
    for job in ("one", "other"):
        hands.delete("dpojobs", job)
    assert hands.get("persistentvolumeclaims", "shared") is not None


def test_a_claim_is_used_only_when_its_owner_lets_jobs_use_it(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "fixed",
    }
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec}
    for name in ("database", "outputs"):
        control_plane.apply(claim | {"metadata": {"name": name, "namespace": NAMESPACE}})
    hands.apply("reads", nodes=1, data={"train": {"source": "pvc://database/pairs.jsonl"}})
    hands.apply("writes", nodes=1, checkpoint={"volume": {"claimName": "outputs"}})
    hands.apply("early", nodes=1, cache={"claimName": "made-later"})
    for job, reason in (("reads", "NotAllowed"), ("writes", "NotAllowed"), ("early", "VolumeNotFound")):
        wait_until(job, lambda job=job, reason=reason: hands.condition(job, "Running") == ("False", reason))
        assert hands.children("jobs", job) == []
    for name in ("database", "outputs"):
        hands.patch("persistentvolumeclaims", name, {"metadata": {"labels": {names.LABEL_ALLOW_USE: "true"}}})
    (pod,) = hands.pods("reads", "prepare", 1, 1)
    volumes = {v["name"]: v.get("persistentVolumeClaim") for v in pod["spec"]["volumes"]}
    assert volumes["claim-0"] == {"claimName": "database", "readOnly": True}
    assert hands.pods("writes", "prepare", 1, 1)
    for job in ("reads", "writes", "early"):
        hands.delete("dpojobs", job)


def test_a_volume_that_fills_up_is_told_before_a_save_fails(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    hands.apply("fills", nodes=1)
    (pod,) = hands.pods("fills", "prepare", 1, 1)
    room = {"total": 100 * GIB, "free": 50 * GIB}
    rank = Rank("127.0.0.31", phase="prepare", max_steps=0, volume=room)
    try:
        hands.start(pod, rank.ip)
        wait_until("size", lambda: hands.status("fills").get("volume", {}).get("freeBytes") == 50 * GIB)
        assert hands.condition("fills", "VolumeNearlyFull") == ("", "")
        rank.progress["volume"] = room | {"free": 49 * GIB}
        rank.progress["step"] = 1
        wait_until("news", lambda: hands.status("fills").get("progress", {}).get("step") == 1)
        assert hands.status("fills")["volume"]["freeBytes"] == 50 * GIB
        rank.progress["volume"] = room | {"free": 20 * GIB, "checkpoint": 30 * GIB}
        wait_until("warning", lambda: hands.condition("fills", "VolumeNearlyFull") == ("True", "LowSpace"))
    finally:
        rank.close()
    wait_until("event", lambda: "LowSpace" in hands.events("fills"))
    labels = 'dpojob="fills",namespace="volumes"'
    wait_until("metric", lambda: f"dpojob_volume_free_bytes{{{labels}}} {20 * GIB:.11e}" in _plain(operator.metrics()))
    hands.delete("dpojobs", "fills")


def _plain(text: str) -> str:
    """Metrics with every value in one form."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return "\n".join(f"{name} {float(value):.11e}" for name, _, value in lines)


@pytest.mark.fault(25)
def test_a_lost_claim_ends_the_job_and_no_new_one_is_made(hands: Hands, operator: OperatorProcess) -> None:
    hands.apply("loses", nodes=1)
    hands.run_phase("loses", "prepare")
    (pod,) = hands.pods("loses", "train", 1, 1)
    hands.start(pod)
    wait_until("training", lambda: hands.status("loses").get("state") == "Training")
    hands.delete("persistentvolumeclaims", "loses-work")
    wait_until("end", lambda: hands.condition("loses", "Failed") == ("True", "VolumeLost"), seconds=60)
    assert hands.get("persistentvolumeclaims", "loses-work") is None
    # Not even when it is asked to go on: that would be a silent step 0.
    hands.patch("dpojobs", "loses", {"metadata": {"annotations": {names.ANNOTATION_RETRY: "x"}}})
    wait_until("answer", lambda: hands.status("loses").get("lastHandledRetry") == "x")
    wait_until("end", lambda: hands.condition("loses", "Failed") == ("True", "VolumeLost"))
    assert hands.get("persistentvolumeclaims", "loses-work") is None


def test_a_lost_claim_is_replaced_from_the_mirror(
    hands: Hands, operator: OperatorProcess, control_plane: ControlPlane
) -> None:
    mirror = {"to": "s3://checkpoints/run", "credentialsSecretRef": {"name": "keeper"}}
    hands.apply("mirrors", nodes=1, checkpoint={"mirror": mirror})
    hands.run_phase("mirrors", "prepare")
    (pod,) = hands.pods("mirrors", "train", 1, 1)
    saved = {"step": 50, "path": "checkpoints/step-00000050", "digest": "ab" * 32, "attempt": 1, "time": 1.0}
    record = {key: saved[key] for key in ("step", "attempt", "digest")}
    rank = Rank("127.0.0.32", step=60, checkpoint=saved, recorded=[record])
    try:
        hands.start(pod, rank.ip)
        copy = wait_until("a copy", lambda: _pods(hands, "mirror"))[0]
        assert [v["secret"]["secretName"] for v in copy["spec"]["volumes"] if "secret" in v] == ["keeper"]
        # Neither the ranks nor prepare know the mirror's keys.
        assert "keeper" not in str([*_pods(hands, "train"), *_pods(hands, "prepare")])
        assert hands.get("networkpolicies", "mirrors-mirror") is not None
        hands.start(copy)
        hands.end(copy, 77, json.dumps({"exit_code": 77, "message": "access was refused"}))
        wait_until("warning", lambda: "MirrorFailed" in hands.events("mirrors"))
        assert hands.condition("mirrors", "Mirrored")[0] == "False"
        assert hands.status("mirrors")["state"] == "Training"
        # The next checkpoint is tried again.
        saved |= {"step": 100, "path": "checkpoints/step-00000100", "digest": "cd" * 32}
        rank.progress |= {
            "step": 110,
            "checkpoint": saved,
            "recorded": [record, record | {"step": 100, "digest": "cd" * 32}],
        }
        wait_until("no old Job", lambda: hands.get("jobs", "mirrors-mirror-1") is None)
        second = wait_until("another copy", lambda: [p for p in _pods(hands, "mirror") if _number(p) == "2"])[0]
        hands.start(second)
        hands.end(second, 0, json.dumps({"exit_code": 0, "checkpoint": saved}))
        wait_until("copied", lambda: hands.condition("mirrors", "Mirrored") == ("True", "Copied"))
        wait_until("no Job", lambda: hands.get("jobs", "mirrors-mirror-2") is None)
    finally:
        rank.close()
    lost = hands.status("mirrors")["volume"]["claimUid"]
    hands.delete("persistentvolumeclaims", "mirrors-work")
    again = hands.pods("mirrors", "prepare", 2, 1)[0]
    assert hands.condition("mirrors", "Failed") == ("", "")
    assert hands.get("persistentvolumeclaims", "mirrors-work")["metadata"]["uid"] != lost  # type: ignore[index]
    environment = {e["name"]: e.get("value") for e in again["spec"]["containers"][0]["env"]}
    assert environment[names.ENV_RESTORE] == "1"
    assert "cd" * 32 in str(environment[names.ENV_RECORDED_CHECKPOINTS])
    assert "keeper" in str(again["spec"]["volumes"])
    hands.start(again)
    wait_until("prepare", lambda: hands.condition("mirrors", "Running")[0] == "True")
    hands.end(again, 0, last_words(0, "prepare", 2))
    (pod,) = hands.pods("mirrors", "train", 3, 1)
    environment = {e["name"]: e.get("value") for e in pod["spec"]["containers"][0]["env"]}
    assert "cd" * 32 in str(environment[names.ENV_RECORDED_CHECKPOINTS])
    assert "VolumeLost" in hands.events("mirrors")
    hands.delete("dpojobs", "mirrors")


def _pods(hands: Hands, phase: str) -> list[dict[str, Any]]:
    return [p for p in hands.children("pods", "mirrors") if p["metadata"]["labels"][names.LABEL_PHASE] == phase]


def _number(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["labels"][names.LABEL_ATTEMPT])

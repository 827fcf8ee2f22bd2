"""The chart on a real API: installed, upgraded and uninstalled. The rights that it gives are tested in test_rights."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.api import names
from dpo_operator.generate import crd
from tests.apiserver.mutants import a_job
from tests.cluster.rig import fixture
from tests.cluster.rig.binaries import binary
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.shell import RigError
from tests.contract.chart import CHART, NAMESPACE
from tests.unit.api.test_allow import CASES, judged_in

pytestmark = pytest.mark.apiserver

RELEASE = "dpo-operator"
PROBE = """\
apiVersion: v1
kind: Pod
metadata: {name: control, namespace: dpo-system}
spec: {containers: [{name: c, image: x, securityContext: {privileged: true}}]}
"""


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """An API with a namespace that admits restricted pods alone."""
    with fixture.control_plane("chart") as plane:
        plane.kubectl("create", "namespace", NAMESPACE)
        plane.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        plane.wait_for_service_account(NAMESPACE)
        yield plane


def helm(plane: ControlPlane, *words: str) -> str:
    command = [str(binary("helm")), f"--kubeconfig={plane.kubeconfig}", "--namespace", NAMESPACE, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def installed(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The chart as a user installs it; afterwards nothing of it is left."""
    helm(plane, "upgrade", "--install", RELEASE, str(CHART))
    plane.kubectl("wait", "--for=condition=Established", f"crd/{crd.NAME}", "--timeout=30s")
    yield plane
    if RELEASE in helm(plane, "list", "--short").split():
        helm(plane, "uninstall", RELEASE, "--wait")
    plane.kubectl("delete", "crd", crd.NAME, "--ignore-not-found")


def get(plane: ControlPlane, *words: str) -> Any:
    return json.loads(plane.kubectl("get", *words, "-o", "json"))


def wait(what: str, condition: Callable[[], Any], timeout: float = 60) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except RigError:
            pass  # not there yet
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {timeout:.0f} s")


def test_the_operators_pod_is_admitted_where_only_restricted_pods_are(installed: ControlPlane) -> None:
    with pytest.raises(RigError, match="violates PodSecurity"):
        installed.kubectl("apply", "-f", "-", stdin=PROBE)
    pods = wait("a pod of the Deployment", lambda: get(installed, "pods", "-n", NAMESPACE)["items"])
    assert pods[0]["metadata"]["labels"]["app.kubernetes.io/name"] == RELEASE
    assert pods[0]["spec"]["serviceAccountName"] == RELEASE


def test_an_upgrade_changes_the_crd(installed: ControlPlane, tmp_path: Path) -> None:
    changed = tmp_path / "chart"
    shutil.copytree(CHART, changed)
    template = changed / "templates" / "crd.yaml"
    text = template.read_text(encoding="utf-8")
    assert "maximum: 1024\n" in text
    template.write_text(text.replace("maximum: 1024\n", "maximum: 2048\n"), encoding="utf-8")
    helm(installed, "upgrade", RELEASE, str(changed))
    spec = get(installed, "crd", crd.NAME)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert spec["properties"]["nodes"]["maximum"] == 2048


def test_uninstalling_keeps_the_jobs_and_installing_again_finds_them(installed: ControlPlane) -> None:
    installed.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(a_job("kept")))
    helm(installed, "uninstall", RELEASE, "--wait")
    assert get(installed, "deployments", "-n", NAMESPACE)["items"] == []
    assert get(installed, "dpojob", "kept")["spec"]["nodes"] == 1
    helm(installed, "install", RELEASE, str(CHART))
    assert get(installed, "dpojob", "kept")["spec"]["nodes"] == 1


def test_uninstalling_removes_the_crd_when_told_to(installed: ControlPlane) -> None:
    helm(installed, "upgrade", RELEASE, str(CHART), "--set", "crds.keep=false")
    helm(installed, "uninstall", RELEASE, "--wait")
    wait("the CRD to go", lambda: crd.NAME not in installed.kubectl("get", "crd", "-o", "name"))


def test_users_rights_come_from_the_clusters_own_roles(installed: ControlPlane) -> None:
    for role in ("view", "edit"):
        words = ("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "-n", "default")
        installed.kubectl(*words, "--dry-run=server")
        installed.kubectl(*words)

    def may(user: str, verb: str, what: str) -> bool:
        request = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user,
                "resourceAttributes": {
                    "namespace": "default",
                    "verb": verb,
                    "group": names.GROUP,
                    "resource": what.split("/")[0],
                    "subresource": what.partition("/")[2],
                },
            },
        }
        answer = installed.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(request))
        return bool(json.loads(answer)["status"]["allowed"])

    wait("the roles to be aggregated", lambda: may("editer", "create", "dpojobs"))
    assert may("viewer", "get", "dpojobs")
    assert not may("viewer", "create", "dpojobs")
    assert not may("editer", "update", "dpojobs/status")
    assert not may("editer", "patch", "dpojobs/status")
    installed.kubectl("delete", "rolebinding", "view", "edit", "-n", "default")


def test_what_the_administrator_does_not_allow_is_refused_at_apply(installed: ControlPlane) -> None:
    """As somebody who may make DPOJobs and read one Secret and one claim. The operator does not run."""
    words = ("-n", "default", "--verb=get,create", "--resource=dpojobs.dpo-operator.dev")
    installed.kubectl("create", "role", "author", *words)
    readable = [f"--resource-name=mine{end}" for end in ("", *range(1, 6))]
    words = ("--resource=secrets,persistentvolumeclaims", "--verb=get", "-n", "default")
    installed.kubectl("create", "role", "reader", *words, *readable)
    for role in ("author", "reader"):
        installed.kubectl("create", "rolebinding", role, f"--role={role}", "--user=tenant", "-n", "default")

    def refusal(spec: dict[str, Any]) -> str:
        try:
            job = yaml.safe_dump(a_job("wanted", **spec))
            installed.kubectl("create", "--as=tenant", "--dry-run=server", "-f", "-", stdin=job)
        except RigError as error:
            return str(error)
        return ""

    def refused_fields() -> set[str]:
        """Of the cases of the unit tests: this policy says what the operator says."""
        return {field for spec, field, _ in CASES if "denied request" in refusal(spec)}

    wait("the policy", lambda: "allow.env" in refusal(CASES[0][0]))
    assert refusal({}) == ""
    assert refused_fields() == {field for _, field, _ in CASES}
    assert refusal({"pod": {"env": [{"name": "NCCL_IB_HCA"}, {"name": "NCCL_DEBUG"}]}}) == ""
    for spec in SECRETS_AND_CLAIMS:
        assert refusal(named(spec, "mine")) == "", spec
        assert "you may not get" in (message := refusal(named(spec, "others"))), spec
        assert message.rstrip().endswith("others"), spec
    # Every right that is asked for costs; a spec may name many claims and Secrets, each as often as it likes.
    assert refusal(MANY) == ""
    mixture = [*MANY["data"]["mixture"], {"source": "pvc://others/x"}]
    assert refusal(MANY | {"data": MANY["data"] | {"mixture": mixture}}).rstrip().endswith("others")
    allow = set_flags([values for _, _, values in CASES])
    pinned = ("--set", "allow.branches=false", "--set", "allow.secrets={dpo-*}")
    helm(installed, "upgrade", RELEASE, str(CHART), *allow, *pinned)
    wait("the new policy", lambda: "commit of 40" in refusal({}))
    commit = {"revision": "0" * 40}
    exact = {
        "model": {"name": "org/model"} | commit,
        "data": {"train": {"source": "org/pairs"} | commit, "mixture": [{"source": "pvc://mine/x"}]},
    }
    assert refusal(exact) == ""
    in_url = {"train": {"source": f"hf://datasets/org/pairs@{'0' * 40}/x.jsonl"}}
    assert refusal(exact | {"data": in_url}) == ""
    in_path = {"train": {"source": f"hf://datasets/org/pairs/x@{'0' * 40}/f.jsonl"}}
    assert "commit of 40" in refusal(exact | {"data": in_path})
    for spec, _, values in CASES:
        assert refusal(exact | spec) == "", values
    assert "allow.secrets" in refusal(exact | {"pod": {"imagePullSecrets": ["mine"]}})
    # What exists already is changed freely: the CRD keeps everything that is checked from changing.
    installed.kubectl("create", "-f", "-", stdin=yaml.safe_dump(a_job("old", **exact)))
    helm(installed, "upgrade", RELEASE, str(CHART), "--set", "allow.secrets={dpo-*}")
    installed.kubectl("patch", "dpojob", "old", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    helm(installed, "upgrade", RELEASE, str(CHART), "--set", "admission.enabled=false")
    wait("the policy to go", lambda: refusal(CASES[0][0]) == "")
    installed.kubectl("delete", "rolebinding", "author", "reader", "-n", "default")


MANY: dict[str, Any] = {
    "model": {"name": "pvc://mine/model"},
    "data": {
        "train": {"source": "pvc://mine1/x"},
        "eval": {"source": "pvc://mine/x"},
        "mixture": [{"source": f"pvc://mine{i % 5 + 1}/{i}"} for i in range(20)],
    },
    "pod": {"imagePullSecrets": ["mine", *(f"mine{i}" for i in range(1, 6))]},
}
SECRETS_AND_CLAIMS: list[dict[str, Any]] = [
    {"model": {"name": "org/model", "tokenSecretRef": {"name": "NAME"}}},
    {"pod": {"imagePullSecrets": ["NAME"]}},
    {"tracking": {"wandb": {"project": "p", "mode": "online", "apiKeySecretRef": {"name": "NAME"}}}},
    {"model": {"name": "pvc://NAME/model"}},
    {"model": {"name": "pvc://NAME"}},
    {"data": {"train": {"source": "org/pairs"}, "eval": {"source": "pvc://NAME/x"}}},
    {"data": {"train": {"source": "org/pairs"}, "mixture": [{"source": "pvc://NAME/x"}]}},
    {"data": {"train": {"source": "pvc://NAME/x"}}},
    {"resumeFrom": {"source": "pvc://NAME/x"}},
    {"checkpoint": {"volume": {"claimName": "NAME"}}},
    {"cache": {"claimName": "NAME"}},
    judged_in("default", apiKeySecretRef={"name": "NAME"}),
    {"iterative": judged_in("default")["iterative"] | {"prompts": {"source": "pvc://NAME/x"}}},
    {"iterative": {"judge": {"type": "rewardModel", "rewardModel": {"name": "pvc://NAME/x"}}}},
]


def named(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(spec).replace("NAME", name)))


def set_flags(chosen: list[dict[str, Any]]) -> list[str]:
    """Values of the chart's `allow` together, as arguments of Helm."""
    merged: dict[str, Any] = {}
    for values in chosen:
        for key, value in values.items():
            merged[key] = list(dict.fromkeys([*merged.get(key, []), *value])) if isinstance(value, list) else value
    return ["--set-json", f"allow={json.dumps(merged)}"]

"""A cluster with the chart on it and tenants who attack one another: who they are, what they may do, and their hands."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dpo_operator.api import names
from dpo_operator.generate import crd
from tests.apiserver.client import Answer, Requests, wait_until_served
from tests.apiserver.hands import Hands, wait_until
from tests.apiserver.mutants import a_job
from tests.apiserver.operator_process import OperatorProcess
from tests.cluster.rig.control_plane import ControlPlane
from tests.contract.chart import NAMESPACE, render

Json = dict[str, Any]

RELEASE = "dpo-operator"
# The attackers' own namespace, one that they share with colleagues, and one that is none of their business.
LAB, SHARED, VICTIMS = "lab", "shared", "victims"
SPACES = (LAB, SHARED, VICTIMS)
HONEST = "honest"

# What attackers may do in the first two in addition to reading and writing DPOJobs, by (group, resources).
MORE: dict[str, tuple[str, tuple[str, ...]]] = {
    "t1": ("", ()),
    "t2": ("", ("configmaps",)),
    "t3": ("", ("pods",)),
    "t4": ("", ("persistentvolumeclaims",)),
    "t5": ("batch", ("jobs",)),
    "t6": ("", ("events",)),
    "t7": ("", ("services",)),
    "t8": ("policy", ("poddisruptionbudgets",)),
}
# Claims: one that nobody opened, one that a job of theirs may use but whose right to read they lack, one that they may only read.
CLAIMS = {"database": False, "opened": True, "seen": False}
SECRET = "hub"
# Refused by the policy alone.
PROBE = {"env": [{"name": "WANDB_BASE_URL"}]}


def a_dpojob(name: str, namespace: str, **spec: Any) -> Json:
    """A DPOJob on one CPU node, with parts of its spec replaced."""
    job = a_job(name, **({"nodes": 1, "gpusPerNode": 0, "training": {"globalBatchSize": 2}} | spec))
    job["metadata"]["namespace"] = namespace
    return job


@dataclass
class Arena:
    """The cluster. notes: what an attack keeps for its judgement."""

    plane: ControlPlane
    folder: Path
    notes: dict[str, Any] = field(default_factory=dict)
    _requests: dict[str, Requests] = field(default_factory=dict)

    def requests(self, user: str = "") -> Requests:
        """As a user, or as the administrator, who also does what Kubernetes' own controllers and kubelets would do."""
        return self._requests.setdefault(user, Requests(self.plane, user))

    def hands(self, namespace: str, user: str = "") -> Hands:
        return Hands(self.requests(user), namespace)

    def create(self, job: Json, user: str) -> Answer:
        """A DPOJob, by somebody who wants unknown fields to be dropped in silence."""
        path = self.hands(job["metadata"]["namespace"]).path("dpojobs")
        return self.requests(user).send("POST", f"{path}?fieldValidation=Ignore", job)

    def plant(self, user: str, kind: str, manifest: Json, namespace: str = SHARED) -> Json:
        """Any object. Fails when the tenant's own rights don't suffice: then it was no attack."""
        answer = self.requests(user).send("POST", self.hands(namespace).path(kind), {"apiVersion": "v1"} | manifest)
        assert answer.accepted, (user, kind, answer.message)
        return answer.body

    def install(self) -> None:
        """What the chart makes by default, the namespaces, what is in them, and the tenants."""
        for name in (*SPACES, NAMESPACE):
            self.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for name in (*SPACES, NAMESPACE):
            self.plane.wait_for_service_account(name)
        self.plane.apply(*(o for o in render().objects if o["kind"] not in ("Deployment", "CustomResourceDefinition")))
        self.plane.apply(*render().all("CustomResourceDefinition"))
        wait_until_served(self.plane, crd.NAME)
        self.plane.apply(*_belongings(), *_rights())
        # Policies and rights reach the API server's caches in their own time.
        wait_until("policies", lambda: not self._dry("t1", pod=PROBE).accepted and not self._dry_pod().accepted)
        wait_until("the rights", lambda: self._dry("t1").accepted)

    def _dry(self, user: str, **spec: Any) -> Answer:
        path = self.hands(LAB).path("dpojobs")
        return self.requests(user).send("POST", f"{path}?dryRun=All", a_dpojob("probe", LAB, **spec))

    def _dry_pod(self) -> Answer:
        """As the administrator: only the policy is in the way."""
        metadata = {"name": "probe", "labels": {names.LABEL_UID: "x"}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }
        return self.requests().send("POST", f"{self.hands(LAB).path('pods')}?dryRun=All", pod)

    def remove_admission(self) -> None:
        """As with admission.enabled=false."""
        for kind in ("ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy"):
            self.plane.kubectl("delete", kind, *(o["metadata"]["name"] for o in render().all(kind)))
        wait_until("no policy", lambda: self._dry("t1", pod=PROBE).accepted and self._dry_pod().accepted)

    @cached_property
    def operator(self) -> OperatorProcess:
        """As the chart's ServiceAccount, with the chart's environment."""
        token = self.plane.kubectl("create", "token", RELEASE, "-n", NAMESPACE, "--duration=1h").strip()
        kubeconfig = yaml.safe_load(self.plane.kubeconfig.read_text(encoding="utf-8"))
        kubeconfig["users"][0]["user"] = {"token": token}
        file = self.folder / "kubeconfig"
        file.write_text(yaml.safe_dump(kubeconfig), encoding="utf-8")
        process = OperatorProcess(file, "", self.folder / "operator.log")
        own = {"DPO_METRICS_PORT", "DPO_HEALTH_PORT", "DPO_RESYNC_SECONDS", "DPO_PROGRESS_SECONDS", "DPO_LOG_FORMAT"}
        process.settings = {k: v for k, v in render().environment.items() if k not in own}
        process.settings |= {"POD_NAME": "operator-0", "POD_NAMESPACE": NAMESPACE}
        return process


def _belongings() -> list[Json]:
    found: list[Json] = []
    for space in SPACES:
        secret = {"apiVersion": "v1", "kind": "Secret", "stringData": {"token": "canary", "key": "canary"}}
        found.append(secret | {"metadata": {"name": SECRET, "namespace": space}})
        for name, is_open in CLAIMS.items():
            labels = {names.LABEL_ALLOW_USE: "true"} if is_open else {}
            spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
            claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec}
            found.append(claim | {"metadata": {"name": name, "namespace": space, "labels": labels}})
    pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": "c", "image": "i"}]}}
    found.append(pod | {"metadata": {"name": "plain", "namespace": SHARED}})
    return found


def _rights() -> list[Json]:
    """Bindings to the chart's own roles, and small roles for more."""
    group = {"apiVersion": "rbac.authorization.k8s.io/v1"}

    def bound(user: str, space: str, role: str, kind: str = "ClusterRole") -> Json:
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        metadata = {"name": f"{user}-{role}", "namespace": space}
        return group | {"kind": "RoleBinding", "metadata": metadata, "roleRef": reference, "subjects": [subject]}

    def role(name: str, space: str, *rules: Json) -> Json:
        return group | {"kind": "Role", "metadata": {"name": name, "namespace": space}, "rules": list(rules)}

    found = []
    places = [(user, space) for user in MORE for space in (LAB, SHARED)]
    for user, space in [*places, (HONEST, SHARED), (HONEST, VICTIMS)]:
        found += [bound(user, space, f"{RELEASE}-{which}") for which in ("edit", "view")]
    reads_secret = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get"]}
    reads_claim = {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get"]}
    for space in (SHARED, VICTIMS):
        found += [role("member", space, reads_secret, reads_claim), bound(HONEST, space, "member", "Role")]
    for space in (LAB, SHARED):
        found.append(role("seer", space, reads_claim | {"resourceNames": ["seen"]}))
        for user, (api_group, resources) in MORE.items():
            found.append(bound(user, space, "seer", "Role"))
            if resources:
                verbs = ["create", "get", "list", "delete", *(["patch"] if resources == ("pods",) else [])]
                found.append(
                    role(user, space, {"apiGroups": [api_group], "resources": list(resources), "verbs": verbs})
                )
                found.append(bound(user, space, user, "Role"))
    return found

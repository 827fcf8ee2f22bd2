"""Requests of tenants that the API server itself must refuse: by RBAC, the CRD, or the chart's admission policy."""

import re
from dataclasses import dataclass
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.pods import RESERVED_ENV
from tests.apiserver.hands import Hands
from tests.apiserver.tenants import LAB, RELEASE, SECRET, SHARED, VICTIMS, Arena, Json, a_dpojob
from tests.contract.chart import NAMESPACE

MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"
ENVIRONMENT = (
    "WANDB_BASE_URL", "NCCL_NET_PLUGIN", "NCCL_TUNER_PLUGIN", "CC", "SSL_CERT_FILE", "LD_PRELOAD", "PYTHONPATH", "HTTPS_PROXY",
    "HF_ENDPOINT", "TRITON_PTXAS_PATH", "CUDA_HOME", "NVTX_INJECTION64_PATH", "TORCHINDUCTOR_CACHE_DIR", "LOCALDOMAIN",
)  # fmt: skip
# Part of a refusal.
RBAC, FIXED, NOT_YOURS = "cannot ", "can't change once", "you may not get this"


@dataclass(frozen=True)
class Refused:
    """One request. because: part of the refusal; another one would mean that the attack did not get where it aims."""

    id: str
    tenant: str
    because: str
    path: str
    body: Json | None = None
    method: str = "POST"
    content_type: str = "application/json"

    def answer(self, arena: Arena) -> str:
        """What the attacker got; empty when refused."""
        answer = arena.requests(self.tenant).send(self.method, self.path, self.body, content_type=self.content_type)
        if answer.accepted:
            return f"accepted with {answer.status}"
        return "" if self.because in answer.message else f"not tried: {answer.message}"


def path(namespace: str, kind: str, name: str = "") -> str:
    return Hands.path(Hands(None, namespace), kind, name)  # type: ignore[arg-type]  # it sends nothing


def _job(what: str, because: str, **spec: Any) -> Refused:
    """A new DPOJob of t1 in its own namespace."""
    return Refused(what, "t1", because, path(LAB, "dpojobs"), a_dpojob("wanted", LAB, **spec))


def _model(**fields: Any) -> Json:
    return {"name": "org/model"} | fields


def _train(source: str) -> Json:
    return {"train": {"source": source}}


def _wandb() -> Json:
    return {"wandb": {"project": "p", "mode": "online", "apiKeySecretRef": {"name": SECRET}}}


VICTIM_PODS = {"namespace": VICTIMS, "podLabels": {"app": "database"}, "port": 5432}


def _judged(**fields: Any) -> dict[str, Any]:
    endpoint = {"url": "http://judge.example/v1", "model": "m", **fields}
    return {"judge": {"type": "endpoint", "endpoint": endpoint}}


def _administrators() -> list[Refused]:
    """What only the administrator may allow."""
    key = {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}
    found = [
        # Some are refused by the CRD, whatever the administrator allows.
        _job(
            f"env {name}",
            "env" if re.search(RESERVED_ENV, name) else "allow.env",
            pod={"env": [{"name": name, "value": "/x"}]},
        )
        for name in ENVIRONMENT
    ]
    for image in ("attacker.example/i:1", "dpo-trainer:0", "attacker.example/dpo-trainer"):
        found.append(_job(f"image {image}", "allow.images", pod={"image": image}))
    rounds = {
        "judge": {"type": "builtin", "builtin": {"name": "length", "tokens": 5}},
        "generation": {"engine": "vllm"},
    }
    found.append(
        _job("image with vLLM", "allow.images", pod={"generateImage": "attacker.example/vllm"}, iterative=rounds)
    )
    control = {"nodeSelector": {"node-role.kubernetes.io/control-plane": ""}}
    return [
        *found,
        _job("node's network", "allow.hostNetwork", pod={"network": {"hostNetwork": True}}),
        _job("no isolation", "allow.unisolated", pod={"network": {"isolate": False}}),
        _job("every taint", "allow.tolerations", pod={"tolerations": [{"operator": "Exists"}]}),
        _job("control plane's taint", "allow.tolerations", pod={"tolerations": [key]}),
        _job("control plane's nodes", "allow.nodeSelectors", pod=control),
        _job("priority", "allow.priorityClasses", pod={"priorityClassName": "high"}),
        _job("priority of a queue", "allow.priorityClasses", queue={"kind": "Kueue", "name": "q", "priorityClass": "high"}),
        _job("priority of the system", "system-", pod={"priorityClassName": "system-node-critical"}),
        _job("another network", "allow.podAnnotations", pod={"annotations": {"k8s.v1.cni.cncf.io/networks": "kube-system/x"}}),
        _job("service account", "allow.serviceAccounts", pod={"serviceAccountName": "admin"}),
        _job("label of a rank", "must not set what belongs to Kubernetes", pod={"labels": {names.LABEL_UID: "x"}}),
        _job("label of a Service", "allow.podLabels", pod={"labels": {"app": "shop"}}),
        _job("another device", "allow.gpuResources", pod={"gpuResource": "example.org/key-store"}),
        _job(
            "claim of devices", "allow.resourceClaimTemplates",
            pod={"resourceClaims": [{"name": "a", "resourceClaimTemplateName": "all"}]},
        ),
        _job("runtime", "allow.runtimeClasses", pod={"runtimeClassName": "privileged"}),
        _job("judge among others' pods", "allow.judgeNamespaces", iterative=_judged(allowTo=VICTIM_PODS)),
        Refused(
            "node's network by server-side apply", "t1", "allow.hostNetwork", f"{path(LAB, 'dpojobs', 'applied')}?fieldManager=x",
            a_dpojob("applied", LAB, pod={"network": {"hostNetwork": True}}), "PATCH", APPLY,
        ),
    ]  # fmt: skip


def _of_others() -> list[Refused]:
    """Secrets and claims that the author can't read, and names of other namespaces."""
    pvc = "pvc://database/x"
    return [
        _job("Secret as hub token", NOT_YOURS, model=_model(tokenSecretRef={"name": SECRET})),
        _job("Secret as wandb key", NOT_YOURS, tracking=_wandb()),
        _job("Secret as a judge's key", NOT_YOURS, iterative=_judged(apiKeySecretRef={"name": SECRET})),
        _job("claim as prompts", NOT_YOURS, iterative=_judged() | {"prompts": {"source": pvc}}),
        _job("claim as reward model", NOT_YOURS, iterative={"judge": {"type": "rewardModel", "rewardModel": {"name": pvc}}}),
        _job("claim of another job's checkpoint", NOT_YOURS, resumeFrom={"source": pvc}),
        _job("Secret for pulling", NOT_YOURS, pod={"imagePullSecrets": [SECRET]}),
        _job("claim as model", NOT_YOURS, model=_model(name=pvc)),
        _job("claim as data", NOT_YOURS, data=_train(pvc)),
        _job("claim as evaluation", NOT_YOURS, data=_train("org/pairs") | {"eval": {"source": pvc}}),
        _job("claim in a mixture", NOT_YOURS, data=_train("org/pairs") | {"mixture": [{"source": pvc}]}),
        _job("claim to write to", NOT_YOURS, checkpoint={"volume": {"claimName": "database"}}),
        _job("claim as cache", NOT_YOURS, cache={"claimName": "database"}),
        _job("opened claim without the right to it", NOT_YOURS, data=_train("pvc://opened/x")),
        _job("claim elsewhere", "claimName", checkpoint={"volume": {"claimName": f"{VICTIMS}/database"}}),
        _job("Secret elsewhere", "tokenSecretRef", model=_model(tokenSecretRef={"name": f"{VICTIMS}/{SECRET}"})),
        _job("claim elsewhere by dots", "source", data=_train(f"pvc://../{VICTIMS}/database")),
        _job("checkpoint elsewhere by dots", "resumeFrom", resumeFrom={"source": f"pvc://database/../{VICTIMS}"}),
        _job("file of the node", "source", data=_train("file:///etc/shadow")),
        _job("giant", "Too long", model=_model(name="x" * 2**21)),
        Refused(
            "colleague's Secret through a job of one's own", "t1", NOT_YOURS, path(SHARED, "dpojobs"),
            a_dpojob("wanted", SHARED, model=_model(tokenSecretRef={"name": SECRET})),
        ),
        Refused("opening a claim", "t4", RBAC, path(LAB, "persistentvolumeclaims", "database"),
                {"metadata": {"labels": {names.LABEL_ALLOW_USE: "true"}}}, "PATCH", MERGE),
    ]  # fmt: skip


def _rights() -> list[Refused]:
    """What the chart's edit role does not give."""
    theirs, account = path(VICTIMS, "dpojobs"), f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{RELEASE}/token"
    rbac, admission = "/apis/rbac.authorization.k8s.io/v1", "/apis/admissionregistration.k8s.io/v1"
    status = {"status": {"state": "Complete", "recordedCheckpoints": [{"step": 9, "attempt": 1, "digest": "ee" * 32}]}}
    opened = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}
    admin = {
        "metadata": {"name": "mine"}, "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "t1"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    }  # fmt: skip
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{RELEASE}"

    def may_not(what: str, where: str, body: Json | None = None, method: str = "POST", **more: Any) -> Refused:
        return Refused(what, "t1", RBAC, where, body, method, **more)

    return [
        may_not("job in another namespace", theirs, a_dpojob("wanted", VICTIMS)),
        may_not("list of another namespace", theirs, method="GET"),
        may_not("list of all namespaces", f"/apis/{names.API_VERSION}/dpojobs", method="GET"),
        may_not("another namespace's job", f"{theirs}/far", method="GET"),
        may_not("another namespace's job deleted", f"{theirs}/far", method="DELETE"),
        may_not("another namespace's job changed", f"{theirs}/far", {"spec": {"suspend": True}}, "PATCH", content_type=MERGE),
        may_not("status by patch", path(SHARED, "dpojobs", "honest/status"), status, "PATCH", content_type=MERGE),
        may_not("own status by patch", path(LAB, "dpojobs", "own/status"), status, "PATCH", content_type=MERGE),
        may_not("status by update", path(SHARED, "dpojobs", "honest/status"), a_dpojob("honest", SHARED) | status, "PUT"),
        may_not("Secret", path(LAB, "secrets", SECRET), method="GET"),
        may_not("Secrets of another namespace", path(VICTIMS, "secrets"), method="GET"),
        may_not("token of the operator", account, {"spec": {"expirationSeconds": 3600}}),
        may_not("Lease of the operator", lease, {"spec": {"holderIdentity": "me"}}, "PATCH", content_type=MERGE),
        may_not("more rights", f"{rbac}/namespaces/{LAB}/rolebindings", admin),
        may_not("policy deleted", f"{admission}/validatingadmissionpolicies/{RELEASE}", method="DELETE"),
        may_not("binding deleted", f"{admission}/validatingadmissionpolicybindings/{RELEASE}", method="DELETE"),
        may_not("pods of one's own", path(LAB, "pods"), {"metadata": {"name": "x"}}),
        may_not("job file read", path(SHARED, "configmaps"), method="GET"),
        may_not("namespace's labels", f"/api/v1/namespaces/{LAB}", opened, "PATCH", content_type=MERGE),
    ]  # fmt: skip


def _edits() -> list[Refused]:
    """Changes of a job that exists: what was checked when it was made."""
    edits: dict[str, Json] = {
        "the network": {"pod": {"network": {"hostNetwork": True}}},
        "isolation": {"pod": {"network": {"isolate": False}}},
        "the image": {"pod": {"image": "attacker.example/i:1"}},
        "the environment": {"pod": {"env": [{"name": "LD_PRELOAD", "value": "/x.so"}]}},
        "a pull secret": {"pod": {"imagePullSecrets": [SECRET]}},
        "a token": {"model": {"tokenSecretRef": {"name": SECRET}}},
        "a wandb key": {"tracking": _wandb()},
        "the claim": {"checkpoint": {"volume": {"claimName": "database"}}},
        "a source": {"data": {"train": {"source": "pvc://database/x"}}},
        "the cache": {"cache": {"claimName": "database"}},
    }
    found = [
        Refused(f"edit of {what}", "t1", FIXED, path(LAB, "dpojobs", "own"), {"spec": spec}, "PATCH", MERGE)
        for what, spec in edits.items()
    ]
    # Its author may read the Secret, and the attacker may not.
    for what, spec in {
        "another model with a colleague's Secret": {"model": {"name": "attacker/model"}},
        "another key of a colleague's Secret": {"model": {"tokenSecretRef": {"name": SECRET, "key": "other"}}},
    }.items():
        where = path(SHARED, "dpojobs", "secretive")
        found.append(Refused(what, "t1", FIXED, where, {"spec": spec}, "PATCH", MERGE))
    return found


def _labelled() -> list[Refused]:
    """Pods and Jobs with the operator's labels: what they look like and whose they are does not matter."""
    labels = {names.LABEL_JOB: "honest", names.LABEL_UID: "x", names.LABEL_PHASE: "train", names.LABEL_ATTEMPT: "1"}
    metadata = {"name": "rank", "labels": labels}
    pod = {"containers": [{"name": "trainer", "image": "i"}], "restartPolicy": "Never"}
    job = {"template": {"metadata": {"labels": labels}, "spec": pod}}
    may = "may make "

    def labelled(what: str, tenant: str, kind: str, body: Json, **more: Any) -> Refused:
        return Refused(what, tenant, may + kind, path(SHARED, kind), body, **more)

    return [
        labelled("pod with the labels of a rank", "t3", "pods", {"metadata": metadata, "spec": pod}),
        labelled("pod with the UID alone", "t3", "pods", {"metadata": {"name": "x", "labels": {names.LABEL_UID: "x"}}, "spec": pod}),
        labelled("Job with the labels of an attempt", "t5", "jobs", {"metadata": metadata, "spec": job}),
        Refused("labels given to a pod later", "t3", may + "pods", path(SHARED, "pods", "plain"), {"metadata": {"labels": labels}}, "PATCH", MERGE),
    ]  # fmt: skip


REFUSED: tuple[Refused, ...] = (*_administrators(), *_of_others(), *_rights(), *_edits(), *_labelled())

"""DPOJobs by people who want something else than training: each asks for more than a tenant may have, or tries to break out
of the place that a value goes to."""

from dataclasses import dataclass, field
from typing import Any

from tests.apiserver.mutants import a_job

MEBIBYTE = "x" * 2**20
ELSEWHERE = "kube-system/secrets"
EXPANSIONS = (
    "$(PET_MASTER_ADDR)",
    "$$(HOME)",
    "$$$(HOME)",
    "${IFS}`id`",
    "; rm -rf / #",
    "a\nLD_PRELOAD=/x.so",
    "--flag",
)


@dataclass(frozen=True)
class Hostile:
    """One attempt. refused: whether the API server itself must turn it down; others must turn out harmless.

    faults: rows of the fault matrix that it belongs to.
    """

    id: str
    spec: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    top: dict[str, Any] = field(default_factory=dict)
    refused: bool = True

    def job(self, name: str, namespace: str) -> dict[str, Any]:
        """The DPOJob, under this name unless the attempt is about the name."""
        job = a_job(name, **({"gpusPerNode": 0} | self.spec))
        job["metadata"] |= {"namespace": namespace} | self.metadata
        return job | self.top


def _pod(**fields: Any) -> dict[str, Any]:
    return {"pod": fields}


def _env(name: str, value: str = "x") -> dict[str, Any]:
    return _pod(env=[{"name": name, "value": value}])


def _source(source: str) -> dict[str, Any]:
    return {"data": {"train": {"source": source}}}


def _model(**fields: Any) -> dict[str, Any]:
    return {"model": {"name": "org/model"} | fields}


def _volume(**fields: Any) -> dict[str, Any]:
    return {"checkpoint": {"volume": fields}}


def _names() -> list[Hostile]:
    """Fault 45: names that are too long, that collide, or that are something else."""
    wrong = {"45 characters": "a" * 45, "63 characters": "a" * 63, "253 characters": "a" * 253, "254": "a" * 254}
    wrong |= {"dots": "..", "a path": "../../x", "a slash": "a/b", "upper case": "Job", "a digit first": "1a"}
    wrong |= {"not ASCII": "jöb", "a line break": "a\nb", "an option": "-x", "an expansion": "$(HOME)", "a NUL": "a\0b"}
    return [Hostile(f"name of {what}", metadata={"name": name}) for what, name in wrong.items()]


def _references() -> list[Hostile]:
    """References that name another namespace, or leave the folder."""
    return [
        Hostile("claim elsewhere", _volume(claimName=ELSEWHERE)),
        Hostile("claim of dots", _volume(claimName="../x")),
        Hostile("cache elsewhere", {"cache": {"claimName": ELSEWHERE}}),
        Hostile("storage class with a path", _volume(storageClassName="a/b")),
        Hostile("token elsewhere", _model(tokenSecretRef={"name": ELSEWHERE})),
        Hostile(
            "token with a namespace", _model(tokenSecretRef={"name": "a", "namespace": "kube-system"}), refused=False
        ),
        Hostile("token key with a path", _model(tokenSecretRef={"name": "a", "key": "../../etc/passwd"})),
        Hostile("keys elsewhere", {"access": {"credentialsSecretRef": {"name": ELSEWHERE}}}),
        Hostile("certificates elsewhere", {"access": {"caBundleRef": {"name": ELSEWHERE}}}),
        Hostile("certificates with a path", {"access": {"caBundleRef": {"name": "a", "key": "../../etc/passwd"}}}),
        Hostile("push to a file", {"export": {"push": {"to": "file:///etc"}}}),
        Hostile("push to the top of a bucket", {"export": {"push": {"to": "s3://bucket/"}}}),
        Hostile(
            "push with keys elsewhere",
            {"export": {"push": {"to": "s3://b/k", "credentialsSecretRef": {"name": ELSEWHERE}}}},
        ),
        Hostile("mirror in a file", {"checkpoint": {"mirror": {"to": "file:///etc"}}}),
        Hostile("mirror in a hub", {"checkpoint": {"mirror": {"to": "hf://org/name"}}}),
        Hostile("mirror at the top of a bucket", {"checkpoint": {"mirror": {"to": "s3://bucket/"}}}),
        Hostile(
            "mirror with keys elsewhere",
            {"checkpoint": {"mirror": {"to": "s3://b/k", "credentialsSecretRef": {"name": ELSEWHERE}}}},
        ),
        Hostile("service account elsewhere", _pod(serviceAccountName=ELSEWHERE)),
        Hostile("endpoint with a password", {"access": {"s3": {"endpoint": "https://user:word@example.org"}}}),
        Hostile("endpoint that is a file", {"access": {"hub": {"endpoint": "file:///etc/shadow"}}}),
        Hostile("proxy with a line break", {"access": {"proxy": {"url": "http://a\nb"}}}),
        Hostile("pull secret elsewhere", _pod(imagePullSecrets=[ELSEWHERE])),
        Hostile("priority elsewhere", _pod(priorityClassName=ELSEWHERE)),
        Hostile("priority of the system", _pod(priorityClassName="system-node-critical")),
        Hostile(
            "queue's priority of the system", {"queue": {"kind": "Volcano", "priorityClass": "system-cluster-critical"}}
        ),
        Hostile("chain of file systems", _source("s3://b::file:///etc/passwd")),
        Hostile("claim whose name is none", _source("pvc://a..b/x")),
        Hostile("runtime elsewhere", _pod(runtimeClassName=ELSEWHERE)),
        Hostile("claim source of dots", _source("pvc://../x")),
        Hostile("claim source elsewhere", _source("pvc://kube-system/../claim/x")),
        Hostile("claim source that climbs", _source("pvc://claim/../../other")),
        Hostile("model from a climbing claim", _model(name="pvc://claim/../../etc")),
        Hostile("file of the node", _source("file:///etc/shadow")),
        Hostile("metadata service", _source("http://169.254.169.254/latest/meta-data")),
        Hostile("path in the container", _source("/var/run/secrets/x.jsonl"), refused=False),
        Hostile("queue elsewhere", {"queue": {"kind": "Kueue", "name": ELSEWHERE}}),
        Hostile("queue with a second label", {"queue": {"kind": "Kueue", "name": "a,b=c"}}),
        Hostile("revision that is an option", _model(revision="--upload-pack=touch /x")),
        Hostile("revision that climbs", _model(revision="../../main"), refused=False),
    ]


def _escalations() -> list[Hostile]:
    """Fields of a pod template, in the hope that they are passed on. Whoever asks for no validation has them dropped."""
    host = [{"name": "h", "hostPath": {"path": "/"}}]
    fields: dict[str, Any] = {
        "volumes": host,
        "hostPID": True,
        "hostIPC": True,
        "privileged": True,
        "securityContext": {"privileged": True, "runAsUser": 0},
        "serviceAccountName": "admin",
        "automountServiceAccountToken": True,
        "nodeName": "control-plane",
        "command": ["sh", "-c", "id"],
        "args": ["--x"],
        "initContainers": [{"name": "i", "image": "x"}],
        "containers": [{"name": "c", "image": "x"}],
        "envFrom": [{"secretRef": {"name": "all"}}],
        "template": {"spec": {"hostNetwork": True}},
        "schedulerName": "mine",
    }
    found = [Hostile(f"pod.{name}", _pod(**{name: value}), refused=False) for name, value in fields.items()]
    path = {"hostPath": {"path": "/"}, "mountPath": "/host"}
    return [
        *found,
        Hostile("volume on the node", _volume(**path), refused=False),
        Hostile("status of its own", top={"status": {"state": "Complete", "phase": "export"}}, refused=False),
        Hostile("labels of another job", metadata={"labels": {"dpo-operator.dev/job-uid": "x"}}, refused=False),
        Hostile("annotations", metadata={"annotations": {"a/b": "c" * 1000, "d": "$(HOME)"}}, refused=False),
        Hostile("labels that are none", metadata={"labels": {"a b": "c"}}),
        Hostile("annotation key that is none", metadata={"annotations": {"a/b/c": "d"}}),
        Hostile("annotation of 1 MiB", metadata={"annotations": {"a": MEBIBYTE}}),
    ]


def _environment() -> list[Hostile]:
    reserved = (
        "PATH",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
    )
    reserved += ("PET_NNODES", "DPO_JOB_FILE", "HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "http_proxy", "HOME")
    reserved += ("NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID", "HTTPS_Proxy", "All_Proxy")
    reserved += (
        "OPENSSL_CONF",
        "BASH_ENV",
        "GIT_SSH_COMMAND",
        "GCONV_PATH",
        "NVIDIA_MOFED",
        "NVIDIA_DRIVER_CAPABILITIES",
    )
    reserved += ("AMD_VISIBLE_DEVICES", "HF_TOKEN_PATH", "KUBERNETES_SERVICE_HOST", "TORCH_DEVICE_BACKEND_AUTOLOAD")
    reserved += (
        "CC",
        "TRITON_PTXAS_PATH",
        "NCCL_NET_PLUGIN",
        "NCCL_TUNER_PLUGIN",
        "MPLBACKEND",
        "UCX_MODULE_DIR",
        "TMPDIR",
    )
    names = ("A=B", "A B", "", "$(X)", "a-b", "é", "X" * 129)
    nul = Hostile("env with a NUL", _env("NCCL_DEBUG", "a\0b"))
    return [
        *(Hostile(f"env {name}", _env(name)) for name in reserved),
        *(Hostile(f"env name {name[:12]!r}", _env(name)) for name in names),
        *(Hostile(f"env value {value!r}", _env("NCCL_DEBUG", value), refused=False) for value in EXPANSIONS),
        nul,
        Hostile("env of 1 MiB", _env("NCCL_DEBUG", MEBIBYTE)),
        Hostile("env from a secret", _pod(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]), refused=False),
        Hostile("1000 variables", _pod(env=[{"name": f"A{i}", "value": ""} for i in range(1000)])),
    ]  # fmt: skip


def _numbers() -> list[Hostile]:
    values: tuple[Any, ...] = (0, -1, 1025, 2**31, 2**63, 10**30, 1.5, "2", True, [2])
    return [
        *(Hostile(f"{value!r} nodes", {"nodes": value}) for value in values),
        Hostile("65 GPUs", {"gpusPerNode": 65}),
        Hostile("endless epochs", {"training": {"epochs": 1e300}}),
        Hostile("a rate of 1e308", {"training": {"learningRate": 1e308}}),
        Hostile("a time to live that overflows", {"ttlSecondsAfterFinished": 2**62}),
        Hostile("a size that overflows", _volume(size="9" * 40)),
        Hostile("a negative size", _volume(size="-1Gi")),
        Hostile("no memory at all", _pod(sharedMemory="0")),
        Hostile("GPUs by the back door", _pod(resources={"limits": {"nvidia.com/gpu": 8}})),
        Hostile("GPUs of Intel by the back door", _pod(resources={"limits": {"gpu.intel.com/i915": 8}})),
        Hostile("a device of others as GPU", _pod(gpuResource="example.org/key-store"), refused=False),
        Hostile("CPU as GPU", _pod(gpuResource="cpu")),
        Hostile("GPUs while preparing", _pod(prepareResources={"limits": {"nvidia.com/gpu": 8}})),
        Hostile("a slice of a GPU", _pod(resources={"limits": {"nvidia.com/mig-1g.5gb": 1}})),
        Hostile("a GPU as an RDMA device", _pod(network={"rdmaResource": "amd.com/gpu"})),
        Hostile("a part of a byte", _pod(sharedMemory="0.3")),
        Hostile("a resource of nobody", _pod(resources={"limits": {"pods": 1}})),
        Hostile("more asked for than allowed", _pod(resources={"requests": {"cpu": 4}, "limits": {"cpu": 2}})),
        Hostile("CPU as an RDMA device", _pod(network={"rdmaResource": "cpu"})),
        Hostile("more CPU than there is", _pod(resources={"limits": {"cpu": "999999999999"}}), refused=False),
        Hostile("less than nothing", _pod(resources={"limits": {"cpu": "-1"}})),
    ]


def _where(value: str, count: int) -> dict[str, Any]:
    condition = {"column": "c", "operator": "In", "values": [value] * count}
    return {"data": {"train": {"source": "a/b"}, "filters": {"where": [condition] * 32}}}


# Of a dataset, all that can be named.
COLUMNS = (
    "prompt",
    "system",
    "chosen",
    "rejected",
    "completion",
    "label",
    "responses",
    "scores",
    "answerA",
    "answerB",
)


def _columns() -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "😀" * 128)


def _variables(count: int) -> dict[str, Any]:
    return _pod(env=[{"name": f"A{i}", "value": "\U0001f600" * 4096} for i in range(count)])


def _mixture(length: int) -> dict[str, Any]:
    return {"data": {"train": {"source": "a/b"}, "mixture": [{"source": "a/" + "x" * (length - 2)}] * 32}}


def _reasons(length: int) -> dict[str, Any]:
    return {"failurePolicy": {"rules": [{"reasons": ["R" * length] * 4, "action": "Fail"}] * 20}}


def _texts() -> list[Hostile]:
    """Faults 47 and 48: too large, and full of what is special elsewhere."""
    special = "\u202e\ufeff\U0001f600é\r\n\t\x01'\"\\{{ x.__class__ }}$(HOME)</script>"
    return [
        Hostile("template of 1 MiB", _model(chatTemplate=MEBIBYTE)),
        Hostile("model of 1 MiB", _model(name=MEBIBYTE)),
        Hostile("4 MiB in all", top={"spec": a_job()["spec"] | {"junk": MEBIBYTE * 4}}),
        Hostile("template as large as allowed", _model(chatTemplate="é" * 32768), refused=False),
        Hostile("template of special characters", _model(chatTemplate=special), refused=False),
        Hostile("template with a NUL", _model(chatTemplate="a\0b"), refused=False),
        Hostile("conditions as large as fit", _where("é" * 512, 1), refused=False),
        Hostile("conditions too large together", _where("x" * 1024, 37)),
        Hostile("environment as large as fits", _variables(4), refused=False),
        Hostile("environment too large", _variables(5)),
        Hostile("sources as large as fit", _mixture(256), refused=False),
        Hostile("sources too large together", _mixture(257)),
        Hostile("reasons as large as fit", _reasons(51), refused=False),
        Hostile("reasons too large together", _reasons(52)),
        Hostile("source with a NUL", _source("org/a\0b")),
        Hostile("source with a space", _source("org/a b")),
        Hostile("source that is not ASCII", _source("org/données"), refused=False),
        Hostile("columns that are code", {"data": {"train": {"source": "a/b", "columns": {"prompt": "__import__('os')"}}}}, refused=False),
        Hostile("project that climbs", {"tracking": {"wandb": {"project": "../../x"}}}),
        Hostile("project that expands", {"tracking": {"wandb": {"project": "$(HOME)"}}}, refused=False),
    ]  # fmt: skip


def _images() -> list[Hostile]:
    wrong = ("x y", "x;rm", "../../x", "-x", "x\n", "$(X)", "x|y", "", "/x", "x\\y", "unix://x?y", "é", "a" * 513)
    return [
        *(Hostile(f"image {image[:12]!r}", _pod(image=image)) for image in wrong),
        Hostile("image of another registry", _pod(image="evil.example:5000/x@sha256:" + "0" * 64), refused=False),
    ]


def _places() -> list[Hostile]:
    return [
        Hostile("tolerates everything", _pod(tolerations=[{"operator": "Exists"}]), refused=False),
        Hostile("toleration with code", _pod(tolerations=[{"key": "a;b", "operator": "Exists"}])),
        Hostile("selector that is none", _pod(nodeSelector={"a b": "c"})),
        Hostile("selector value that is none", _pod(nodeSelector={"a": "b c"})),
        Hostile("selector of the control plane", _pod(nodeSelector={"node-role.kubernetes.io/control-plane": ""}), refused=False),
        Hostile("the node's network", _pod(network={"hostNetwork": True}), refused=False),
        Hostile("no isolation", _pod(network={"isolate": False}), refused=False),
        Hostile("a priority", _pod(priorityClassName="high"), refused=False),
        Hostile("annotation of a network", _pod(annotations={"k8s.v1.cni.cncf.io/networks": "kube-system/x"}), refused=False),
        Hostile("label of somebody's Service", _pod(labels={"app": "shop"}), refused=False),
        Hostile("no AppArmor", _pod(annotations={"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"})),
        Hostile("label of another job", _pod(labels={"dpo-operator.dev/job-uid": "x"})),
        Hostile("label that gives an identity", _pod(labels={"azure.workload.identity/use": "true"})),
        Hostile("pod annotation of 1 MiB", _pod(annotations={"a": MEBIBYTE})),
        Hostile("17 annotations", _pod(annotations={f"a{i}": "" for i in range(17)})),
        Hostile("claim of devices", _pod(resourceClaims=[{"name": "a", "resourceClaimTemplateName": "all-devices"}]), refused=False),
        Hostile("claim of devices elsewhere", _pod(resourceClaims=[{"name": "a", "resourceClaimTemplateName": ELSEWHERE}])),
        Hostile("a runtime", _pod(runtimeClassName="privileged"), refused=False),
        Hostile("a variable that loads code", _env("NCCL_GIN_X", "/x.so"), refused=False),
        Hostile("a variable that sends a key elsewhere", _env("WANDB_BASE_URL", "http://x.example"), refused=False),
        Hostile("topology key with code", _pod(topology={"packBy": "a b"})),
        Hostile("interface with an expansion", _pod(network={"interface": "$(X)"})),
        Hostile("interface list", _pod(network={"interface": "^lo,eth0"})),
        Hostile("another manager", {"managedBy": "example.org/$(HOME)"}),
        Hostile("another manager with line breaks", {"managedBy": "a/b\nc"}),
    ]  # fmt: skip


# Every field is within its bounds, and the whole is too large: the API server stores it, and the operator turns it down.
TOO_LARGE = (
    Hostile(
        "mixture and template too large together",
        _model(chatTemplate="\U0001f600" * 32768)
        | {"data": {"train": {"source": "a/b"}, "mixture": [{"source": "a/b", "columns": _columns()}] * 32}},
    ),
)
NAMES = tuple(_names())
TEXTS = tuple(_texts())
OTHERS = (*_references(), *_escalations(), *_environment(), *_numbers(), *_images(), *_places())
ALL = (*NAMES, *TEXTS, *OTHERS)

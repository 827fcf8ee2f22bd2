"""What each reason of Running=False means while a job waits: when it continues, and what the user can do."""

from collections.abc import Callable
from dataclasses import dataclass

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.api.quantity import duration
from dpo_operator.explain.case import Case, Pod

Lines = list[str]


@dataclass(frozen=True)
class Wait:
    """A reason. says: what follows "is pending:". next: when it continues. do: what the user can do."""

    says: str
    next: Callable[[Case], str]
    do: Callable[[Case], Lines]


def _always(text: str) -> Callable[[Case], str]:
    return lambda _case: text


def _by_itself(within: str) -> Callable[[Case], str]:
    return _always(f"It is tried again {within}; the job then goes on by itself, and this is no restart.")


def waiting_pod(case: Case) -> Pod | None:
    """The first pod of the current attempt that does not run, one with a message before the others."""
    late = [pod for pod in case.current_pods if pod.pod_phase == "Pending" and pod.exit_code is None]
    return min(late, key=lambda pod: (not (pod.unscheduled or pod.waiting), pod.index), default=None)


def _describe(case: Case) -> str:
    """The command that shows Kubernetes' own words: of the pod, or of the Job that makes the pods."""
    if pod := waiting_pod(case):
        return f"See Kubernetes' own words: {case.kubectl(f'describe pod {pod.name}')}"
    phase = case.status.phase or "prepare"
    child = names.child_job_name(case.name, phase, case.status.attempt)
    return f"See Kubernetes' own words: {case.kubectl(f'describe job {child}')}"


def in_job_file(case: Case, field: str, what: str) -> str:
    """How a field that can't change in a job's life is changed. field: its path there, "" if `what` names it."""
    where = f"{field} in the job file" if field else "in the job file"
    if case.local:
        return f"{what}: {where}; then dpo run FILE --fresh"
    return f"{what}: {where}, with another name for the job, because it can't change in this one; then kubectl dpo submit FILE"


def fewer_nodes(case: Case, what: str = "Ask for fewer nodes") -> Lines:
    """How a job of several nodes is made smaller; nothing for one of a single node."""
    nodes = case.spec.nodes if case.spec is not None else 1
    return [f"{what}, spec.nodes (now {nodes}): {case.patch(nodes=nodes - 1)}"] if nodes > 1 else []


def _image(case: Case) -> Lines:
    spec = case.spec
    field, value, image = "spec.pod.image", "trainer.image.*", spec.pod.image if spec else None
    if spec is not None and spec.generates_with_vllm and case.status.phase == "generate":
        field, value, image = "spec.pod.generateImage", "generator.image.*", spec.pod.generate_image
    which = f"{field}, now {image}" if image else f"the operator's, the chart's values {value}"
    secrets = ", ".join(spec.pod.image_pull_secrets) if spec else ""
    access = f"the Secrets of spec.pod.imagePullSecrets ({secrets}) must let the node read it"
    return [
        f"Check that the image exists and that its name is right. It is {which}.",
        f"Check that the node may read it: {access if secrets else 'a private registry needs spec.pod.imagePullSecrets'}.",
        _describe(case),
    ]


def _unschedulable(case: Case) -> Lines:
    spec, lines = case.spec, Lines()
    if spec is not None and case.status.phase in ("generate", "train") and spec.gpus_per_node:
        each = f"{spec.gpus_per_node} {spec.pod.gpu_resource or names.GPU}"
        lines.append(
            f"Free or add nodes: {spec.nodes} pod{'s' if spec.nodes > 1 else ''} with {each} each. What nodes have: "
            f"{case.place.cluster} describe nodes"
        )
        lines += fewer_nodes(case)
    elif spec is not None:
        lines.append(f"Free or add nodes that fit the pod. What nodes have: {case.place.cluster} describe nodes")
    if spec is not None and (spec.pod.node_selector or spec.pod.tolerations):
        lines.append("Compare spec.pod.nodeSelector and spec.pod.tolerations with the nodes' labels and taints.")
    return [*lines, _describe(case)]


def _gang_next(case: Case) -> str:
    """Until when a gang keeps its nodes, or when it asks again."""
    placement, policy = case.status.placement_wait, case.spec.failure_policy if case.spec else None
    if placement is not None and placement.not_before and placement.not_before > case.now:
        return f"It asks for nodes again {case.until(placement.not_before)}. This is no restart."
    text = "It goes on at once when a node has room; this is no restart."
    if policy is not None and case.spec is not None and case.spec.nodes > 1 and case.status.phase == "train":
        limit = duration(policy.gang_timeout_seconds)
        text += f" If not all pods get a node within {limit} (failurePolicy.gangTimeoutSeconds), they give their nodes back and try again later."
    return text


def _queue_next(case: Case) -> str:
    spec, placement = case.spec, case.status.placement_wait
    if spec is not None and spec.queue is not None:
        return f"{spec.queue.kind} decides when it starts. This is no restart, and activeDeadlineSeconds does not run."
    if placement is None:
        return "It goes on when its Job is no longer suspended."
    ahead = sum(1 for since in case.waiting if since < placement.waiting_since)
    where = "" if case.others_known else f" in namespace {case.namespace}; other namespaces could not be read"
    line = f"{ahead} of {len(case.waiting)} other waiting jobs asked earlier{where}" if case.waiting else ""
    line = line or f"no other job waits{where}"
    return f"One gang is placed at a time. It has waited for {duration(case.seconds_since(placement.waiting_since))}; {line}."


def _queue_do(case: Case) -> Lines:
    spec = case.spec
    if spec is not None and spec.queue is not None and spec.queue.kind == "Kueue":
        return [f"Why it is not admitted: {case.kubectl('describe workloads.kueue.x-k8s.io')}"]
    if spec is not None and spec.queue is not None:
        return [f"Ask {spec.queue.kind} why it is not admitted, and look at the quota of its queue."]
    if case.status.placement_wait is not None:
        return ["See who waits and who is being placed: kubectl dpo list -A"]
    phase = case.status.phase or "train"
    child = names.child_job_name(case.name, phase, case.status.attempt)
    change = '{"spec":{"suspend":false}}'
    return [f"Let the Job go on: {case.kubectl(f'patch job {child} --type=merge -p')} '{change}'"]


def _quota(case: Case) -> Lines:
    lines = [f"See what is used: {case.kubectl('describe resourcequota')}"]
    if case.status.phase in ("generate", "train"):
        lines += fewer_nodes(case, "Ask for less")
    return [*lines, "End other jobs of the namespace, or ask its administrator for a larger quota."]


def _secret(case: Case) -> Lines:
    token = case.spec.model.token_secret_ref if case.spec else None
    if case.status.phase == "judge" and case.spec is not None and case.spec.iterative is not None:
        endpoint = case.spec.iterative.judge.endpoint
        token = endpoint.api_key_secret_ref if endpoint is not None else None
    make = (
        [f"Make it: {case.kubectl(f'create secret generic {token.name} --from-literal={token.key}=TOKEN')}"]
        if token is not None
        else [f"See which exist: {case.kubectl('get secrets')}"]
    )
    return [*make, _describe(case)]


def _claim(case: Case) -> Lines:
    name = case.spec.checkpoint.volume.claim_name if case.spec else None
    name = name or names.volume_claim_name(case.name)
    return [f"See what the claim waits for: {case.kubectl(f'describe pvc {name}')}"]


def _no_claim(case: Case) -> Lines:
    return [f"Make the claim that is named above; those that exist: {case.kubectl('get pvc')}"]


def _pending_claim(case: Case) -> Lines:
    return [
        *_claim(case),
        f"See whether there is a StorageClass that provides it: {case.place.cluster} get storageclass",
    ]


def _priority(case: Case) -> Lines:
    name = case.spec.pod.priority_class_name if case.spec else None
    return [
        f"Those that exist: {case.place.cluster} get priorityclass",
        f"Have {name or 'the class'} made, or:",
        in_job_file(case, "spec.pod.priorityClassName", "Name one that exists"),
    ]


def _conflict(_case: Case) -> Lines:
    return [
        "If nobody needs the object that is named above, delete it; the job then goes on.",
        "Or give the job another name in its file: kubectl dpo submit FILE",
    ]


def _starting(case: Case) -> Lines:
    return ["Wait; an image may take minutes.", _describe(case)]


def _administrator(case: Case) -> Lines:
    return [
        "Ask the administrator for what is named above: the chart's values allow.*, or a label that the message names."
    ]


def _backing_off(case: Case) -> str:
    before = case.status.not_before
    if before is None or before <= case.now:
        return f"Attempt {case.status.attempt} starts now."
    return f"Attempt {case.status.attempt} starts {case.until(before)}."


_KUBELET = _by_itself("by the kubelet, at most 5 min apart")
_SERVER = _by_itself("within 60 s")
_CLAIMS = _by_itself("within 10 s")

WAITS: dict[str, Wait] = {
    c.PENDING: Wait("the next phase is about to start.", _by_itself("at once"), lambda _case: []),
    c.PODS_PENDING: Wait(
        "its pods are starting.", _always("It goes on by itself when all of them run; this is no restart."), _starting
    ),
    c.UNSCHEDULABLE: Wait("no node has room for a pod.", _gang_next, _unschedulable),
    c.QUOTA_EXCEEDED: Wait("a quota of the namespace is used up.", _SERVER, _quota),
    c.ADMISSION_DENIED: Wait(
        "an admission webhook or policy refuses its pods.",
        _SERVER,
        lambda case: ["Ask the administrator of the webhook or policy that is named above.", _describe(case)],
    ),
    c.PRIORITY_CLASS_NOT_FOUND: Wait("its priority class does not exist.", _SERVER, _priority),
    c.PODS_REFUSED: Wait("Kubernetes refuses its pods.", _SERVER, lambda case: [_describe(case)]),
    c.REQUEST_REFUSED: Wait(
        "the API server refuses an object of the job.",
        _SERVER,
        lambda case: ["Do what the API server's words above ask for.", f"Events: {case.dpo('events')}"],
    ),
    c.SECRET_NOT_FOUND: Wait(
        "a Secret, or a key of it, does not exist.", _by_itself("by the kubelet, at most 2 min apart"), _secret
    ),
    c.MOUNT_FAILED: Wait("a volume can't be mounted.", _KUBELET, lambda case: [*_claim(case), _describe(case)]),
    c.IMAGE_PULL_FAILED: Wait("a pod can't get its image.", _KUBELET, _image),
    c.CONTAINER_CONFIG_ERROR: Wait(
        "a container can't be made as the pod says.",
        _KUBELET,
        lambda case: ["Make what the kubelet's words above say is missing.", _describe(case)],
    ),
    c.VOLUME_NOT_FOUND: Wait("a claim that the job names does not exist.", _CLAIMS, _no_claim),
    c.VOLUME_PENDING: Wait("its claim has no volume yet.", _CLAIMS, _pending_claim),
    c.VOLUME_TERMINATING: Wait("a claim of its name is being deleted.", _CLAIMS, _claim),
    c.VOLUME_UNSUITABLE: Wait(
        "its claim can't be used as the job needs it.",
        _CLAIMS,
        lambda case: [*_claim(case), in_job_file(case, "spec.checkpoint.volume", "Or use another claim")],
    ),
    c.NAME_CONFLICT: Wait("an object of its name belongs to somebody else.", _CLAIMS, _conflict),
    c.NOT_ALLOWED: Wait("the administrator does not allow what it asks for.", _CLAIMS, _administrator),
    c.STOPPING_OLD_PODS: Wait(
        "pods of an earlier attempt are still stopping.",
        _always("The next attempt starts when they are gone; pods of a lost node are removed by force."),
        lambda case: [f"See them: {case.kubectl(f'get pods -l {names.LABEL_JOB}={case.name}')}"],
    ),
    c.BACKING_OFF: Wait("it waits before the next attempt.", _backing_off, lambda _case: []),
    c.QUEUED: Wait("it waits for its turn.", _queue_next, _queue_do),
    c.GANG_TIMED_OUT: Wait("not all of its pods got a node in time.", _gang_next, _unschedulable),
}

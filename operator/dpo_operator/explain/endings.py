"""What each reason of a failed attempt, or of a failed job, means, and what the user can do."""

from collections.abc import Callable
from dataclasses import dataclass

from dpo_operator.api import conditions as c
from dpo_operator.api import names
from dpo_operator.explain.case import Case
from dpo_operator.explain.learning import suggestion
from dpo_operator.explain.waits import Lines, fewer_nodes, in_job_file


@dataclass(frozen=True)
class Ending:
    """A reason. says: a sentence without its period, in the past tense. do: what the user can do."""

    says: str
    do: Callable[[Case], Lines]


def retry(case: Case, first: str = "When that is done") -> Lines:
    """How a failed job continues from its last checkpoint; one that restarts does so by itself."""
    if not case.failed:
        return []
    return [f"{first}, continue from the last checkpoint: {'dpo run FILE' if case.local else case.dpo('retry')}"]


def logs(case: Case) -> str:
    """How the words of the processes are read."""
    if case.local:
        return f"The trainer's words are above the end of `dpo run`; termination-*.json in {case.place.folder} has the last ones."
    return f"Read the logs of all ranks: {case.dpo('logs')}{'' if case.failed else ' --previous'}"


def _job(case: Case) -> Lines:
    return [in_job_file(case, "", "Change the setting that the words above name")]


def _data(case: Case) -> Lines:
    folder = case.place.folder or "the job's folder on the volume"
    return [
        f"See which rows were left out and why: data/dropped.jsonl and data/report.txt in {folder}.",
        "Check the data on your machine: dpo preview FILE",
        in_job_file(
            case, "spec.data.train.columns, spec.data.filters", "Name the right columns, or filter the bad rows"
        ),
    ]


def _input(case: Case) -> Lines:
    return [
        in_job_file(
            case, "spec.model.name, spec.data.train.source", "Check the spelling, revision and split, and correct them"
        )
    ]


def _source(case: Case) -> Lines:
    lines = [
        "Check that the hub or store can be reached from the pods: spec.access has proxy, endpoints and certificates."
    ]
    if not case.local:
        lines.append("A NetworkPolicy may be in the way; the chart's values network.* say what pods may reach.")
    return [*lines, *retry(case)]


def _crash(case: Case) -> Lines:
    return [
        logs(case),
        *retry(case, "If the cause has gone"),
        "If it comes again at the same step, report it with the traceback.",
    ]


def _volume(case: Case) -> Lines:
    if case.local:
        return [f"Look at the free space of {case.place.folder}: df -h", *retry(case)]
    volume = case.spec.checkpoint.volume if case.spec else None
    grow = case.patch(checkpoint={"volume": {"size": "SIZE"}})
    size = f" (now {volume.size})" if volume else ""
    return [
        f"If it is full, make it larger, spec.checkpoint.volume.size{size}: {grow}",
        "If it is read-only or failing, have its storage looked at.",
        *retry(case),
    ]


def _not_finite(case: Case) -> Lines:
    rate = case.spec.learning_rate if case.spec else None
    now = f" (now {rate:g})" if rate is not None else ""
    lower = f"Lower it to a third{now}" if rate is None else f"Lower the rate to {rate / 3:.1g}{now}"
    return [
        in_job_file(case, "spec.training.learningRate", lower),
        "With precision fp16 use bf16, and look for broken rows in data/report.txt.",
    ]


def _denied(case: Case) -> Lines:
    lines = [
        "Accept the model's licence on the hub with the account of the token, and check that the token or key is valid."
    ]
    token = case.spec.model.token_secret_ref if case.spec else None
    if token is None:
        return [*lines, in_job_file(case, "spec.model.tokenSecretRef", "A gated model needs a token")]
    if not case.local:
        lines.append(
            f"Look at the Secret: {case.kubectl(f'describe secret {token.name}')} (it needs the key {token.key})"
        )
    return [*lines, *retry(case)]


def _export(case: Case) -> Lines:
    return [
        "The checkpoint is whole: export it by hand and see what differs: dpo export CHECKPOINT --to FOLDER",
        *retry(case, "If the cause has gone"),
    ]


def _nodes(case: Case) -> str:
    """Nodes on which a container failed, as arguments of a command."""
    return " ".join(sorted({pod.node for pod in case.pods if pod.node and pod.exit_code}) or ["NODE"])


def _no_gpu(case: Case) -> Lines:
    if case.local:
        return ["Check the driver: nvidia-smi", in_job_file(case, "spec.gpusPerNode", "Or run without GPUs, with 0")]
    return [
        f"Have the driver of the node looked at, and keep pods away from it until then: {case.place.cluster} cordon {_nodes(case)}",
        *retry(case),
    ]


def _old_driver(case: Case) -> Lines:
    if case.local:
        return ["Update the driver, or install torch for an older CUDA", "See what there is: nvidia-smi"]
    return [
        "Have the driver of the nodes updated, or build the trainer's image for an older CUDA: docs/install.md",
        in_job_file(
            case, "spec.pod.image or spec.pod.nodeSelector", "Or name another image, or nodes with a newer driver"
        ),
    ]


def _memory(case: Case) -> Lines:
    return [
        in_job_file(case, "spec.pod.resources.limits.memory", "Give the pods more memory"),
        in_job_file(case, "spec.training.microBatchSize or spec.data.maxLength", "Or lower what is in memory at once"),
        "See what it needs: dpo plan FILE",
    ]


def _killed(case: Case) -> Lines:
    if case.local:
        return [
            "The machine may have run out of memory: dmesg says so. See what the job needs: dpo plan FILE",
            *retry(case),
        ]
    return [logs(case), *_memory(case)]


def _own_limits(case: Case) -> Lines:
    return [
        "If the node was short of memory or disk, nothing needs to be done.",
        in_job_file(case, "spec.pod.resources", "If the pod used more than its own limit, raise that"),
    ]


def _nothing(_case: Case) -> Lines:
    return []


def _node(case: Case) -> Lines:
    return [f"If it happens again, have the node looked at: {case.place.cluster} describe node {_nodes(case)}"]


def _room(case: Case) -> str:
    return f"See what nodes have left: {case.place.cluster} describe nodes"


def _resources(case: Case) -> Lines:
    return [*_node(case), _room(case)]


def _hang(case: Case) -> Lines:
    policy = case.spec.failure_policy if case.spec else None
    limit = policy.hang_timeout_seconds if policy else 300
    raised = case.patch(failurePolicy={"hangTimeoutSeconds": 2 * limit})
    return [
        f"Read the stacks of the ranks, which say where each one was: {names.STACKS}/attempt-N/rank-R.txt in the job's folder on the volume.",
        "If ranks wait for one another, look at the network between nodes (NCCL); if one is elsewhere, at its node.",
        f"If a piece of work may take longer than {limit} s: {raised}",
    ]


def _peers(case: Case) -> Lines:
    return [
        logs(case),
        "Another rank ended first: its words say why. If none says, look at the network between nodes.",
    ]


def _outsider(case: Case) -> Lines:
    return [f"Find out who deletes objects of the job: {case.dpo('events')}"]


def _gang(case: Case) -> Lines:
    return [_room(case), *fewer_nodes(case)]


def _diagnosis(case: Case) -> Lines:
    lines = [line for finding in case.status.findings[:2] for line in suggestion(case, finding)]
    held = {finding.code for finding in case.status.findings if finding.severity == "Unhealthy"}
    stop_on = case.spec.diagnosis.stop_on if case.spec and held else ()
    left = [code for code in stop_on if code not in held]
    off = "change spec.diagnosis.stopOn in the job file" if case.local else case.patch(diagnosis={"stopOn": left})
    return [
        *lines,
        f"Or take the finding off the list, and train on from the last checkpoint: {off}",
        *retry(case),
        "The state as it is can be exported: dpo export CHECKPOINT --to FOLDER",
    ]


def _deadline(case: Case) -> Lines:
    limit = case.spec.active_deadline_seconds if case.spec else None
    more = case.patch(activeDeadlineSeconds=2 * limit if limit else 86400)
    return [f"Give it more time, spec.activeDeadlineSeconds (now {limit}): {more}", *retry(case)]


def _claim_lost(case: Case) -> Lines:
    if not case.status.is_final:
        return ["Leave the sources of model and data as they were: a checkpoint is used only with the same ones."]
    return [
        "The checkpoints are gone with the claim. If there is a copy of the volume, restore it into a claim of your own and name it in "
        "spec.checkpoint.volume.claimName.",
        "A job with spec.checkpoint.mirror resumes from its copies in an object store by itself.",
        f"Start over: {case.dpo('delete')}, then kubectl dpo submit FILE",
    ]


def _allowed(case: Case) -> Lines:
    return [
        "Ask the administrator for what is named above: the chart's values allow.*",
        in_job_file(case, "", "Or do without it"),
    ]


ENDINGS: dict[str, Ending] = {
    # Of the trainer, by exit code.
    "Unsupported": Ending("it asked for something that this version can't do", _job),
    "BadDataset": Ending("the data could not be used", _data),
    "InputNotFound": Ending("the model, the dataset or a file of them does not exist", _input),
    "SourceUnavailable": Ending("a hub or an object store could not be reached", _source),
    "InternalError": Ending("the trainer met an error that it does not know", _crash),
    "VolumeError": Ending("the work volume was full, read-only or failing", _volume),
    "PeerLost": Ending("a rank lost another one", _peers),
    "NonFiniteLoss": Ending("the loss or the gradient stayed NaN or infinite", _not_finite),
    "AccessDenied": Ending("a hub or an object store refused the token or key", _denied),
    "InvalidConfiguration": Ending("its settings do not fit the model, the data or each other", _job),
    "BadExport": Ending("the exported weights did not reproduce the trained model", _export),
    "NoAccelerator": Ending("a container had GPUs that CUDA could not use", _no_gpu),
    "DriverTooOld": Ending("a node's driver is too old for the image's CUDA", _old_driver),
    "StoppedByDiagnosis": Ending("a finding of spec.diagnosis.stopOn ended the training", _diagnosis),
    "Killed": Ending("a process was killed, by the node or for want of memory", _killed),
    "Terminated": Ending("a process was asked to stop by somebody else", _nothing),
    "ProcessFailed": Ending("a process ended with a code that the trainer does not use", _crash),
    # Of Kubernetes and the operator.
    "OOMKilled": Ending("a container used more memory than its limit", _memory),
    "Preempted": Ending("a pod had to make room for one of higher priority", _nothing),
    "Evicted": Ending("a pod was evicted from its node", _own_limits),
    "Disrupted": Ending("a pod was disrupted", _nothing),
    "NodeLost": Ending("a node stopped answering", _node),
    "NodeShutdown": Ending("a node was shut down", _nothing),
    "NodeRestarted": Ending("a node or its container runtime restarted", _node),
    "RefusedByNode": Ending("a node refused a pod", _resources),
    "OutOfResources": Ending("a node had less room than the scheduler thought", _resources),
    "PodDeadlineExceeded": Ending("a pod ran longer than a deadline that somebody set on it", _outsider),
    "PodFailed": Ending("Kubernetes ended a pod", _node),
    "PodDeleted": Ending("somebody deleted a pod", _outsider),
    "JobDeleted": Ending("somebody deleted the Job of the attempt", _outsider),
    "Hang": Ending("the ranks finished nothing for too long", _hang),
    "GangIncomplete": Ending("not all ranks were there", _gang),
    "GangTimedOut": Ending("not all pods got a node in time", _gang),
    # Of the whole job.
    c.INVALID_SPEC: Ending("its spec is not valid", _job),
    c.NOT_ALLOWED: Ending("the administrator does not allow what it asks for", _allowed),
    c.DEADLINE_EXCEEDED: Ending("it ran longer than activeDeadlineSeconds", _deadline),
    c.VOLUME_LOST: Ending("the claim with its files was deleted", _claim_lost),
}
# Ends that another reason led to.
EXHAUSTED = {
    c.MAX_RESTARTS_EXCEEDED: "it was restarted as often as failurePolicy.maxRestarts allows",
    c.NO_PROGRESS: "restarts did not get it any further",
}
UNKNOWN = Ending("it failed", _crash)


def ending(reason: str) -> Ending:
    """The row of a reason; a general one for reasons of other versions."""
    return ENDINGS.get(reason, UNKNOWN)

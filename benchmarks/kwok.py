"""Nodes and pods without machines, played by kwok, and answers of trainers that it can't give.

kwok moves each pod through stages: it runs as soon as it has a node; prepare and export end after a second with the
message that the trainer leaves; training runs until the time in the annotation FAILS_AT, if there is one; a pod that is
deleted exits with 143 and is gone. Pods have addresses of the loopback network, where one server answers `/status` for all
trainers. So they are read as often as real ones, and as soon.
"""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.reports import Progress
from tests.apiserver.client import Requests
from tests.apiserver.gomodule import kwok_binary
from tests.apiserver.hands import last_words, wait_until
from tests.cluster.rig.control_plane import ControlPlane
from tests.cluster.rig.processes import spawn, stop
from tests.ports import free_port

Json = dict[str, Any]
STAGE = "kwok.x-k8s.io/v1alpha1"
# Training pods with this annotation fail at the time that it names (RFC 3339).
FAILS_AT = "benchmarks.example/fails-at"
PHASES: tuple[names.Phase, ...] = ("prepare", "train", "export")
# Addresses are NETWORK.<number of the phase>.<attempt>: all that an answer depends on.
NETWORK = "127.77"
MAX_ATTEMPT = 40
WORK_MILLISECONDS = 1000
# A training step: the operator writes a job's progress as often, at most every 5 s.
STEP_SECONDS, MAX_STEPS = 10.0, 100_000
# Renewed every quarter of it. The control plane's grace for nodes is 16 s.
LEASE_SECONDS = 24


def stages() -> list[Json]:
    """kwok's stages of nodes and pods."""
    succeed = [_end(phase, 0, delay={"durationMilliseconds": WORK_MILLISECONDS}) for phase in ("prepare", "export")]
    fails_at = {"expressionFrom": f'.metadata.annotations["{FAILS_AT}"]'}
    fail = _end("train", 137, _expression(fails_at["expressionFrom"], "Exists"), delay={"durationFrom": fails_at})
    exit_after_deletion = [_end(phase, 143, deleted=True) for phase in PHASES]
    return [_node(), *(_start(phase) for phase in PHASES), *succeed, fail, *exit_after_deletion, _gone()]


def _node() -> Json:
    """A node is ready at once; kwok renews its lease."""
    ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    resources = {"cpu": "1k", "memory": "4Ti", "pods": "1k"}
    condition = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}
    condition |= {"lastHeartbeatTime": "{{ Now }}", "lastTransitionTime": "{{ Now }}"}
    status = {"capacity": resources, "allocatable": resources, "conditions": [condition]}
    spec = {
        "resourceRef": {"apiGroup": "v1", "kind": "Node"},
        "selector": {"matchExpressions": [_expression(ready, "NotIn", "True")]},
        "next": {"statusTemplate": json.dumps(status)},
    }
    return {"apiVersion": STAGE, "kind": "Stage", "metadata": {"name": "node-is-ready"}, "spec": spec}


def _expression(key: str, operator: str, *values: str) -> Json:
    return {"key": key, "operator": operator} | ({"values": list(values)} if values else {})


def _stage(name: str, states: tuple[str, ...], *more: Json, deleted: bool, phase: str = "", **spec: Any) -> Json:
    """A stage of pods in one of these states. phase: of the trainer; empty: any."""
    asked = [
        _expression(".metadata.deletionTimestamp", "Exists" if deleted else "DoesNotExist"),
        _expression(".status.phase", "In", *states),
        *more,
    ]
    labels = {"matchLabels": {names.LABEL_PHASE: phase}} if phase else {}
    return {
        "apiVersion": STAGE,
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {"matchExpressions": asked} | labels,
            **spec,
        },
    }


# JSON is YAML, so templates are JSON with expressions of Go's templates in its texts.
ATTEMPT = f"{{{{ index .metadata.labels `{names.LABEL_ATTEMPT}` }}}}"


def _status(phase: str, state: Json, *, ready: bool, **more: Any) -> Json:
    conditions = [
        {"type": type_, "status": str(ready), "lastTransitionTime": "{{ Now }}"}
        for type_ in ("Ready", "ContainersReady")
    ]
    container = {"name": "trainer", "image": "t", "imageID": "", "ready": ready, "restartCount": 0, "state": state}
    status = {"phase": phase, "containerStatuses": [container], "conditions": conditions, **more}
    return {"statusTemplate": json.dumps(status)}


def _start(phase: names.Phase) -> Json:
    ip = address(phase, ATTEMPT)
    status = _status(
        "Running",
        {"running": {"startedAt": "{{ Now }}"}},
        ready=True,
        podIP=ip,
        podIPs=[{"ip": ip}],
        startTime="{{ Now }}",
    )
    return _stage(f"{phase}-starts", ("Pending",), phase=phase, deleted=False, next=status)


def _end(phase: str, code: int, *more: Json, deleted: bool = False, **spec: Any) -> Json:
    said = ""
    if code != 137:
        dataset = {"train_pairs": 1000, "eval_pairs": 100} if phase == "prepare" else None
        told = {"dataset": dataset} if dataset else {"export_path": "export"} if phase == "export" else {}
        said = last_words(code, phase, 0, **told).replace('"attempt": 0', f'"attempt": {ATTEMPT}')
    terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": said}
    terminated |= {"startedAt": "{{ Now }}", "finishedAt": "{{ Now }}"}
    status = _status("Failed" if code else "Succeeded", {"terminated": terminated}, ready=False)
    name = f"{phase}-{'is-stopped' if deleted else 'fails' if code else 'succeeds'}"
    states = ("Running", "Pending") if deleted else ("Running",)
    return _stage(name, states, *more, phase=phase, deleted=deleted, next=status, **spec)


def _gone() -> Json:
    return _stage("is-gone", ("Succeeded", "Failed"), deleted=True, next={"delete": True})


def address(phase: names.Phase, attempt: int | str) -> str:
    """Address of the pods of an attempt."""
    return f"{NETWORK}.{1 + PHASES.index(phase)}.{attempt}"


def answer(ip: str, running_seconds: float) -> Progress:
    """What a trainer with this address says. running_seconds: since the server started; all trainers are as far."""
    _, _, phase, attempt = ip.split(".")
    step = int(running_seconds / STEP_SECONDS)
    now = time.time()
    return Progress(
        phase=PHASES[int(phase) - 1],
        attempt=int(attempt),
        activity="training",
        step=step,
        max_steps=MAX_STEPS,
        started_at=now - running_seconds,
        last_step_at=now,
        train={"loss": 1 / (1 + step), "reward_margin": step / MAX_STEPS},
    )


class Trainers:
    """A thread that answers `/status` for all pods."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._error: OSError | None = None
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="trainers", daemon=True)

    def start(self) -> None:
        """Raises OSError when the port is taken."""
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopped.set)
            self._thread.join(5)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        hosts = [address(phase, attempt) for phase in PHASES for attempt in range(1, MAX_ATTEMPT + 1)]
        try:
            server = await asyncio.start_server(self._connected, hosts, names.METRICS_PORT)
        except OSError as error:
            self._error = error
            return
        finally:
            self._ready.set()
        await self._stopped.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            body = (
                answer(writer.get_extra_info("sockname")[0], time.monotonic() - self._began).model_dump_json().encode()
            )
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


@contextmanager
def nodes(plane: ControlPlane, count: int) -> Iterator[None]:
    """Nodes that are ready, and their pods, until the end."""
    config = plane.layout.root / "kwok.yaml"
    config.write_text("\n---\n".join(json.dumps(each) for each in (*stages(), _options())))
    trainers = Trainers()
    trainers.start()
    kwok = spawn("kwok", _command(plane, config), records=plane.layout.processes, log=plane.layout.logs / "kwok.log")
    try:
        requests = Requests(plane)
        for i in range(count):
            node = {"metadata": {"name": f"node-{i}", "labels": {"kubernetes.io/hostname": f"node-{i}"}}}
            made = requests.send("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node"} | node)
            assert made.accepted, made.message

        def ready() -> bool:
            assert kwok.alive, (plane.layout.logs / "kwok.log").read_text()[-4000:]
            found = requests.send("GET", "/api/v1/nodes").body["items"]
            return (
                sum(1 for node in found if node.get("status", {}).get("allocatable") and not node["spec"].get("taints"))
                >= count
            )

        wait_until("nodes that take pods", ready, 120)
        yield
    finally:
        stop([kwok])
        trainers.stop()


def _options() -> Json:
    parallel = {f"{what}Parallelism": 16 for what in ("podPlayStage", "nodePlayStage", "nodeLease", "podsOnNodeSync")}
    kind = {"apiVersion": "config.kwok.x-k8s.io/v1alpha1", "kind": "KwokConfiguration"}
    return kind | {"options": parallel | {"enablePodsOnNodeSyncStreamWatch": True}}


def _command(plane: ControlPlane, config: Path) -> list[str | Path]:
    return [
        kwok_binary(),
        f"--kubeconfig={plane.kubeconfig}",
        f"--config={config}",
        "--manage-all-nodes",
        f"--node-lease-duration-seconds={LEASE_SECONDS}",
        f"--server-address=127.0.0.1:{free_port()}",
    ]

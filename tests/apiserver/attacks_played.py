"""Attacks that the API server lets pass: whether they succeed is seen in what the operator makes of them. Here: what all of them
share, and what is planted before the operator starts."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dpo_operator.api import names
from dpo_operator.api.types import DPOJob
from dpo_operator.builders.config import build_config_map
from tests.apiserver import harmless
from tests.apiserver.hands import last_words
from tests.apiserver.tenants import HONEST, SHARED, Arena, Json, a_dpojob

FORGED = "ee" * 32
ATTACKERS = "attacker.example/i:1"
# Escapes, directions of writing, and line breaks that begin a line of somebody else.
NASTY = "\x1b[31mred\x07 \u202emirrored\u2066 \x9b1m\nNormal  Complete  by the operator\r\u2028"
CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Played:
    """act: the attack. settled: whether the operator has answered; asked again and again, also moves the victim on.

    won: what the attacker got, empty for nothing.
    """

    id: str
    tenant: str
    act: Callable[[Arena], object]
    settled: Callable[[Arena], object]
    won: Callable[[Arena], str]


def job_of(arena: Arena, namespace: str, name: str) -> Json:
    return arena.hands(namespace).get("dpojobs", name) or {}


def parsed(raw: Json, **spec: Any) -> DPOJob:
    fields = {key: raw[key] for key in ("apiVersion", "kind", "metadata")}
    return DPOJob.model_validate(fields | {"spec": raw["spec"] | spec})


def waits_for(arena: Arena, namespace: str, name: str) -> str:
    """Reason for which a job does not run, and is not merely slow."""
    status, reason = arena.hands(namespace).condition(name, "Running")
    return (
        reason
        if status == "False" and reason in ("NotAllowed", "NameConflict", "RequestRefused", "InvalidSpec")
        else ""
    )


def answered(namespace: str, name: str) -> Callable[[Arena], object]:
    """A batch/v1 Job, or why there is none."""

    def look(arena: Arena) -> object:
        hands = arena.hands(namespace)
        failed = hands.condition(name, "Failed")[0] == "True"
        return hands.children("jobs", name) or waits_for(arena, namespace, name) or failed

    return look


def made_a_job(namespace: str, name: str) -> Callable[[Arena], str]:
    """Won when there are pods to be."""

    def look(arena: Arena) -> str:
        made = arena.hands(namespace).children("jobs", name)
        return f"Job {made[0]['metadata']['name']}" if made else ""

    return look


def harm(namespace: str, name: str) -> Callable[[Arena], str]:
    """Won when a child object could harm others."""

    def look(arena: Arena) -> str:
        hands, job = arena.hands(namespace), job_of(arena, namespace, name)
        kinds = {"jobs": "Job", "configmaps": "ConfigMap", "services": "Service", "networkpolicies": "NetworkPolicy"}
        found = [c | {"kind": kind} for plural, kind in kinds.items() for c in hands.children(plural, name)]
        assert any(child["kind"] == "Job" for child in found), name
        return "; ".join(problem for child in found for problem in harmless.problems(child, job))

    return look


def owner(raw: Json, kind: str = names.KIND, version: str = names.API_VERSION, **more: Any) -> list[Json]:
    metadata = raw["metadata"]
    return [
        {"apiVersion": version, "kind": kind, "name": metadata["name"], "uid": metadata["uid"], "controller": True}
        | more
    ]


def victims_labels(raw: Json, **more: str) -> dict[str, str]:
    own = {names.LABEL_MANAGED_BY: names.PART_OF, names.LABEL_PART_OF: names.PART_OF, names.LABEL_NAME: "dpojob"}
    return own | {names.LABEL_JOB: raw["metadata"]["name"], names.LABEL_UID: raw["metadata"]["uid"]} | more


def prepare(arena: Arena, namespace: str, name: str) -> None:
    """What a kubelet does to a prepare pod, as soon as there is one."""
    hands = arena.hands(namespace)
    for pod in hands.children("pods", name):
        labels, phase = pod["metadata"]["labels"], pod["status"].get("phase")
        if labels[names.LABEL_PHASE] == "prepare" and phase in ("Pending", "Running"):
            (hands.start(pod) if phase == "Pending" else hands.end(pod, 0, last_words(0, "prepare", 1)))


# Before the operator starts, as while it is upgraded: colleagues have made jobs, and attackers plant what these will need.


def _a_colleagues(name: str, **spec: Any) -> Callable[[Arena], Json]:
    return lambda arena: arena.create(a_dpojob(name, SHARED, **spec), HONEST).body


def planted_file(victim: Json, **spec: Any) -> Json:
    """The victim's job file with another model, under its name and with its owner."""
    made = build_config_map(parsed(victim, **spec))
    return made | {"data": {"job.json": made["data"]["job.json"].replace("org/", "evil/")}}


def reads(arena: Arena, name: str, planted: Json) -> str:
    """Won when pods take the planted file for theirs."""
    digest = hashlib.sha256(planted["data"]["job.json"].encode()).hexdigest()
    jobs = arena.hands(SHARED).children("jobs", name)
    return "a Job that reads it" if digest in json.dumps(jobs) else ""


def _file_at_birth(arena: Arena) -> None:
    planted = planted_file(_a_colleagues("configured")(arena))
    arena.notes["configured"] = arena.plant("t2", "configmaps", planted)


def _claim(name: str, *, owned: bool) -> Callable[[Arena], object]:
    def act(arena: Arena) -> None:
        victim = _a_colleagues(name)(arena)
        labels = victims_labels(victim)
        if not owned:
            del labels[names.LABEL_UID]
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "100Gi"}}}
        metadata = {"name": f"{name}-work", "labels": labels, "ownerReferences": owner(victim) if owned else []}
        arena.plant(
            "t4", "persistentvolumeclaims", {"kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        )

    return act


def _uses_claim(name: str) -> Callable[[Arena], str]:
    return lambda arena: made_a_job(SHARED, name)(arena) and "files on the planted claim"


def _budget(arena: Arena) -> None:
    victim = _a_colleagues("budgeted", nodes=2)(arena)
    spec = {"minAvailable": 99, "selector": {"matchLabels": {names.LABEL_UID: victim["metadata"]["uid"]}}}
    manifest = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "budgeted-train"}}
    arena.plant("t8", "poddisruptionbudgets", manifest | {"spec": spec})


def _unguarded(arena: Arena) -> str:
    train = [j for j in arena.hands(SHARED).children("jobs", "budgeted") if "-train-" in j["metadata"]["name"]]
    return "ranks that can't be evicted" if train else ""


def _after_prepare(name: str, phase: str = "train") -> Callable[[Arena], object]:
    def look(arena: Arena) -> object:
        prepare(arena, SHARED, name)
        later = [j for j in arena.hands(SHARED).children("jobs", name) if f"-{phase}-" in j["metadata"]["name"]]
        return later or waits_for(arena, SHARED, name)

    return look


def _service(arena: Arena) -> None:
    victim = _a_colleagues("served")(arena)
    metadata = {"name": "served-train", "ownerReferences": owner(victim), "labels": victims_labels(victim)}
    spec = {"clusterIP": "None", "selector": {"app": "attacker"}, "ports": [{"port": 29500}]}
    arena.plant("t7", "services", {"kind": "Service", "metadata": metadata, "spec": spec})


def _elsewhere(arena: Arena) -> str:
    service = arena.hands(SHARED).get("services", "served-train") or {}
    train = [j for j in arena.hands(SHARED).children("jobs", "served") if "-train-" in j["metadata"]["name"]]
    return "ranks that look for one another at the attacker's" if train and "app" in service["spec"]["selector"] else ""


def _batch_job(name: str, *, owned: bool) -> Callable[[Arena], object]:
    def act(arena: Arena) -> None:
        victim = _a_colleagues(name)(arena)
        labels = victims_labels(victim, **{names.LABEL_PHASE: "prepare", names.LABEL_ATTEMPT: "1"}) if owned else {}
        metadata = {"name": f"{name}-prepare-1", "labels": labels, "ownerReferences": owner(victim) if owned else []}
        template = {"metadata": {"labels": labels}, "spec": _containers("Never")}
        manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}
        body = manifest | {
            "spec": {"template": template, "completionMode": "Indexed", "completions": 1, "parallelism": 1}
        }
        answer = arena.requests("t5").send("POST", arena.hands(SHARED).path("jobs"), body)
        # A policy may refuse it: then nothing is there.
        arena.notes[name] = answer.message

    return act


def _containers(restart: str = "Always") -> Json:
    return {"restartPolicy": restart, "containers": [{"name": "trainer", "image": ATTACKERS}]}


def _runs_it(name: str) -> Callable[[Arena], str]:
    def look(arena: Arena) -> str:
        jobs = arena.hands(SHARED).children("jobs", name)
        runs = arena.hands(SHARED).status(name).get("activeJob")
        return "the attacker's image as the victim's attempt" if runs and ATTACKERS in json.dumps(jobs) else ""

    return look


def _nameless(arena: Arena) -> None:
    metadata = {"name": "nameless", "labels": {names.LABEL_JOB: ""}, "finalizers": ["example.org/stay"]}
    arena.plant("t3", "pods", {"kind": "Pod", "metadata": metadata, "spec": _containers()})
    arena.hands(SHARED, "t3").delete("pods", "nameless", gracePeriodSeconds=0)


def disturbed(arena: Arena) -> str:
    log = arena.operator.log.read_text(errors="replace")
    return log[log.index("Traceback") :][:2000] if "Traceback" in log else ""


def always(_: Arena) -> bool:
    """Nothing to wait for."""
    return True


BEFORE: tuple[Played, ...] = (
    Played("job file at birth", "t2", _file_at_birth, answered(SHARED, "configured"),
           lambda arena: reads(arena, "configured", arena.notes["configured"])),
    Played("claim by labels", "t4", _claim("labelled", owned=False), answered(SHARED, "labelled"), _uses_claim("labelled")),
    Played("claim by owner", "t4", _claim("owned", owned=True), answered(SHARED, "owned"), _uses_claim("owned")),
    Played("budget under a victim's name", "t8", _budget, _after_prepare("budgeted"), _unguarded),
    Played("Service by owner", "t7", _service, _after_prepare("served"), _elsewhere),
    Played("Job under a victim's name", "t5", _batch_job("named", owned=False), answered(SHARED, "named"), _runs_it("named")),
    Played("Job by owner", "t5", _batch_job("forged", owned=True), answered(SHARED, "forged"), _runs_it("forged")),
    Played("pod of a job without a name", "t3", _nameless, always, disturbed),
)  # fmt: skip

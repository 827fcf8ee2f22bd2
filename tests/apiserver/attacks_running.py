"""Attacks while the operator runs, with the chart as it is by default, and without its admission policies."""

import json
from collections.abc import Callable
from typing import Any

from dpo_operator.api import names
from tests.apiserver import hostile
from tests.apiserver.attacks_played import (
    CONTROL,
    FORGED,
    NASTY,
    Played,
    always,
    answered,
    disturbed,
    harm,
    job_of,
    made_a_job,
    owner,
    planted_file,
    reads,
    waits_for,
)
from tests.apiserver.attacks_refused import REFUSED
from tests.apiserver.hands import last_words, wait_until
from tests.apiserver.tenants import HONEST, LAB, SECRET, SHARED, VICTIMS, Arena, Json, a_dpojob
from tests.contract.chart import NAMESPACE, render
from tests.networks import Place, reaches


def _own(name: str, namespace: str = LAB, *, top: Json | None = None, metadata: Json | None = None, **spec: Any) -> Any:
    """A DPOJob of t1."""

    def act(arena: Arena) -> None:
        job = a_dpojob(name, namespace, **spec) | (top or {})
        job["metadata"] |= metadata or {}
        answer = arena.create(job, "t1")
        assert answer.accepted, answer.message

    return act


def _dropped_fields() -> list[Played]:
    """Fields of a pod template, which the CRD does not have."""
    fields: dict[str, Any] = {
        "volumes": [{"name": "h", "hostPath": {"path": "/"}}], "hostPID": True, "securityContext": {"privileged": True},
        "automountServiceAccountToken": True, "nodeName": "control-plane", "command": ["sh"],
        "initContainers": [{"name": "i", "image": "x"}], "envFrom": [{"secretRef": {"name": SECRET}}],
        "template": {"spec": {"hostNetwork": True}}, "schedulerName": "mine",
    }  # fmt: skip
    return [
        Played(f"pod.{field}", "t1", _own(f"dropped-{i}", pod={field: value}), answered(LAB, f"dropped-{i}"), harm(LAB, f"dropped-{i}"))
        for i, (field, value) in enumerate(fields.items())
    ]  # fmt: skip


def _forged_status(arena: Arena) -> None:
    job = job_of(arena, LAB, "own")
    job["status"] = {"recordedCheckpoints": [{"step": 9, "attempt": 1, "digest": FORGED}]}
    answer = arena.requests("t1").send("PUT", arena.hands(LAB).path("dpojobs", "own"), job)
    assert answer.accepted or answer.status == 409, answer.message


def _labels_of_another(arena: Arena) -> None:
    uid = job_of(arena, SHARED, "honest")["metadata"]["uid"]
    mimicry = {names.LABEL_UID: uid, names.LABEL_JOB: "honest", names.LABEL_MANAGED_BY: names.PART_OF}
    annotations = {names.ANNOTATION_SIZE: "9x9", f"{names.GROUP}/digest": "x", "a/b": NASTY}
    _own("mimic", metadata={"labels": mimicry, "annotations": annotations})(arena)


def _owned_by_another(arena: Arena) -> None:
    _own("adopted", SHARED, metadata={"ownerReferences": owner(job_of(arena, SHARED, "honest"))})(arena)


def _lasting(arena: Arena) -> None:
    _own("lasting", metadata={"finalizers": ["example.org/stay"]})(arena)
    arena.hands(LAB, "t1").delete("dpojobs", "lasting")


def _neighbours() -> list[Played]:
    """Jobs whose names are those of a neighbour's children."""
    return [
        Played(f"neighbour honest-{end}", "t1", _own(f"honest-{end}", SHARED), answered(SHARED, f"honest-{end}"), harm(SHARED, f"honest-{end}"))
        for end in ("train", "prepare", "work", "config", "train-1", "prepare-1")
    ]  # fmt: skip


def _readable_claims() -> list[Played]:
    """A claim that the author may read, and that nobody opened for jobs."""
    specs: dict[str, Json] = {
        "data": {"data": {"train": {"source": "pvc://seen/x"}}}, "model": {"model": {"name": "pvc://seen/x"}},
        "volume": {"checkpoint": {"volume": {"claimName": "seen"}}}, "cache": {"cache": {"claimName": "seen"}},
        "checkpoint": {"resumeFrom": {"source": "pvc://seen/x"}},
    }  # fmt: skip
    return [
        Played(f"unopened claim as {what}", "t1", _own(f"seen-{what}", **spec), answered(LAB, f"seen-{what}"), made_a_job(LAB, f"seen-{what}"))
        for what, spec in specs.items()
    ]  # fmt: skip


def _heir(arena: Arena) -> None:
    """A colleague's job comes after one of the attacker, and has its name."""
    hands = arena.hands(SHARED)
    _own("heir", SHARED)(arena)
    claim = wait_until("claim", lambda: hands.get("persistentvolumeclaims", "heir-work"))
    arena.notes["heir"] = claim["metadata"]["uid"]
    hands.delete("dpojobs", "heir")
    wait_until("its end", lambda: hands.get("dpojobs", "heir") is None and not hands.children("jobs", "heir"))
    arena.create(a_dpojob("heir", SHARED), HONEST)


def _inherits(arena: Arena) -> str:
    claim = arena.hands(SHARED).get("persistentvolumeclaims", "heir-work") or {"metadata": {"uid": ""}}
    same = claim["metadata"]["uid"] == arena.notes["heir"]
    return "files on the claim of the attacker's job" if same and made_a_job(SHARED, "heir")(arena) else ""


def _says(name: str, phase_text: str) -> Callable[[Arena], object]:
    """A pod's last words."""

    def look(arena: Arena) -> object:
        hands = arena.hands(LAB)
        for pod in hands.children("pods", name):
            if pod["status"].get("phase") == "Pending":
                hands.end(pod, 78, phase_text)
        return hands.condition(name, "Failed")[0] == "True" and hands.events(name)

    return look


def _shows(namespace: str, name: str) -> Callable[[Arena], str]:
    """Won when control characters reach the status, or an Event of the operator."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for item in value.values() for text in texts(item)]
        if isinstance(value, list):
            return [text for item in value for text in texts(item)]
        return [value] if isinstance(value, str) else []

    def look(arena: Arena) -> str:
        hands = arena.hands(namespace)
        events = [
            e
            for e in hands.all("events")
            if e["involvedObject"]["name"] == name and e["involvedObject"]["kind"] == names.KIND
        ]
        found = texts([hands.status(name), *(e.get("message") for e in events)])
        return repr(next((text for text in found if CONTROL.search(text)), "")).strip("'")

    return look


def _forged_events(arena: Arena) -> None:
    (pod,) = arena.hands(SHARED).pods("evented", "prepare", 1, 1)
    (job,) = arena.hands(SHARED).children("jobs", "evented")
    for i, (kind, raw, reason) in enumerate((("Pod", pod, "FailedMount"), ("Job", job, "FailedCreate"))):
        involved = {"kind": kind, "namespace": SHARED, "name": raw["metadata"]["name"], "uid": raw["metadata"]["uid"]}
        event = {"kind": "Event", "metadata": {"name": f"forged-{i}"}, "involvedObject": involved, "type": "Warning"}
        event |= {"reason": reason, "message": NASTY * 3, "lastTimestamp": "2099-01-01T00:00:00Z", "count": 1}
        arena.plant("t6", "events", event)


def _told(arena: Arena) -> object:
    # The kubelet that has taken the pod says nothing for a while: Events are read.
    return "red" in json.dumps(arena.hands(SHARED).status("evented"))


def _ahead_of_resize(arena: Arena) -> None:
    victim = job_of(arena, SHARED, "resized")
    arena.notes["resized"] = arena.plant("t2", "configmaps", planted_file(victim, nodes=1))
    answer = arena.requests(HONEST).send(
        "PATCH", arena.hands(SHARED).path("dpojobs", "resized"), {"spec": {"nodes": 1}}, content_type="application/merge-patch+json"
    )  # fmt: skip
    assert answer.accepted, answer.message


def _resized(arena: Arena) -> object:
    hands = arena.hands(SHARED)
    for pod in hands.children("pods", "resized"):
        if "deletionTimestamp" in pod["metadata"]:
            hands.end(pod, 143, last_words(143, "train", 1))
            hands.delete("pods", pod["metadata"]["name"], gracePeriodSeconds=0)
    return waits_for(arena, SHARED, "resized") or [
        j for j in hands.children("jobs", "resized") if j["metadata"]["name"].endswith("-train-2")
    ]


def _crowd(arena: Arena) -> None:
    for i in range(60):
        _own(f"bad-{i}", cache={"claimName": "seen"})(arena)
    arena.create(a_dpojob("prompt", VICTIMS), HONEST)


def _crowd_of_giants(arena: Arena) -> None:
    for i, giant in enumerate(hostile.TOO_LARGE):
        answer = arena.create(giant.job(f"giant-{i}", LAB), "t1")
        arena.notes[f"giant-{i}"] = answer.accepted


def _giants_answered(arena: Arena) -> object:
    known = range(len(hostile.TOO_LARGE))
    return all(not arena.notes[f"giant-{i}"] or answered(LAB, f"giant-{i}")(arena) for i in known)


def _giants_run(arena: Arena) -> str:
    return "".join(made_a_job(LAB, f"giant-{i}")(arena) for i in range(len(hostile.TOO_LARGE)))


def _ours(arena: Arena, namespace: str, name: str, phase: names.Phase) -> Place:
    """A pod of a job, as its Job makes it."""
    labels = next(
        j["spec"]["template"]["metadata"]["labels"]
        for j in arena.hands(namespace).children("jobs", name)
        if f"{name}-{phase}-" in j["metadata"]["name"]
    )
    return Place("10.1.0.1", namespace, labels)


def _connections() -> list[Played]:
    """By the NetworkPolicies as they are stored, in a model of a plugin that enforces them."""
    operator = Place(
        "10.1.0.9", NAMESPACE, render().one("Deployment")["spec"]["template"]["metadata"]["labels"], {"metrics": 9400}
    )
    outside = {
        "credentials of EKS": ("169.254.170.23", 80), "metadata": ("169.254.169.254", 80), "WireServer": ("168.63.129.16", 80),
        "Alibaba's metadata": ("100.100.100.200", 80), "metadata by IPv6": ("fd00:ec2::23", 80),
        "API server": ("10.96.0.1", 443), "a kubelet": ("10.0.0.20", 10250),
    }  # fmt: skip

    def connection(what: str, source: Callable[[Arena], Place], target: Callable[[Arena], Place], port: int) -> Played:
        def won(arena: Arena) -> str:
            policies = arena.requests().send("GET", "/apis/networking.k8s.io/v1/networkpolicies").body["items"]
            return "connected" if reaches(policies, source(arena), target(arena), port) else ""

        return Played(what, "t1", lambda arena: None, always, won)

    def stranger(namespace: str) -> Callable[[Arena], Place]:
        return lambda _: Place("10.1.0.7", namespace, {"app": "x"})

    def own(arena: Arena) -> Place:
        return _ours(arena, LAB, "own", "prepare")

    def honest(arena: Arena) -> Place:
        return _ours(arena, SHARED, "honest", "train")

    return [
        *(connection(f"prepare to {name}", own, lambda _, a=address: Place(a), port) for name, (address, port) in outside.items()),
        connection("prepare to the operator's metrics", own, lambda _: operator, 9400),
        connection("prepare to another tenant's rank", own, honest, 29500),
        connection("a pod to the operator's metrics", stranger(LAB), lambda _: operator, 9400),
        connection("a pod to another tenant's rank", stranger(LAB), honest, 29500),
        connection("a pod to another tenant's metrics", stranger(LAB), honest, 9400),
        connection("a colleague's pod to a rank", stranger(SHARED), honest, 29500),
        connection("a rank to the internet", honest, lambda _: Place("203.0.113.10"), 443),
    ]  # fmt: skip


RUNNING: tuple[Played, ...] = (
    *_dropped_fields(),
    *_neighbours(),
    *_readable_claims(),
    Played("status by an update of the job", "t1", _forged_status, always,
           lambda arena: "forged" if FORGED in json.dumps(job_of(arena, LAB, "own")) else ""),
    Played("status of its own at birth", "t1", _own("born-done", top={"status": {"state": "Complete", "phase": "export"}}),
           answered(LAB, "born-done"), harm(LAB, "born-done")),
    Played("labels of another's job", "t1", _labels_of_another, answered(LAB, "mimic"), harm(LAB, "mimic")),
    Played("owner of its own", "t1", _owned_by_another, answered(SHARED, "adopted"), harm(SHARED, "adopted")),
    Played("finalizer of its own", "t1", _lasting, lambda arena: not arena.hands(LAB).children("jobs", "lasting"), disturbed),
    Played("values that expand", "t1", _own("expands", pod={"env": [{"name": "NCCL_DEBUG", "value": "$(HOME)$$$(PATH)"}]}),
           answered(LAB, "expands"), harm(LAB, "expands")),
    Played("name of an earlier job", "t1", _heir, answered(SHARED, "heir"), _inherits),
    Played("last words of control characters", "t1", _own("speaks"), _says("speaks", last_words(78, "prepare", 1, message=NASTY)), _shows(LAB, "speaks")),
    Played("last words that are no JSON", "t1", _own("stammers"), _says("stammers", NASTY * 100), _shows(LAB, "stammers")),
    Played("forged Events", "t6", _forged_events, _told, _shows(SHARED, "evented")),
    Played("job file ahead of a resize", "t2", _ahead_of_resize, _resized, lambda arena: reads(arena, "resized", arena.notes["resized"])),
    Played("60 bad jobs", "t1", _crowd, answered(VICTIMS, "prompt"), lambda arena: "" if made_a_job(VICTIMS, "prompt")(arena) else "no Job"),
    Played("jobs that fit nowhere", "t1", _crowd_of_giants, _giants_answered, _giants_run),
    *_connections(),
)  # fmt: skip


# Without the admission policy: the operator's own checks.


def _without_policy() -> list[Played]:
    found = []
    admins = [r for r in REFUSED if r.because.startswith("allow.") and r.method == "POST" and r.body]
    for i, refused in enumerate(admins):
        name, spec = f"open-{i}", (refused.body or {})["spec"]
        found.append(
            Played(
                f"{refused.id}, without the policy",
                "t1",
                _own(name, **spec),
                answered(LAB, name),
                made_a_job(LAB, name),
            )
        )
    assert len(found) > 10
    specs: dict[str, Json] = {
        "data": {"data": {"train": {"source": "pvc://database/x"}}}, "cache": {"cache": {"claimName": "database"}},
        "volume": {"checkpoint": {"volume": {"claimName": "database"}}},
        "data without the right to it": {"data": {"train": {"source": "pvc://opened/x"}}},
        "token": {"model": {"name": "org/model", "tokenSecretRef": {"name": SECRET}}},
    }  # fmt: skip
    for i, (what, spec) in enumerate(specs.items()):
        name = f"of-others-{i}"
        found.append(
            Played(f"{what}, without the policy", "t1", _own(name, **spec), answered(LAB, name), made_a_job(LAB, name))
        )
    return found


WITHOUT_POLICY: tuple[Played, ...] = tuple(_without_policy())

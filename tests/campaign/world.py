"""The rest of the cluster in memory: controllers, kubelets, the script of a life, and an onlooker who sees what may not be."""

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dpo_operator.api import names
from tests.campaign import api as server
from tests.campaign.api import Api, labels, owner
from tests.campaign.invariants import Life

Json = dict[str, Any]
NAMESPACE = "lives"
JOB, UID = "life", "uid-life"
# UID of an object of somebody else.
OTHER = "uid-other"
DIGEST = "d" * 64
TICK_SECONDS = 0.5
# How long a phase works before it ends.
WORK_SECONDS = 3.0


def last_words(code: int, phase: str, attempt: int) -> str:
    """A termination message; of training with a checkpoint."""
    words: Json = {"phase": phase, "attempt": attempt, "exit_code": code}
    words["outcome"] = "Succeeded" if code == 0 else "Failed"
    if phase == "train":
        checkpoint = {"step": 2, "path": "checkpoints/2", "digest": DIGEST, "attempt": 1, "time": 1.0}
        words["progress"] = {"phase": phase, "attempt": attempt, "step": 2, "checkpoint": checkpoint}
    if phase == "export":
        words["export_path"] = "export"
    return json.dumps(words)


@dataclass
class World:
    """Acts each tick on what the API server holds. twice: what may not be seen."""

    api: Api = field(default_factory=lambda: Api(NAMESPACE))
    twice: list[str] = field(default_factory=list)
    given: dict[str, list[str]] = field(default_factory=dict)
    claims: list[str] = field(default_factory=list)
    _strangers: dict[tuple[str, str], Json] = field(default_factory=dict)
    _pods: dict[str, set[str]] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        """Somebody else's objects, and the DPOJob."""
        spec = {"model": {"name": "org/model"}, "data": {"train": {"source": "org/pairs"}}}
        spec |= {"nodes": 2, "gpusPerNode": 0, "training": {"globalBatchSize": 2}}
        uid = self.api.create("dpojobs", {"metadata": {"name": JOB, "uid": UID}, "spec": spec})["metadata"]["uid"]
        mark = {names.LABEL_JOB: JOB, names.LABEL_UID: uid, names.LABEL_PHASE: "train", names.LABEL_ATTEMPT: "1"}
        other = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "other", "uid": OTHER, "controller": True}
        metadata = {"labels": mark, "ownerReferences": [other]}
        for plural, name in (
            ("configmaps", f"{JOB}-notes"),
            ("persistentvolumeclaims", "other-work"),
            ("jobs", "other"),
        ):
            self.api.create(plural, {"metadata": metadata | {"name": name}, "spec": {}, "status": {}})
        self.api.create(
            "pods", {"metadata": metadata | {"name": "other-0"}, "spec": {}, "status": {"phase": "Running"}}
        )
        self._strangers = {
            key: raw for key, raw in self.api.objects.items() if key[1].startswith(("other", f"{JOB}-notes"))
        }

    def tick(self) -> None:
        """Half a second of the cluster's work."""
        self._look()
        self._run_claims()
        server.run_jobs(self.api, self._has_lost)
        server.sweep(self.api, OTHER)
        self._run_pods()

    @property
    def job(self) -> Json | None:
        return self.api.objects.get(("dpojobs", JOB))

    @property
    def status(self) -> Json:
        return (self.job or {}).get("status") or {}

    def own(self, plural: str) -> list[Json]:
        """Objects with the job's label, but those of others."""
        found = self.api.all(plural)
        return [
            o
            for o in found
            if labels(o).get(names.LABEL_JOB) == JOB and (plural, o["metadata"]["name"]) not in self._strangers
        ]

    def _run_claims(self) -> None:
        for claim in self.own("persistentvolumeclaims"):
            uid = claim["metadata"]["uid"]
            if uid not in self.claims:
                self.claims.append(uid)
            self.api.change("persistentvolumeclaims", claim["metadata"]["name"], {"status": {"phase": "Bound"}})

    def _has_lost(self, job: Json) -> bool:
        uid = job["metadata"]["uid"]
        alive = {pod["metadata"]["uid"] for pod in self.api.all("pods") if owner(pod) == uid}
        known = self._pods.setdefault(uid, set())
        suspended = job["spec"].get("suspend")
        lost = bool(known - alive) and not suspended
        self._pods[uid] = alive if suspended else known | alive
        return lost

    # Kubelets

    def _run_pods(self) -> None:
        for pod in self.own("pods"):
            name, phase = pod["metadata"]["name"], pod["status"]["phase"]
            if "deletionTimestamp" in pod["metadata"]:
                if phase == "Running":
                    self._end(pod, 143)
                else:
                    self.api.remove("pods", name, 0)
            elif phase == "Pending":
                state = {"running": {"startedAt": server.now()}}
                self.api.change("pods", name, {"spec": {"nodeName": "node"}, "status": _reported("Running", state)})
            elif phase == "Running":
                self._work(pod)

    def _work(self, pod: Json) -> None:
        """The second rank of the first attempt at training is killed; all else succeeds."""
        phase, attempt = labels(pod)[names.LABEL_PHASE], int(labels(pod)[names.LABEL_ATTEMPT])
        gang = [p for p in self.own("pods") if owner(p) == owner(pod)]
        if len(gang) < (2 if phase == "train" else 1) or any(p["status"]["phase"] == "Pending" for p in gang):
            return
        since = self._since.setdefault(str(owner(pod)), time.monotonic())
        if time.monotonic() - since < WORK_SECONDS:
            return
        if (phase, attempt) != ("train", 1):
            self._end(pod, 0)
        elif labels(pod)[names.COMPLETION_INDEX] == "1":
            self._end(pod, 137)

    def _end(self, pod: Json, code: int) -> None:
        text = last_words(code, labels(pod)[names.LABEL_PHASE], int(labels(pod)[names.LABEL_ATTEMPT]))
        reason = "Error" if code else "Completed"
        state = {"terminated": {"exitCode": code, "message": text, "finishedAt": server.now(), "reason": reason}}
        state["terminated"]["startedAt"] = server.now()
        self.api.change(
            "pods", pod["metadata"]["name"], {"status": _reported("Failed" if code else "Succeeded", state)}
        )

    # The onlooker

    def _look(self) -> None:
        alive = [pod for pod in self.own("pods") if pod["status"]["phase"] == "Running"]
        attempts = {(labels(p)[names.LABEL_PHASE], labels(p)[names.LABEL_ATTEMPT]) for p in alive}
        if len(attempts) > 1:
            self._note(f"{sorted(attempts)} are alive together")
        ranks = Counter((owner(p), labels(p)[names.COMPLETION_INDEX]) for p in alive)
        if any(count > 1 for count in ranks.values()):
            self._note(f"a rank runs twice: {dict(ranks)}")
        for job in self.own("jobs"):
            for container in job["spec"]["template"]["spec"]["containers"]:
                for variable in container.get("env", ()):
                    if variable["name"] == names.ENV_RECORDED_CHECKPOINTS:
                        records = json.loads(variable["value"])["checkpoints"]
                        self.given[job["metadata"]["name"]] = [record["digest"] for record in records]

    def _note(self, what: str) -> None:
        if what not in self.twice:
            self.twice.append(what)

    # The end

    def ending(self) -> Json:
        """What must be the same for all lives."""
        status = self.status
        if not status.get("state"):
            return {}
        return {
            "state": status["state"],
            "attempts": status["attempts"],
            "restarts": (status["restarts"], status["countedRestarts"]),
            "history": [(r["phase"], r["attempt"], r["reason"]) for r in status.get("restartHistory", ())],
            "conditions": [(c["type"], c["status"], c["reason"]) for c in status["conditions"]],
            "children": sorted(
                f"{plural}/{o['metadata']['name']}"
                for plural in server.KINDS
                if plural not in ("events", "leases", "dpojobs")
                for o in self.own(plural)
                if plural != "pods"
            ),
        }

    def life(self, ending: Json) -> Life:
        """What was seen, after the deletion. The claim is retained."""
        left = [
            f"{plural}/{o['metadata']['name']}"
            for plural in server.KINDS
            if plural not in ("events", "leases", "persistentvolumeclaims")
            for o in self.own(plural)
        ]
        claims = [c["metadata"]["uid"] for c in self.own("persistentvolumeclaims")]
        strangers = {f"{p}/{n}": self.api.objects.get((p, n)) == raw for (p, n), raw in self._strangers.items()}
        events = sum(1 for e in self.api.all("events") if e["involvedObject"]["kind"] == names.KIND)
        claims = [*self.claims[:1], *claims]
        return Life(ending, self.twice, self.api.made, left, strangers, claims, given=self.given, events=events)


def _reported(phase: str, state: Json) -> Json:
    container = {"name": names.CONTAINER, "ready": phase == "Running", "restartCount": 0, "state": state}
    ready = {"type": "Ready", "status": str(phase == "Running")}
    return {"phase": phase, "containerStatuses": [container], "conditions": [ready]}

"""An API server in memory: objects, resource versions, selectors, preconditions and watches, and the errors that the real one gives.

One namespace. It validates nothing and has no defaults: requests of the operator are checked against the real one in tests/apiserver.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from dpo_operator.api import names

Json = dict[str, Any]
EPOCH = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
KINDS = {
    names.PLURAL: (names.API_VERSION, names.KIND),
    "jobs": ("batch/v1", "Job"),
    "pods": ("v1", "Pod"),
    "services": ("v1", "Service"),
    "configmaps": ("v1", "ConfigMap"),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim"),
    "events": ("v1", "Event"),
    "poddisruptionbudgets": ("policy/v1", "PodDisruptionBudget"),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
}


class RefusedError(Exception):
    """An answer other than 2xx."""

    def __init__(self, code: int, reason: str, target: "Target") -> None:
        self.code = code
        details = {"kind": target.plural, "name": target.name}
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
        self.body = status | {"details": details, "message": f"{target.plural} {target.name}: {reason}"}


@dataclass(frozen=True)
class Target:
    """What a URL names."""

    plural: str
    name: str
    subresource: str
    query: Mapping[str, str]

    @classmethod
    def of(cls, url: str) -> "Target":
        parts = urlsplit(url)
        words = parts.path.strip("/").split("/")
        words = words[2:] if words[0] == "api" else words[3:]
        words = words[2:] if words[0] == "namespaces" else words
        plural, name, subresource = (*words, "", "")[:3]
        return cls(plural, name, subresource, dict(parse_qsl(parts.query)))


def now() -> str:
    """Virtual time of day, RFC 3339."""
    return datetime.fromtimestamp(EPOCH + time.monotonic(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def owner(raw: Json) -> str | None:
    """UID of the controller."""
    references = raw["metadata"].get("ownerReferences") or ()
    return next((r["uid"] for r in references if r.get("controller")), None)


def labels(raw: Json) -> dict[str, str]:
    return raw["metadata"].get("labels") or {}


@dataclass
class Watch:
    """One watch: its events so far, as they are sent."""

    plural: str
    selector: str
    events: "asyncio.Queue[Json]" = field(default_factory=asyncio.Queue)


@dataclass
class Api:
    """The server. made: creations by kind and name, events and leases left out."""

    namespace: str
    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    history: list[tuple[int, str, str, str]] = field(default_factory=list)
    version: int = 0
    _watches: list[Watch] = field(default_factory=list)
    _uids: int = 0

    # Requests

    def handle(self, method: str, url: str, body: bytes | None) -> Json:
        """Carry out one request. Raises RefusedError."""
        target = Target.of(url)
        data = json.loads(body) if body else {}
        match method:
            case "GET":
                return self._get(target) if target.name else self._list(target)
            case "POST":
                return self.create(target.plural, data)
            case "PUT":
                return self._put(target, data)
            case "PATCH":
                return self._patch(target, data)
        return self._delete(target, data)

    def _get(self, target: Target) -> Json:
        found = self.objects.get((target.plural, target.name))
        if found is None:
            raise RefusedError(404, "NotFound", target)
        return found

    def _list(self, target: Target) -> Json:
        wanted = target.query.get("labelSelector", ""), target.query.get("fieldSelector", "")
        items = [o for o in self.all(target.plural) if selected(o, *wanted)]
        api_version, kind = KINDS[target.plural]
        metadata = {"resourceVersion": str(self.version)}
        return {"apiVersion": api_version, "kind": f"{kind}List", "metadata": metadata, "items": items}

    def create(self, plural: str, raw: Json) -> Json:
        """Store a new object. Raises RefusedError when its name is taken."""
        name = raw["metadata"]["name"]
        if (plural, name) in self.objects:
            raise RefusedError(409, "AlreadyExists", Target(plural, name, "", {}))
        self._uids += 1
        api_version, kind = KINDS[plural]
        metadata = {"uid": f"uid-{self._uids}"} | raw["metadata"] | {"namespace": self.namespace, "generation": 1}
        raw = raw | {"apiVersion": api_version, "kind": kind, "metadata": metadata | {"creationTimestamp": now()}}
        # One that comes when its owner is gone is collected.
        orphan = owner(raw) is not None and all(owner(raw) != o["metadata"]["uid"] for o in self.objects.values())
        if plural not in ("events", "leases", "pods") and not orphan:
            self.made[f"{plural}/{name}"] += 1
        return self._store("ADDED", plural, raw)

    def _put(self, target: Target, data: Json) -> Json:
        known = self._get(target)
        self._check(target, data.get("metadata") or {}, known)
        changed = {"status": data.get("status")} if target.subresource == "status" else {"spec": data.get("spec")}
        return self._store("MODIFIED", target.plural, known | changed)

    def _patch(self, target: Target, data: Json) -> Json:
        known = self._get(target)
        self._check(target, data.get("metadata") or {}, known)
        metadata = {k: v for k, v in (data.get("metadata") or {}).items() if k not in ("uid", "resourceVersion")}
        return self.change(target.plural, target.name, data | {"metadata": metadata})

    def _check(self, target: Target, wanted: Json, known: Json) -> None:
        for key in ("uid", "resourceVersion"):
            if wanted.get(key) not in (None, "", known["metadata"][key]):
                raise RefusedError(409, "Conflict", target)

    def _delete(self, target: Target, data: Json) -> Json:
        known = self._get(target)
        self._check(target, data.get("preconditions") or {}, known)
        self.remove(target.plural, target.name, data.get("gracePeriodSeconds"))
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    # What controllers do, too

    def all(self, plural: str) -> list[Json]:
        """Objects of a plural by name."""
        return [self.objects[key] for key in sorted(self.objects) if key[0] == plural]

    def change(self, plural: str, name: str, patch: Json) -> Json:
        """Apply a JSON merge patch."""
        known = self.objects[plural, name]
        changed = merged(known, patch)
        if changed == known:
            return known
        if changed.get("spec") != known.get("spec"):
            changed["metadata"]["generation"] += 1
        return self._store("MODIFIED", plural, changed)

    def remove(self, plural: str, name: str, grace: int | None = None) -> None:
        """Delete an object; a pod on a node only begins to end."""
        raw = self.objects[plural, name]
        if plural == "pods" and grace != 0 and (raw.get("status") or {}).get("phase") == "Running":
            known = raw["metadata"].get("deletionGracePeriodSeconds", 10**6)
            wanted = min(known, raw["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace)
            deletion = {"deletionTimestamp": now(), "deletionGracePeriodSeconds": wanted}
            self.change(plural, name, {"metadata": deletion})
            return
        self.version += 1
        self.objects.pop((plural, name))
        gone = raw | {"metadata": raw["metadata"] | {"resourceVersion": str(self.version)}}
        self._tell("DELETED", plural, gone)

    def _store(self, what: str, plural: str, raw: Json) -> Json:
        self.version += 1
        raw = raw | {"metadata": raw["metadata"] | {"resourceVersion": str(self.version)}}
        self.objects[plural, raw["metadata"]["name"]] = raw
        self._tell(what, plural, raw)
        return raw

    # Watches

    def watch(self, url: str) -> Watch:
        """Events of a list's objects, from the resourceVersion of its query on."""
        target = Target.of(url)
        opened = Watch(target.plural, target.query.get("labelSelector", ""))
        since = int(target.query.get("resourceVersion") or self.version)
        for version, plural, what, text in self.history:
            if version > since and plural == opened.plural:
                self._send(opened, what, json.loads(text))
        self._watches.append(opened)
        return opened

    def close(self, opened: Watch) -> None:
        self._watches.remove(opened)

    def _tell(self, what: str, plural: str, raw: Json) -> None:
        if plural in ("dpojobs", "jobs", "pods"):
            self.history.append((self.version, plural, what, json.dumps(raw)))
        for opened in self._watches:
            if opened.plural == plural:
                self._send(opened, what, raw)

    def _send(self, opened: Watch, what: str, raw: Json) -> None:
        if selected(raw, opened.selector, ""):
            opened.events.put_nowait({"type": what, "object": raw})


def selected(raw: Json, label_selector: str, field_selector: str) -> bool:
    """Whether an object has these labels and fields."""
    for term in filter(None, label_selector.split(",")):
        key, differs, value = term.partition("!=")
        if not differs:
            key, equals, value = term.partition("=")
            fits = labels(raw).get(key) == value if equals else key in labels(raw)
        else:
            fits = labels(raw).get(key) != value
        if not fits:
            return False
    for term in filter(None, field_selector.split(",")):
        key, _, value = term.partition("=")
        found: Any = raw
        for part in key.split("."):
            found = (found or {}).get(part)
        if found != value:
            return False
    return True


def merged(raw: Any, patch: Any) -> Any:
    """A JSON merge patch, RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    found = dict(raw) if isinstance(raw, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


def sweep(api: Api, elsewhere: str) -> None:
    """The garbage collector: objects go whose controller is gone. elsewhere: UID of a controller that exists."""
    alive = {elsewhere, *(raw["metadata"]["uid"] for raw in api.objects.values())}
    for (plural, name), raw in list(api.objects.items()):
        if (uid := owner(raw)) is not None and uid not in alive and "deletionTimestamp" not in raw["metadata"]:
            api.remove(plural, name)


def run_jobs(api: Api, lost: Callable[[Json], bool]) -> None:
    """The Job controller. lost: whether a Job had a pod that is gone."""
    for job in api.all("jobs"):
        if "template" in (job.get("spec") or {}):
            _run_job(api, job, lost(job))


def _run_job(api: Api, job: Json, lost: bool) -> None:
    name, uid, spec = job["metadata"]["name"], job["metadata"]["uid"], job["spec"]
    pods = [pod for pod in api.all("pods") if owner(pod) == uid]
    conditions = {c["type"] for c in (job.get("status") or {}).get("conditions", ())}
    if conditions & {"Complete", "Failed"}:
        return
    phases = [pod["status"]["phase"] for pod in pods]
    going = [pod for pod, phase in zip(pods, phases, strict=True) if phase in ("Pending", "Running")]
    if "Failed" in phases or lost or "FailureTarget" in conditions:
        for pod in going:
            if "deletionTimestamp" not in pod["metadata"]:
                api.remove("pods", pod["metadata"]["name"])
        _say(api, name, "FailureTarget", *(["Failed"] if not going else []))
    elif spec.get("suspend"):
        for pod in going:
            if "deletionTimestamp" not in pod["metadata"]:
                api.remove("pods", pod["metadata"]["name"])
    elif phases.count("Succeeded") == spec["completions"]:
        _say(api, name, "SuccessCriteriaMet", "Complete")
    else:
        template = spec["template"]
        for index in {*range(spec["completions"])} - {_index(pod) for pod in pods}:
            more = {
                "batch.kubernetes.io/job-completion-index": str(index),
                "batch.kubernetes.io/job-name": name,
                "batch.kubernetes.io/controller-uid": uid,
            }
            reference = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid, "controller": True}
            metadata = {
                "name": f"{name}-{index}-{api.version % 46656:05d}",
                "labels": template["metadata"]["labels"] | more,
                "ownerReferences": [reference],
            }
            api.create("pods", {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})


def _index(pod: Json) -> int:
    return int(labels(pod)["batch.kubernetes.io/job-completion-index"])


def _say(api: Api, job: str, *types: str) -> None:
    conditions: Iterable[Json] = [{"type": t, "status": "True", "message": "", "reason": t} for t in types]
    api.change("jobs", job, {"status": {"conditions": list(conditions)}})

"""The same life for every job: what stands in for the kubelets, and what must be the same at the end."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpo_operator.api import names
from tests.apiserver.client import Requests
from tests.apiserver.hands import Hands, last_words
from tests.cluster.rig.control_plane import ControlPlane

# In the name of a ConfigMap: of the job file, which has the job's name and UID in it.
DIGEST = re.compile(r"(?<=-config)-[0-9a-f]{10}$")
# The checkpoint that the killed rank reported.
CHECKPOINT = {"step": 2, "path": "checkpoints/2", "digest": "d" * 64, "attempt": 1, "time": 1.0}
WITH_A_CHECKPOINT = {"phase": "train", "attempt": 1, "step": 2, "checkpoint": CHECKPOINT}


def play_kubelet(hands: Hands, name: str) -> None:
    """Each pod starts, then ends: the second rank of the first attempt at training is killed, all else succeeds."""
    pods = hands.children("pods", name)
    for pod in pods:
        labels = pod["metadata"]["labels"]
        phase, attempt = labels[names.LABEL_PHASE], int(labels[names.LABEL_ATTEMPT])
        state = pod["status"].get("phase")
        if state == "Pending":
            hands.start(pod, "")
        elif state == "Running" and all_run(pods, phase):
            doomed = (phase, attempt) == ("train", 1)
            if not doomed:
                hands.end(pod, 0, last_words(0, phase, attempt, export_path="export"))
            elif labels[names.COMPLETION_INDEX] == "1":
                hands.end(pod, 137, last_words(137, phase, attempt, progress=WITH_A_CHECKPOINT))


def all_run(pods: list[dict[str, Any]], phase: str) -> bool:
    own = [p for p in pods if p["metadata"]["labels"][names.LABEL_PHASE] == phase]
    return len(own) == (2 if phase == "train" else 1) and all(p["status"].get("phase") != "Pending" for p in own)


def ending(hands: Hands, name: str) -> dict[str, Any]:
    """What must be the same for all: status without times, names and UIDs; and the children."""
    status = hands.status(name)
    return {
        "state": status["state"],
        "attempts": status["attempts"],
        "restarts": (status["restarts"], status["countedRestarts"]),
        "history": [(r["phase"], r["attempt"], r["reason"]) for r in status["restartHistory"]],
        "conditions": [(c["type"], c["status"], c["reason"]) for c in status["conditions"]],
        "children": [
            (kind, DIGEST.sub("", child["metadata"]["name"].removeprefix(name)))
            for kind in ("jobs", "services", "configmaps", "persistentvolumeclaims")
            for child in hands.children(kind, name)
        ],
        "given": {
            job["metadata"]["name"].removeprefix(name): found
            for job in hands.children("jobs", name)
            if (found := given_checkpoints(job)) is not None
        },
    }


def given_checkpoints(job: dict[str, Any]) -> list[str] | None:
    """Digests of the checkpoints that the pods of a Job were given; None for a phase that reads none."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    told = [v["value"] for v in container.get("env", ()) if v["name"] == names.ENV_RECORDED_CHECKPOINTS]
    return [record["digest"] for record in json.loads(told[0])["checkpoints"]] if told else None


class Kubelets:
    """Plays for the jobs that it's given, in a thread, and watches that no two attempts of one are ever alive at once."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self._plane = plane
        self._namespace = namespace
        self._jobs: set[str] = set()
        self._stop = threading.Event()
        self.violations: list[str] = []
        self.paused = False

    def play(self, *jobs: str) -> None:
        """Play for these, too."""
        self._jobs |= set(jobs)

    def leave(self, *jobs: str) -> None:
        self._jobs -= set(jobs)

    def run(self) -> None:
        hands = Hands(Requests(self._plane), self._namespace)
        while not self._stop.wait(0.1):
            for job in sorted(self._jobs):
                try:
                    self._look(hands, job)
                    if not self.paused:
                        play_kubelet(hands, job)
                except Exception:
                    # The server is away, as some tests want it; the next round asks again, by a new connection.
                    hands = Hands(Requests(self._plane), self._namespace)

    def _look(self, hands: Hands, job: str) -> None:
        pods = hands.children("pods", job)
        alive = {
            p["metadata"]["labels"][names.LABEL_ATTEMPT]
            for p in pods
            if p["metadata"]["labels"][names.LABEL_PHASE] == "train" and p["status"].get("phase") == "Running"
        }
        ranks = Counter(
            (p["metadata"]["labels"][names.LABEL_ATTEMPT], p["metadata"]["labels"][names.COMPLETION_INDEX])
            for p in pods
            if p["status"].get("phase") == "Running"
            and p["metadata"]["labels"][names.LABEL_PHASE] == "train"
            and "deletionTimestamp" not in p["metadata"]
        )
        if len(alive) > 1 or any(count > 1 for count in ranks.values()):
            self.violations.append(f"{job}: attempts {sorted(alive)}, ranks {dict(ranks)}")

    def close(self) -> None:
        self._stop.set()


@contextmanager
def kubelets(plane: ControlPlane, namespace: str) -> Iterator[Kubelets]:
    """Kubelets that play until the end of the block."""
    playing = Kubelets(plane, namespace)
    thread = threading.Thread(target=playing.run, daemon=True)
    thread.start()
    try:
        yield playing
    finally:
        playing.close()
        thread.join(timeout=10)

"""What the demo and the cluster tests do alike: install the chart, give inputs, apply a DPOJob, wait, look at what is left."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_operator.api import names
from tests.cluster.rig.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM_NAMESPACE = "dpo-system"
RELEASE = "dpo-operator"
INPUTS_CLAIM = "inputs"


def install(cluster: Cluster) -> None:
    """Install or upgrade the chart with the images of this checkout, and wait for the operator.

    It runs on the CPU node, as where GPU nodes are tainted: a lost GPU node takes ranks alone.
    """
    cluster.helm(
        "upgrade", "--install", RELEASE, REPOSITORY / "charts" / "dpo-operator",
        "--namespace", SYSTEM_NAMESPACE, "--create-namespace",
        "--set", "operator.image.repository=dpo-operator,operator.image.tag=dev,operator.image.pullPolicy=IfNotPresent",
        "--set", "trainer.image.repository=dpo-trainer,trainer.image.tag=dev,trainer.image.pullPolicy=IfNotPresent",
        # For an image that does not exist yet.
        "--set", "allow.images={*}",
        "--set", r"nodeSelector.kubernetes\.io/hostname=n1",
        "--wait", "--timeout", "120s",
    )  # fmt: skip


def provide_inputs(cluster: Cluster, folders: dict[str, Path], *, namespace: str = "default") -> None:
    """A claim named `inputs` whose volume holds copies of these folders."""
    root = cluster.layout.volumes / f"{INPUTS_CLAIM}-{namespace}"
    for name, folder in folders.items():
        shutil.rmtree(root / name, ignore_errors=True)
        shutil.copytree(folder, root / name)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    volume = f"{INPUTS_CLAIM}-{namespace}"
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadOnlyMany"],
                "hostPath": {"path": str(root)},
                "storageClassName": "",
                "claimRef": {"namespace": namespace, "name": INPUTS_CLAIM},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": INPUTS_CLAIM, "namespace": namespace, "labels": {names.LABEL_ALLOW_USE: "true"}},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": volume,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    )


def install_with_inputs(cluster: Cluster, shared: Path) -> None:
    """The operator running, and a claim `inputs` of the real model and pairs that the tests train with."""
    install(cluster)
    provide_inputs(
        cluster, {"stories260K": shared / "models" / "stories260K", "hh": shared / "data" / "hh_helpful_base"}
    )


def shared_folder() -> Path | None:
    """Folder with real models and data, where there is one."""
    folder = Path(os.environ.get("DPO_SHARED", REPOSITORY.parent / "shared"))
    return folder if (folder / "models" / "stories260K" / "config.json").is_file() else None


@dataclass(frozen=True)
class Job:
    """A DPOJob on a cluster."""

    cluster: Cluster
    name: str
    namespace: str = "default"

    def apply(self, spec: dict[str, Any]) -> None:
        """Create it."""
        self.cluster.apply(
            {
                "apiVersion": "dpo-operator.dev/v1alpha1",
                "kind": "DPOJob",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": spec,
            }
        )

    def get(self) -> dict[str, Any]:
        """The whole object."""
        return self.cluster.get("dpojob", self.name, "--namespace", self.namespace)

    @property
    def status(self) -> dict[str, Any]:
        """Its status; empty before the operator has seen it."""
        found: dict[str, Any] = self.get().get("status", {})
        return found

    @property
    def uid(self) -> str:
        """Its UID, which names its folder on the volume."""
        return str(self.get()["metadata"]["uid"])

    def pods(self, phase: str = "train") -> list[dict[str, Any]]:
        """Pods of a phase, by rank."""
        selector = f"dpo-operator.dev/job={self.name},dpo-operator.dev/phase={phase}"
        found = self.cluster.get("pods", "--namespace", self.namespace, "--selector", selector)["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def wait(self, condition: Callable[[dict[str, Any]], Any], what: str, timeout: float = 240.0) -> dict[str, Any]:
        """Poll the status until it fits; what went wrong is in the error."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status
            if condition(status):
                return status
            if status.get("state") == "Failed" or time.monotonic() > deadline:
                raise AssertionError(
                    f"{self.name}: waited for {what}, found {json.dumps(status, indent=1)}\n{self.describe()}\n{self.logs()}"
                )
            time.sleep(0.5)

    def wait_for_step(self, step: int, timeout: float = 240.0) -> dict[str, Any]:
        """Wait until a training step has been reported."""
        return self.wait(lambda s: s.get("progress", {}).get("step", 0) >= step, f"step {step}", timeout)

    def wait_for_checkpoint(self, step: int, timeout: float = 240.0) -> dict[str, Any]:
        """Wait until a committed checkpoint of this step or a later one has been reported."""
        return self.wait(lambda s: s.get("checkpoint", {}).get("step", 0) >= step, f"checkpoint {step}", timeout)

    def wait_for_state(self, state: str, timeout: float = 240.0) -> dict[str, Any]:
        """Wait for a state such as Complete."""
        return self.wait(lambda s: s.get("state") == state, f"state {state}", timeout)

    def wait_for_failure(self, timeout: float = 120.0) -> tuple[dict[str, Any], dict[str, Any]]:
        """Wait until the job has failed; its status and its condition Failed."""
        deadline = time.monotonic() + timeout
        while (status := self.status).get("state") != "Failed":
            assert time.monotonic() < deadline, self.describe()
            time.sleep(0.3)
        return status, next(c for c in status["conditions"] if c["type"] == "Failed")

    def describe(self) -> str:
        """`kubectl describe`, for people."""
        return self.cluster.kubectl("describe", "dpojob", self.name, "--namespace", self.namespace)

    def logs(self) -> str:
        """Last lines of every pod of the job."""
        return self.cluster.kubectl(
            "logs", "--namespace", self.namespace, "--selector", f"dpo-operator.dev/job={self.name}",
            "--tail", "40", "--prefix", "--ignore-errors",
        )  # fmt: skip

    def work_folder(self) -> Path:
        """Its folder on the work volume, seen from this machine."""
        claim = self.cluster.get("pvc", f"{self.name}-work", "--namespace", self.namespace)["spec"]["volumeName"]
        volume = self.cluster.get("pv", claim)["spec"]["hostPath"]["path"]
        return Path(volume) / self.uid

    def metrics(self) -> dict[int, dict[str, float]]:
        """Training records of metrics.jsonl by step; a step that stands twice is an error."""
        return training_records(self.work_folder() / "metrics.jsonl")

    def delete(self) -> None:
        """Delete it and wait until it is gone."""
        self.cluster.kubectl("delete", "dpojob", self.name, "--namespace", self.namespace, "--ignore-not-found")


def training_records(path: Path) -> dict[int, dict[str, float]]:
    """Records with a training loss, by step."""
    records: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "loss" not in record:
            continue
        step = int(record["step"])
        assert step not in records, f"step {step} stands twice in {path.name}"
        records[step] = record
    return records


def watch(job: Job, until: Callable[[dict[str, Any]], bool], timeout: float) -> Iterator[dict[str, Any]]:
    """Every changed status until one fits."""
    deadline = time.monotonic() + timeout
    last: dict[str, Any] = {}
    while time.monotonic() < deadline:
        status = job.status
        if status != last:
            yield status
            last = status
        if until(status):
            return
        time.sleep(1)
    raise AssertionError(f"{job.name}: no end within {timeout:.0f} s\n{job.describe()}\n{job.logs()}")


def newest_checkpoint(work: Path) -> Path:
    """Folder of the newest committed checkpoint."""
    return max((work / "checkpoints").glob("step-????????"))


def shares(work: Path) -> list[int]:
    """Trained numbers in each rank's file of the newest checkpoint: what ZeRO-3 left to each rank."""
    from safetensors import safe_open

    counts = []
    for path in sorted(newest_checkpoint(work).glob("rank-*.safetensors")):
        with safe_open(path, framework="numpy") as shard:
            names = [name for name in shard.keys() if name.startswith("fp32/")]  # noqa: SIM118
            counts.append(sum(shard.get_slice(name).get_shape()[0] for name in names))
    return counts


def export_difference(work: Path, export: Path) -> float:
    """Largest difference, in nats, between an exported model's answer log-probs and the engine's at the end of training.

    The export is loaded with transformers and read with its plain logits, without any of the trainer's code; the
    engine's numbers are in its last checkpoint.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    probe = json.loads((newest_checkpoint(work) / "manifest.json").read_text())["state"]["probe"]
    data = work / "data" / probe["split"]
    tokens, offsets = np.load(data / "tokens.npy"), np.load(data / "offsets.npy")
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32, local_files_only=True).eval()
    worst = 0.0
    for pair, logps in zip(probe["pairs"], probe["logps"], strict=True):
        prompt, chosen, rejected = (tokens[offsets[3 * pair + i] : offsets[3 * pair + i + 1]] for i in range(3))
        for answer, expected in zip((chosen, rejected), logps, strict=True):
            ids = torch.tensor(np.concatenate([prompt, answer]), dtype=torch.int64)[None]
            with torch.no_grad():
                table = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found = table[torch.arange(len(answer)), ids[0, len(prompt) :]].double().sum().item()
            worst = max(worst, abs(found - expected))
    return worst

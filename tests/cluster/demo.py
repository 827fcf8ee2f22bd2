"""`make demo`: from nothing to a finished DPOJob on a real cluster on this machine, with what was checked.

The cluster stays up afterwards, to look at; `make cluster-down` ends it.
"""

import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests import tied
from tests.cluster import scenario
from tests.cluster.rig import fixture
from tests.cluster.rig.cluster import Cluster
from tests.cluster.rig.layout import DEFAULT_NAME
from tests.cluster.rig.shell import RigError, say
from tests.cluster.rig.usage import in_use
from tests.cluster.scenario import REPOSITORY, Job

console = Console(highlight=False)
NAME = "demo"
EXAMPLE = REPOSITORY / "examples" / "quickstart"
MODEL = REPOSITORY / "runs" / "quickstart-model"
SERIES = ("dpo_train_loss", "dpo_train_reward", "dpo_train_reward_margin", "dpo_train_reward_accuracy_ratio")


def choose_inputs() -> tuple[dict[str, Path], dict[str, Any]]:
    """Folders for the inputs claim and the spec that uses them: real data where there are some, else the example."""
    training = {"globalBatchSize": 16, "microBatchSize": 4, "precision": "fp32", "gradientCheckpointing": False}
    common = {
        "evaluation": {"everySteps": 25},
        "checkpoint": {"everySteps": 25, "volume": {"size": "5Gi", "retention": "Delete"}},
        "nodes": 2,
        "gpusPerNode": 1,
    }
    shared = scenario.shared_folder()
    if shared is not None:
        folders = {"model": shared / "models" / "stories260K", "data": shared / "data" / "hh_helpful_base"}
        data = {
            "train": {"source": "pvc://inputs/data/train.jsonl"},
            "eval": {"source": "pvc://inputs/data/test.jsonl"},
        }
        data["maxLength"] = 512  # type: ignore[assignment]
        training["learningRate"] = 5e-5
    else:
        tied.run([sys.executable, EXAMPLE / "make_model.py"], check=True)
        folders = {"model": MODEL, "data": EXAMPLE / "data"}
        data = {
            "train": {"source": "pvc://inputs/data/train.jsonl"},
            "eval": {"source": "pvc://inputs/data/eval.jsonl"},
        }
        data["maxLength"] = 128  # type: ignore[assignment]
        training["learningRate"] = 1e-4
    return folders, {"model": {"name": "pvc://inputs/model"}, "data": data, "training": training} | common


def line(status: dict[str, Any]) -> str:
    """A status in one line, as the printer columns have it."""
    progress = status.get("progress", {})
    return (
        f"{status.get('state', 'Pending'):<10} "
        f"step {progress.get('step', 0):>4}/{progress.get('maxSteps', 0):<4} "
        f"{progress.get('percent', ''):>4}  eta {progress.get('eta', '-'):<7} loss {progress.get('loss', '-'):<7} "
        f"margin {progress.get('rewardMargin', '-'):<8} {progress.get('activity') or ''}"
    )


def follow(job: Job, series: dict[str, int]) -> dict[str, Any]:
    """Print every change until the job ends; note which series Prometheus had meanwhile and where the pods were."""
    last, status, placed = "", {}, {}
    for status in scenario.watch(job, lambda s: s.get("state") in ("Complete", "Failed"), timeout=1800):
        # Counts within an activity change too often to be read.
        if (text := line(status)).partition(":")[0] != last:
            console.print(f"  {text}", soft_wrap=True)
            last = text.partition(":")[0]
        if status.get("state") == "Training" and status.get("progress", {}).get("step", 0) > 0:
            placed = placed or {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in job.pods("train")}
            for name in SERIES:
                series[name] = max(series.get(name, 0), len(job.cluster.prometheus_query(f'{name}{{dpojob="{NAME}"}}')))
    return status | {"placed": placed}


def run(cluster: Cluster) -> bool:
    """Install, apply, follow, check. True when every check held."""
    folders, spec = choose_inputs()
    console.print("installing the chart")
    scenario.install(cluster)
    scenario.provide_inputs(cluster, folders)
    job = Job(cluster, NAME)
    job.delete()
    cluster.refill_volumes()
    console.print("kubectl apply: a DPOJob on 2 nodes")
    started = time.monotonic()
    job.apply(spec)
    series: dict[str, int] = {}
    status = follow(job, series)
    if status.get("state") != "Complete":
        console.print(job.describe(), soft_wrap=True)
        console.print(job.logs(), soft_wrap=True)
        return False
    seconds = time.monotonic() - started
    records = job.metrics()
    first, last = records[min(records)], records[max(records)]
    export = job.work_folder() / status["export"]["path"]
    difference, counts, placed = (
        scenario.export_difference(job.work_folder(), export),
        scenario.shares(job.work_folder()),
        status["placed"],
    )

    table = Table("what", "found", "holds", title=f"DPOJob {NAME}: {len(records)} steps in {seconds:.0f} s")
    checks = [
        ("pods on different nodes", ", ".join(f"{pod} on {node}" for pod, node in placed.items()), len(set(placed.values())) == 2),
        ("ZeRO-3: numbers of each rank in the last checkpoint", " + ".join(f"{c:,}" for c in counts), max(counts) < 0.6 * sum(counts)),
        ("loss of the first step is ln 2", f"{first['loss']:.6f}", abs(first["loss"] - 0.693147) < 1e-4),
        ("loss, last step", f"{last['loss']:.4f}", True),
        ("reward margin, first → last", f"{first['rewards/margins']:.4f} → {last['rewards/margins']:.4f}", last["rewards/margins"] > 0),
        ("Prometheus series during the run", ", ".join(f"{k} {v}" for k, v in series.items()), all(series.get(n) for n in SERIES)),
        ("exported model against engine, log-probs", f"{difference:.1e} nats at most", difference <= 1e-4),
    ]  # fmt: skip
    for what, found, holds in checks:
        table.add_row(what, found, "yes" if holds else "[red]NO[/red]")
    console.print(table)
    console.print(f"export: {export}", soft_wrap=True)
    console.print(
        f"look: export KUBECONFIG={cluster.kubeconfig}; kubectl get dpojob; kubectl describe dpojob {NAME}",
        soft_wrap=True,
    )
    console.print(f"Prometheus: {cluster.prometheus_url}      end: make cluster-down", soft_wrap=True)
    return all(holds for _, _, holds in checks)


def main() -> int:
    """Boot the cluster if need be; exit status 0 when every check held."""
    started = time.monotonic()
    with in_use(DEFAULT_NAME) as use:
        cluster = fixture.running(DEFAULT_NAME)
        if cluster:
            cluster.load_images()
        else:
            cluster = Cluster.boot(use)
        fine = run(cluster)
        use.leave_running()
    console.print(f"{'done' if fine else 'FAILED'} after {time.monotonic() - started:.0f} s")
    return 0 if fine else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RigError as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

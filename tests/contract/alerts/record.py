"""Record what trainer pods export in real runs of the quickstart, healthy and broken: what the alerts' tests read.

    .venv/bin/python -m tests.contract.alerts.record [NAME...]

Each run trains for real on this machine, and its /metrics is read once a second, as Prometheus would. A recording is {series: [value or
null, …]} of the series that alerts use, one value for each reading from the first in which training has begun. Timestamps become
seconds since that reading.

The files *.diagnosis.json beside them are diagnosis.json, without its history, of `dpo run` on 320 pairs of the quickstart in one process
with an evaluation every 5 steps: healthy with its learning rate, gibberish with 1e-2, flat with 5e-7.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests import tied
from tests.conftest import REPOSITORY
from tests.filesystems import small_file_system, unmount
from tests.ports import free_port

QUICKSTART = REPOSITORY / "examples" / "quickstart"
MODEL = REPOSITORY / "runs" / "quickstart-model"
RECORDED = Path(__file__).parent / "recorded"
RULES = REPOSITORY / "charts" / "dpo-operator" / "alerts.yaml"
EVERY = 1.0


@dataclass(frozen=True)
class Plant:
    """A run: what its spec differs in from the quickstart's, and what is done to it once it has finished some steps."""

    changes: dict[str, Any] = field(default_factory=dict)
    after_step: int = 8
    harm: Callable[["Run"], AbstractContextManager[object]] = nullcontext
    # Readings after the harm, before the run is ended; None: it runs to its end.
    readings: int | None = None
    # Done to the run's folder once it has finished those steps and was stopped; what is recorded is the run after that.
    again: Callable[[Path], None] | None = None
    # Checkpoints are on a file system of their own, which can be frozen; needs root.
    volume: bool = False


class Run:
    """A `dpo run` and what it exports."""

    def __init__(self, folder: Path, plant: Plant) -> None:
        job = yaml.safe_load((QUICKSTART / "dpojob.yaml").read_text())
        spec = job["spec"]
        spec["model"]["name"] = str(MODEL)
        for split in ("train", "eval"):
            spec["data"][split]["source"] = str(QUICKSTART / spec["data"][split]["source"])
        _merge(spec, SMALL)
        _merge(spec, plant.changes)
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        self.work = folder / "work"
        self.port = free_port()
        words = [str(Path(sys.executable).with_name("dpo")), "run", str(folder / "job.yaml")]
        self.words = [*words, "--work-dir", str(self.work), "--metrics-port", str(self.port)]
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self.readings: list[dict[str, float]] = []
        self.process = tied.popen(self.words, stdout=sys.stderr)

    def ranks(self) -> list[int]:
        """Processes of the ranks, by rank."""
        found = {}
        for pid in _descendants(self.process.pid):
            try:
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            rank = next((each[5:] for each in environment if each.startswith(b"RANK=")), None)
            if rank is not None:
                found[int(rank)] = pid
        return [found[rank] for rank in sorted(found)]

    def end(self) -> None:
        """End it, if it has not ended."""
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            for pid in [*self.ranks(), self.process.pid]:
                os.kill(pid, signal.SIGKILL)

    def read(self) -> dict[str, float]:
        """One reading; empty while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return {_series(s.name, s.labels): s.value for s in samples if s.name in used()}

    @property
    def trained(self) -> bool:
        """The last step is finished; the evaluation and the export after it are not awaited."""
        newest = self.readings[-1] if self.readings else {}
        return newest.get("dpo_train_step{}", 0) >= newest.get("dpo_train_max_steps{}", 1)

    def keep(self, reading: dict[str, float]) -> None:
        """Add it. What has an age keeps its age, however long the reading before took."""
        now, tick = time.time(), len(self.readings) * EVERY
        self.readings.append(
            {k: tick - (now - v) if k.split("{")[0].endswith("_timestamp_seconds") else v for k, v in reading.items()}
        )


def used() -> set[str]:
    """Names of the trainer's series in the chart's rules."""
    return set(re.findall(r"\bdpo_[a-z0-9_]+", RULES.read_text()))


def record(name: str) -> None:
    """Make a recording."""
    plant = PLANTS[name]
    with tempfile.TemporaryDirectory(prefix="dpo-record-") as made:
        run = Run(Path(made), plant)
        left, harmed = plant.readings, False
        with ExitStack() as undone:
            if plant.volume:
                undone.enter_context(own_volume(run, Path(made)))
            undone.callback(run.end)
            if plant.again is not None:
                while run.read().get("dpo_train_step{}", 0) < plant.after_step:
                    time.sleep(EVERY)
                run.end()
                plant.again(run.work)
                run.start()
            while run.process.poll() is None and left != 0 and not run.trained:
                time.sleep(EVERY)
                reading = run.read()
                if run.readings or reading.get("dpo_train_max_steps{}", 0) > 0:
                    run.keep(reading)
                if harmed and left is not None:
                    left -= 1
                if not harmed and plant.again is None and reading.get("dpo_train_step{}", 0) >= plant.after_step:
                    harmed = True
                    undone.enter_context(plant.harm(run))
    _write(name, run.readings)


def _write(name: str, readings: list[dict[str, float]]) -> None:
    while not readings[-1]:  # the process had ended
        readings.pop()
    keys = sorted({key for reading in readings for key in reading})
    series = {key: [_short(reading.get(key)) for reading in readings] for key in keys}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(values)}" for key, values in series.items())
    RECORDED.mkdir(exist_ok=True)
    (RECORDED / f"{name}.json").write_text(f"{{\n{lines}\n}}\n")
    print(f"{name}: {len(readings)} readings of {len(keys)} series", file=sys.stderr)


def _short(value: float | None) -> float | str | None:
    """Six digits; NaN, which JSON lacks, as a word."""
    if value is None:
        return None
    return float(f"{value:.6g}") if value == value and abs(value) != float("inf") else str(value)


def _series(name: str, labels: dict[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inner}}}"


def _merge(spec: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(spec.get(key), dict):
            _merge(spec[key], value)
        else:
            spec[key] = value


def _descendants(pid: int) -> Iterator[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in children.read_text().split() if children.exists() else ():
        yield int(child)
        yield from _descendants(int(child))


@contextmanager
def rank_1_stopped(run: Run) -> Iterator[None]:
    """Rank 0 waits for it in a collective operation, and answers on /metrics all the same."""
    rank = run.ranks()[1]
    os.kill(rank, signal.SIGSTOP)
    yield
    os.kill(rank, signal.SIGCONT)


@contextmanager
def rank_1_slowed(run: Run) -> Iterator[None]:
    """It gets a twentieth of a processor; needs root."""
    old = Path("/sys/fs/cgroup/cpu")
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / "dpo-record"
    group.mkdir()
    if old.is_dir():
        (group / "cpu.cfs_period_us").write_text("20000")
        (group / "cpu.cfs_quota_us").write_text("1000")
    else:
        (group / "cpu.max").write_text("1000 20000")
    rank = run.ranks()[1]
    (group / "cgroup.procs").write_text(str(rank))
    yield
    (group.parent / "cgroup.procs").write_text(str(rank))
    group.rmdir()


def reference_shifted(work: Path) -> None:
    """The log-probs of the reference are those of another model: each chosen answer is less likely by two nats."""
    from safetensors.torch import load_file

    from dpo_trainer.training.reference import save_table

    for path in (work / "reference").glob("*.safetensors"):
        table = load_file(path)["logps"]
        table[:, 0] -= 2
        save_table(path, table, key=path.stem)
    shutil.rmtree(work / "checkpoints")
    (work / "metrics.jsonl").unlink()


@contextmanager
def own_volume(run: Run, folder: Path) -> Iterator[None]:
    """Mount a file system where the run will keep its checkpoints, as soon as it has taken its folder."""
    while not (run.work / "job.json").exists():
        time.sleep(0.05)
    checkpoints = run.work / "checkpoints"
    checkpoints.mkdir()
    with small_file_system(folder, 256) as mounted:
        subprocess.run(["mount", "--bind", str(mounted), str(checkpoints)], check=True)
        yield
        unmount(checkpoints)


@contextmanager
def saves_slowed(run: Run) -> Iterator[None]:
    """The file system of the checkpoints writes for a moment every five seconds."""
    over = threading.Event()

    def slow() -> None:
        while not over.is_set():
            with saves_frozen(run):
                over.wait(5)
            time.sleep(0.05)

    slowing = threading.Thread(target=slow)
    slowing.start()
    yield
    over.set()
    slowing.join()


@contextmanager
def saves_frozen(run: Run) -> Iterator[None]:
    """The file system of the checkpoints writes nothing more, and says nothing."""
    folder = str(run.work / "checkpoints")
    subprocess.run(["fsfreeze", "--freeze", folder], check=True)
    yield
    subprocess.run(["fsfreeze", "--unfreeze", folder], check=True)


# 20 steps.
SMALL = {
    "nodes": 1,
    "data": {"train": {"limit": 160}, "eval": {"limit": 32}},
    "training": {"globalBatchSize": 8, "microBatchSize": 4},
    "evaluation": {"everySteps": 10, "samples": 4, "sampleTokens": 24},
    "checkpoint": {"everySteps": 5},
}
RANKS_2 = {"nodes": 2}
PLANTS = {
    "healthy": Plant({"training": {"epochs": 4}}),
    "healthy-lora": Plant({"adapter": {"type": "lora"}, "training": {"learningRate": 1e-3}}),
    "healthy-orpo": Plant({"method": {"name": "orpo"}}),
    # What a large model needs moves this small one by nothing.
    "flat": Plant({"training": {"learningRate": 5e-7}}),
    "hang": Plant(RANKS_2, harm=rank_1_stopped, readings=30),
    "straggler": Plant({**RANKS_2, "training": {"epochs": 4}}, harm=rank_1_slowed, readings=80),
    "overdue": Plant(harm=saves_frozen, readings=40, volume=True),
    "idle": Plant(
        {"checkpoint": {"everySteps": 1, "async": False}, "evaluation": {"everySteps": 20}},
        after_step=2,
        harm=saves_slowed,
        volume=True,
    ),
    "wrong-reference": Plant(after_step=2, again=reference_shifted),
}

if __name__ == "__main__":
    for chosen in sys.argv[1:] or PLANTS:
        record(chosen)

"""`dpo run` killed with SIGKILL: no process of it stays."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dpo_operator.api import names
from dpo_operator.api.reports import Termination
from dpo_trainer.checkpoint import layout
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests import tied
from tests.ports import free_port
from tests.unit.trainer.tiny import tiny_model, write_jsonl

pytestmark = pytest.mark.numerics

DPO = [sys.executable, "-c", "from dpo_operator.cli.main import app; app()"]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of two launchers whose training does not end by itself."""
    model = tiny_model(tmp_path / "model")
    fill(model)
    rows = [{"prompt": f"Ask {i}:", "chosen": " yes", "rejected": " no"} for i in range(8)]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    spec: dict[str, Any] = {
        "model": {"name": "./model"},
        "data": {"train": {"source": "./pairs.jsonl"}, "maxLength": 64},
        "training": {"globalBatchSize": 2, "microBatchSize": 1, "maxSteps": 1_000_000, "precision": "fp32"},
        "checkpoint": {"everySteps": 1_000_000},
        "nodes": 2,
        "gpusPerNode": 0,
    }
    document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "tiny"}, "spec": spec}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def fill(model: Path) -> None:
    """Give a folder with a tokenizer the weights of a small Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).save_pretrained(model)


class Run:
    """`dpo run` in a process of its own."""

    def __init__(self, job: Path, work: Path) -> None:
        self.work, self.log = work, work.with_suffix(".log")
        command = [*DPO, "run", str(job), "--work-dir", str(work), "--metrics-port", str(free_port())]
        with self.log.open("ab") as out:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            self.process = tied.popen(command, env=environment, stdout=out, stderr=out)

    def started(self, subcommand: str = "") -> list[int]:
        """Processes that it started, directly or not, and that live: they have the work folder in their environment."""
        mine = f"{names.ENV_WORK_DIR}={self.work}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # A zombie has neither environment nor command line.
                environment = (folder / "environ").read_bytes().split(b"\0")
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mine in environment and (not subcommand or subcommand.encode() in words):
                found.append(int(folder.name))
        return found

    def kill(self) -> None:
        """SIGKILL to `dpo run` alone."""
        self.process.kill()
        self.process.wait()

    # Limits for a busy machine; on a quiet one all of this takes seconds.
    def until(self, what: str, condition: Callable[[], Any], seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"no {what} in time: {self.log.read_text()[-4000:]}"
            time.sleep(0.05)

    def step(self) -> int:
        """The last finished step."""
        lines = read_metrics(self.work / "metrics.jsonl") if (self.work / "metrics.jsonl").is_file() else []
        return int(lines[-1]["step"]) if lines else 0


@pytest.fixture
def run(job: Path, tmp_path: Path) -> Iterator[Run]:
    begun = Run(job, tmp_path / "work")
    yield begun
    begun.kill()
    for process in begun.started():
        os.kill(process, signal.SIGKILL)


def test_a_killed_run_saves_its_state_and_leaves_no_process(run: Run) -> None:
    run.until("step", lambda: run.step() >= 2)
    assert len(run.started("launch")) == 2
    assert len(run.started("train")) == 2
    run.kill()
    run.until("end of its processes", lambda: not run.started(), 120)

    [(saved, _)] = layout.committed(run.work / "checkpoints")
    assert saved == run.step() >= 2
    words = [Termination.from_text(path.read_text()) for path in run.work.glob("termination-train-1-*.json")]
    assert [each and each.exit_code for each in words] == [128 + signal.SIGTERM] * 2


@pytest.mark.exhaustive
def test_a_run_killed_while_ranks_start_leaves_no_process(run: Run) -> None:
    run.until("ranks", lambda: len(run.started("train")) == 2)
    run.kill()
    run.until("end of its processes", lambda: not run.started(), 120)

"""The real command, `python -m dpo_trainer launch`: stopped, killed and run again."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_operator.api import names
from dpo_operator.api.reports import Progress, Termination
from dpo_operator.planning.stale import FAILED_GRACE_SECONDS
from dpo_trainer.checkpoint import layout
from dpo_trainer.telemetry.metrics_file import read_metrics
from tests import tied
from tests.numerics.interruptions import curve, folder, job, train_until
from tests.numerics.ranks import on_ranks
from tests.ports import free_port

pytestmark = pytest.mark.numerics

STEPS = 400


class Launch:
    """One pod of two ranks."""

    def __init__(self, root: Path, attempt: int, document: dict[str, Any]) -> None:
        self.root, self.words = root, root / f"words-{attempt}.json"
        self.port, master = free_port(), free_port()
        (root / "job.json").write_text(json.dumps(document))
        self.log = (root / f"log-{attempt}").open("w+")
        self.process = tied.popen(
            [
                sys.executable, "-m", "dpo_trainer", "launch", "--job-file", str(root / "job.json"),
                "--work-dir", str(root),
            ],
            env={
                **os.environ, "DPO_ATTEMPT": str(attempt), "DPO_METRICS_PORT": str(self.port),
                "DPO_TERMINATION_LOG": str(self.words), "PET_NPROC_PER_NODE": "2", "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(master), "OMP_NUM_THREADS": "1",
            },
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def until(self, condition: Callable[[], Any], seconds: float = 240) -> Any:
        """Wait for something to be true while the launcher runs; what it gave."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)
        return found

    def status(self) -> Progress | None:
        """What /status says; None while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5) as answer:
                return Progress.model_validate_json(answer.read())
        except OSError:
            return None

    def end(self) -> tuple[int, Termination]:
        """Exit code and last words."""
        code = self.process.wait(timeout=240)
        words = Termination.from_text(self.words.read_text())
        assert words is not None, self.text()
        return code, words

    def text(self) -> str:
        """All that was said."""
        self.log.seek(0)
        return self.log.read()


def test_sigterm_saves_the_last_step_and_the_next_run_loses_none(tmp_path: Path):
    document = _document(tmp_path)
    first = Launch(tmp_path, 1, document)
    # The operator can ask before torch is loaded, and sees what the wait is for.
    early = first.until(first.status)
    assert early.step == 0
    assert early.activity in ("starting", "loading torch")
    first.until(lambda: (s := first.status()) and s.step >= 2)

    first.process.send_signal(signal.SIGTERM)
    code, words = first.end()

    assert (code, words.outcome, words.exit_code) == (143, "Stopped", 143), first.text()
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    assert 2 <= last < STEPS
    assert [step for step, _ in layout.committed(tmp_path / "checkpoints")] == [last]
    assert words.progress.checkpoint.step == words.progress.step == last

    second = Launch(tmp_path, 2, document)
    second.until(lambda: (s := second.status()) and s.step >= last + 2)
    assert second.status().resumed_from_step == last
    # Killed this time: SIGKILL to one rank is the pod's exit code, and the launcher says which rank it was.
    os.kill(rank_of(second.process.pid, 1), signal.SIGKILL)
    code, words = second.end()

    assert (code, words.reason, words.rank) == (137, "Killed", 1), second.text()
    assert "rank 1 was killed by SIGKILL" in words.message
    steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))

    whole = tmp_path / "whole"
    folder(whole)
    on_ranks(2, _some_steps, document, whole, last + 2)
    assert curve(tmp_path)[: last + 2] == curve(whole)[: last + 2]


@pytest.mark.fault(34)
def test_a_hang_leaves_the_stacks_of_all_ranks_in_time(tmp_path: Path):
    document = _document(tmp_path)
    pod = Launch(tmp_path, 1, document)
    pod.until(lambda: (s := pod.status()) and s.step >= 2)
    rank_1 = rank_of(pod.process.pid, 1)
    os.kill(rank_1, signal.SIGSTOP)
    stopped = pod.until(pod.status).step
    # The other rank waits for it in a collective.
    time.sleep(2)
    assert pod.status().step <= stopped + 1

    pod.process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    folder = tmp_path / names.STACKS / "attempt-1"
    for rank in (0, 1):
        path = folder / f"rank-{rank}.txt"
        pod_has = lambda path=path: path.is_file() and "in _loop" in path.read_text()  # noqa: E731
        while not pod_has():
            assert time.monotonic() - begun < FAILED_GRACE_SECONDS, pod.text()
            time.sleep(0.05)
    assert "rank 1 is stopped (state T)" in (folder / "rank-1.txt").read_text()
    code, words = pod.end()

    assert "stacks of rank 0:" in pod.text()
    assert "stacks of rank 1:" in pod.text()
    # Set going again, the ranks save what they have, and no step is lost.
    assert (code, words.outcome) == (143, "Stopped"), pod.text()
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    assert [step for step, _ in layout.committed(tmp_path / "checkpoints")] == [last]


def test_a_wrong_job_ends_with_its_code_and_message(tmp_path: Path):
    document = _document(tmp_path)
    document["spec"]["training"]["learningRate"] = 7
    pod = Launch(tmp_path, 1, document)
    code, words = pod.end()

    assert (code, words.reason) == (78, "InvalidConfiguration"), pod.text()
    assert words.message.startswith("spec.training.learningRate: ")
    assert "found 7" in words.message


@pytest.mark.exhaustive
def test_torchrun_starts_the_same_training(tmp_path: Path):
    document = _document(tmp_path)
    document["spec"]["training"]["maxSteps"] = 2
    (tmp_path / "job.json").write_text(json.dumps(document))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    done = subprocess.run(
        [*command, "-m", "dpo_trainer", "train", "--job-file", tmp_path / "job.json", "--work-dir", tmp_path],
        env={**os.environ, "DPO_METRICS_PORT": "0", "DPO_TERMINATION_LOG": str(tmp_path / "words")},
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    assert Termination.from_text((tmp_path / "words").read_text()).outcome == "Succeeded"
    whole = tmp_path / "whole"
    folder(whole)
    on_ranks(2, train_until, document, whole, 1)
    assert [line["step"] for line in curve(tmp_path)] == [1, 2]
    assert curve(tmp_path) == curve(whole)


def _document(root: Path) -> dict[str, Any]:
    folder(root)
    document = job(every_steps=1000)
    document["spec"]["training"]["maxSteps"] = STEPS
    return document


def _some_steps(document: dict[str, Any], root: Path, steps: int) -> dict[str, Any]:
    return train_until(document, root, 1, stop_after=steps)


def _ranks(launcher: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]


def rank_of(launcher: int, local_rank: int) -> int:
    """Process id of a launcher's rank."""
    wanted = b"LOCAL_RANK=%d\0" % local_rank
    return next(pid for pid in _ranks(launcher) if wanted in Path(f"/proc/{pid}/environ").read_bytes())

"""Weights & Biases through its real client: one run for a job, numbers under TRL's names, and a key that nobody else sees."""

import http.server
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from dpo_operator.api.types import DPOJob
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry import wandb as tracker

pytestmark = pytest.mark.unit

KEY = "0123456789" * 4
METRICS = {"loss": 0.6, "rewards/margins": 0.2, "margin_length_correlation": float("nan")}


@pytest.fixture(autouse=True)
def _nobody_elses_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # The client reads the environment once for each of its helper processes.
    wandb.teardown()


def a_job(**settings: Any) -> DPOJob:
    spec = {
        "model": {"name": "org/model"}, "data": {"train": {"source": "pairs.jsonl"}},
        "tracking": {"wandb": {"project": "alignment", **settings}},
        "pod": {"env": [{"name": "NCCL_DEBUG", "value": "private"}]},
    }  # fmt: skip
    return DPOJob.model_validate({"metadata": {"name": "helpful", "uid": "7d3e"}, "spec": spec})


def an_attempt(folder: Path, job: DPOJob, attempt: int, *steps: int, rank: int = 0) -> None:
    news = Telemetry("train", attempt, WorkDir(folder), rank=rank)
    news.track(job)
    news.begin(max_steps=10, resumed_step=steps[0] - 1)
    for step in steps:
        news.step(step, epoch=step / 10, seconds=0.5, pairs=8, tokens=80, metrics=METRICS)
    news.evaluation(steps[-1], METRICS)
    news.close()
    # An attempt is a process of its own, and so is its client's helper, which goes with it.
    if sys.modules.get("wandb") is not None:
        wandb.teardown()


def records(file: Path) -> Iterator[Record]:
    """What a .wandb file holds: LevelDB's log format, in blocks of 32 KiB, after a header of 7 bytes."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, last
            yield Record.FromString(whole)
            whole = b""


def test_all_attempts_are_one_run_under_trls_names(tmp_path: Path):
    job = a_job(entity="team")
    an_attempt(tmp_path, job, 1, 1, 2, 3)
    time.sleep(1.1)  # the client names its folders by the second
    an_attempt(tmp_path, job, 2, 3, 4)

    runs, rows = [], []
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for record in records(file):
            if record.HasField("run"):
                runs.append(record.run)
            if record.HasField("history"):
                items = record.history.item
                rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    assert {(run.run_id, run.project, run.entity, run.display_name) for run in runs} == {
        ("helpful-7d3e", "alignment", "team", "helpful")
    }
    train = [(row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert train == [(1, 0.6), (2, 0.6), (3, 0.6), (3, 0.6), (4, 0.6)]
    evaluations = [(row["train/global_step"], row["eval/rewards/margins"]) for row in rows if "eval/loss" in row]
    assert evaluations == [(3, 0.2), (4, 0.2)]
    # JSON has no NaN, and the service's charts nothing to draw for it.
    assert not any("margin_length_correlation" in name for row in rows for name in row)
    config = {"/".join(i.nested_key) or i.key: i.value_json for i in runs[0].config.update}
    assert json.loads(config["model"])["name"] == "org/model"
    assert json.loads(config["method"])["name"] == "dpo"
    # Nothing of the machine or of the pod.
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"private" not in stored
    assert not list(tmp_path.glob("wandb/*/files/*"))


def test_only_rank_0_logs(tmp_path: Path):
    an_attempt(tmp_path, a_job(), 1, 1, rank=1)
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("why", ["no package", "no key", "empty key"])
def test_what_is_missing_is_logged_once_and_costs_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
):
    job = a_job(mode="online", apiKeySecretRef={"name": "tracker"})
    key = tmp_path / "key"
    monkeypatch.setenv("DPO_WANDB_KEY_FILE", str(key))
    if why == "no package":
        job = a_job()
        monkeypatch.setitem(sys.modules, "wandb", None)
    if why == "empty key":
        key.write_text("\n")
    an_attempt(tmp_path, job, 1, 1, 2)

    [line] = [line for line in capsys.readouterr().err.splitlines() if "Weights & Biases" in line]
    assert line.startswith("Weights & Biases: nothing is logged from step 1 on: ")
    assert {"no package": "pip install wandb", "no key": f"API key in the file {key}", "empty key": f"{key}: expected"}[
        why
    ] in line
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_error_that_repeats_the_key_is_logged_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(**_: Any) -> None:
        raise RuntimeError(f"the service does not know {KEY}")

    (tmp_path / "key").write_text(KEY)
    monkeypatch.setenv("DPO_WANDB_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setattr(wandb, "init", fail)
    an_attempt(tmp_path, a_job(mode="online", apiKeySecretRef={"name": "tracker"}), 1, 1)
    assert "nothing is logged from step 1 on: the service does not know ***" in capsys.readouterr().err


class _Refuses(http.server.BaseHTTPRequestHandler):
    """A service that does not know the key."""

    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"errors": [{"message": "user is not logged in"}]}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_service_that_refuses_costs_no_step_and_the_key_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    monkeypatch.setenv("DPO_WANDB_KEY_FILE", str(key))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(tracker, "_TIMEOUT_SECONDS", 3.0)
    work = tmp_path / "work"
    an_attempt(work, a_job(mode="online", apiKeySecretRef={"name": "tracker"}), 1, 1, 2)
    server.shutdown()

    said = capfd.readouterr()
    assert _Refuses.seen, "the client never asked the service"
    assert "Weights & Biases: nothing is logged from step 1 on: " in said.err
    assert said.err.count("Weights & Biases:") == 1
    assert len((work / "metrics.jsonl").read_text().splitlines()) == 3
    assert KEY not in said.err + said.out
    assert KEY not in "".join(os.environ.values())
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and path != key and KEY.encode() in path.read_bytes()
    ]
    assert written == []

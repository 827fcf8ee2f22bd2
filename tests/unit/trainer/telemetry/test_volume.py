"""The file system's sizes reach /status, and one that hangs keeps nobody waiting."""

import os
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from dpo_operator.api.reports import Progress
from dpo_trainer.checkpoint.folder import CheckpointFolder
from dpo_trainer.runtime.workdir import WorkDir
from dpo_trainer.telemetry import Telemetry
from dpo_trainer.telemetry.volume import VolumeWatch

pytestmark = pytest.mark.unit


def soon(look, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def a_checkpoint(work: WorkDir, step: int, *sizes: int) -> None:
    """One that appears whole, by its rename, as a save's does."""
    staged = work.root / f"staged-{step}"
    staged.mkdir(parents=True)
    for number, size in enumerate(sizes):
        (staged / f"rank-{number:05d}.safetensors").write_bytes(b"x" * size)
    work.checkpoints.mkdir(exist_ok=True)
    staged.rename(work.checkpoints / f"step-{step:08d}")


def test_free_space_and_the_newest_checkpoints_size_are_read(tmp_path: Path):
    work = WorkDir(tmp_path)
    a_checkpoint(work, 5, 10)
    a_checkpoint(work, 10, 1000, 500)
    watch = VolumeWatch(work, CheckpointFolder(work.checkpoints), interval=0.01)
    found = soon(lambda: watch.newest)
    disk = os.statvfs(tmp_path)
    assert found.total == disk.f_blocks * disk.f_frsize
    assert 0 < found.free <= found.total
    assert found.checkpoint == 1500
    a_checkpoint(work, 15, 7)
    soon(lambda: watch.newest.checkpoint == 7)
    watch.close()


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path):
    watch = VolumeWatch(WorkDir(tmp_path / "none"), CheckpointFolder(tmp_path / "none" / "checkpoints"), interval=0.01)
    time.sleep(0.1)
    assert watch.newest is None
    watch.close()


def status(port: int) -> Progress:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=2) as answer:
        return Progress.model_validate_json(answer.read())


def test_status_reports_the_volume_without_waiting_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DPO_METRICS_PORT", "0")
    monkeypatch.setenv("DPO_BIND_ADDRESS", "127.0.0.1")
    release, real = threading.Event(), os.statvfs

    def hanging(path):
        release.wait(20)
        return real(path)

    monkeypatch.setattr(os, "statvfs", hanging)
    news = Telemetry("train", 1, WorkDir(tmp_path), checkpoints=CheckpointFolder(WorkDir(tmp_path).checkpoints))
    port = news.serve()
    assert port is not None
    try:
        begun = time.monotonic()
        assert status(port).volume is None
        assert time.monotonic() - begun < 2
        release.set()
        found = soon(lambda: status(port).volume)
        assert found.total >= found.free > 0
        assert found.checkpoint is None
    finally:
        release.set()
        news.close()
    # Last words have no room for it.
    assert news.progress.volume is None


def test_other_ranks_do_not_watch_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DPO_METRICS_PORT", "0")
    news = Telemetry("train", 1, WorkDir(tmp_path), rank=4)
    news.serve()
    assert news._volume is None
    news.close()

"""Stack dumps of hung ranks, with real processes: in the log and on the volume, also of stopped ranks."""

import os
import signal
import time
from pathlib import Path

import pytest

from dpo_trainer.launch import stacks
from dpo_trainer.launch.stacks import MAX_BYTES, Stacks
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.launched import Pod, wait_for

pytestmark = pytest.mark.unit

# Both ranks hang in a function and ignore SIGTERM.
HANGING = """
import threading
from dpo_trainer.launch import stacks
stacks.register()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def waits_for_a_peer():
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    others()
    threading.Event().wait()
def waits_too(): threading.Event().wait()
threading.Thread(target=waits_too, daemon=True).start()
waits_for_a_peer()
"""
# A rank that saves and exits on SIGTERM.
OBEDIENT = """
from dpo_trainer.launch import stacks
stacks.register()
signal.signal(signal.SIGTERM, lambda *_: leave(143, "saved"))
def works():
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    others()
    while True: time.sleep(0.01)
works()
"""


def begun(folder: Path, pods: list[Pod], script: str, ranks: int = 2, **environment: str) -> Pod:
    """A pod whose ranks have all started to work."""
    pod = Pod(folder, script, ranks, DPO_ATTEMPT="3", **environment)
    pods.append(pod)
    wait_for(lambda: len(list(folder.glob("here-*"))) == ranks)
    return pod


def rank_pid(folder: Path, rank: int) -> int:
    return int((folder / f"pid-{rank}").read_text())


def kept(folder: Path, rank: int) -> str:
    path = folder / "stacks" / "attempt-3" / f"rank-{rank}.txt"
    return path.read_text() if path.is_file() else ""


def killed(pod: Pod, *pids: int) -> str:
    """Kill the ranks as Kubernetes does after the grace period; returns the log."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pod.wait()[1]


@pytest.mark.fault(34)
def test_hung_ranks_leave_stacks_of_all_threads_in_log_and_on_volume(tmp_path: Path, started: list[Pod]):
    pod = begun(tmp_path, started, HANGING, PET_NNODES="2", PET_NODE_RANK="1")
    pod.process.send_signal(signal.SIGTERM)
    # Ranks of the second pod of two.
    for rank in (2, 3):
        wait_for(lambda rank=rank: "in waits_for_a_peer" in kept(tmp_path, rank))
        assert "in waits_too" in kept(tmp_path, rank)
        assert f"stacks of rank {rank}:" in kept(tmp_path, rank)
    said = killed(pod, rank_pid(tmp_path, 0), rank_pid(tmp_path, 1))

    assert "launch: not ended 0 s after the signal; stacks of ranks 2, 3 follow, and go to stacks/attempt-3 on" in said
    assert said.count("in waits_for_a_peer") == 2
    assert "gave no stacks" not in said


@pytest.mark.fault(34)
def test_a_stopped_rank_is_named_shows_its_stack_and_can_save(tmp_path: Path, started: list[Pod]):
    pod = begun(tmp_path, started, OBEDIENT)
    os.kill(rank_pid(tmp_path, 1), signal.SIGSTOP)
    wait_for(lambda: stacks.state(rank_pid(tmp_path, 1)) == "T")
    pod.process.send_signal(signal.SIGTERM)
    code, said, termination = pod.wait()

    assert "launch: rank 1 is stopped (state T)" in said
    assert "rank 1 is stopped (state T)" in kept(tmp_path, 1)
    # The place where it was stopped, not where it exited.
    assert "in works" in kept(tmp_path, 1)
    assert "in works" in said
    # Its peer had exited at once, without a dump.
    assert kept(tmp_path, 0) == ""
    assert (code, termination.outcome, termination.message) == (143, "Stopped", "saved")


def test_a_request_to_the_launcher_shows_stacks_and_ends_nothing(tmp_path: Path, started: list[Pod]):
    pod = begun(tmp_path, started, OBEDIENT)
    for times in (1, 2):
        pod.process.send_signal(signal.SIGUSR1)
        wait_for(lambda times=times: kept(tmp_path, 1).count("in works") == times)
    assert pod.process.poll() is None
    pod.process.send_signal(signal.SIGTERM)
    code, said, _ = pod.wait()

    assert code == 143
    assert "launch: SIGUSR1; stacks of ranks 0, 1 follow" in said


def test_a_hung_or_failed_volume_loses_only_the_copy(tmp_path: Path, started: list[Pod]):
    folder = tmp_path / "stacks" / "attempt-3"
    folder.mkdir(parents=True)
    # Opening a pipe without a reader never returns; a folder can't be written to.
    os.mkfifo(folder / "rank-0.txt")
    (folder / "rank-1.txt").mkdir()
    pod = begun(tmp_path, started, OBEDIENT.replace("lambda *_: leave", "lambda *_: time.sleep(2) or leave"))
    pod.process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    code, said, _ = pod.wait()

    assert code == 143
    assert time.monotonic() - begin < 2 + stacks.COPY_SECONDS + 5
    assert said.count("in works") == 2
    assert "rank-1.txt: Is a directory" in said


def test_the_reason_why_a_process_is_unresponsive(tmp_path: Path):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        assert stacks.unresponsive_reason(child) == ""
        os.kill(child, signal.SIGSTOP)
        wait_for(lambda: stacks.unresponsive_reason(child) == "is stopped (state T)")
    finally:
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: stacks.unresponsive_reason(child) == "is ended, not reaped (state Z)")
    os.waitpid(child, 0)
    assert stacks.state(child) == stacks.unresponsive_reason(child) == ""


def test_dumps_and_kept_attempts_are_limited(tmp_path: Path):
    said: list[str] = []
    for attempt in range(1, stacks.KEPT_ATTEMPTS + 3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        found = Stacks(folder, WorkDir(tmp_path), attempt, {0: 0}, said.append)
        found.file(0).write_bytes(b"x" * (MAX_BYTES + 5))
        found.collect([0])
        found.collect([0])
        found.finish()
    assert len(said) == stacks.KEPT_ATTEMPTS + 2
    assert "[5 bytes left out]" in said[-1]
    names = {path.name for path in (tmp_path / "stacks").iterdir()}
    assert names == {f"attempt-{number}" for number in range(3, stacks.KEPT_ATTEMPTS + 3)}

"""Stacks of ranks that hang, with real processes: in the log and on the volume, whatever is stopped or does not answer."""

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

# Both ranks hang for ever in a function of their own, and do not listen to SIGTERM.
HANGING = """
import threading
from dpo_trainer.launch import stacks
stacks.register()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def waits_for_a_peer():
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    others()
    threading.Event().wait()
def beside_it(): threading.Event().wait()
threading.Thread(target=beside_it, daemon=True).start()
waits_for_a_peer()
"""
# A rank that saves and leaves when it's asked to.
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
    """A pod whose ranks have all got to work."""
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
    """The end that Kubernetes brings about; what was said."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pod.wait()[1]


@pytest.mark.fault(34)
def test_ranks_that_hang_leave_the_stacks_of_all_threads_in_the_log_and_on_the_volume(
    tmp_path: Path, started: list[Pod]
):
    pod = begun(tmp_path, started, HANGING, PET_NNODES="2", PET_NODE_RANK="1")
    pod.process.send_signal(signal.SIGTERM)
    # Ranks of the second pod of two.
    for rank in (2, 3):
        wait_for(lambda rank=rank: "in waits_for_a_peer" in kept(tmp_path, rank))
        assert "in beside_it" in kept(tmp_path, rank)
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
    code, said, words = pod.wait()

    assert "launch: rank 1 is stopped (state T)" in said
    assert "rank 1 is stopped (state T)" in kept(tmp_path, 1)
    # Where it was stopped, not where it ended.
    assert "in works" in kept(tmp_path, 1)
    assert "in works" in said
    # Its peer had left at once, and has nothing to show.
    assert kept(tmp_path, 0) == ""
    assert (code, words.outcome, words.message) == (143, "Stopped", "saved")


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


def test_a_volume_that_hangs_or_fails_costs_the_copy_alone(tmp_path: Path, started: list[Pod]):
    folder = tmp_path / "stacks" / "attempt-3"
    folder.mkdir(parents=True)
    # Opening a pipe that nobody reads never ends; a folder can't be written to.
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


def test_a_process_that_can_not_answer_is_described(tmp_path: Path):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        assert stacks.oddity(child) == ""
        os.kill(child, signal.SIGSTOP)
        wait_for(lambda: stacks.oddity(child) == "is stopped (state T)")
    finally:
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: stacks.oddity(child) == "is ended, not reaped (state Z)")
    os.waitpid(child, 0)
    assert stacks.state(child) == stacks.oddity(child) == ""


def test_what_is_shown_and_kept_is_bounded(tmp_path: Path):
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

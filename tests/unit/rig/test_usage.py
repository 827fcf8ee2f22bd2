"""What becomes of a cluster whose user ends, in each way; real processes stand in for the cluster's daemons."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tied
from tests.cluster.rig import usage
from tests.cluster.rig.layout import CHECKOUT, STATE_VARIABLE, Layout, locked
from tests.cluster.rig.processes import Process, recorded, spawn, start_time_of
from tests.cluster.rig.shell import RigError
from tests.cluster.rig.usage import in_use, lock_of

pytestmark = pytest.mark.unit

# Boots something, says so, and then does what the test wants.
USER = """
import os, signal, sys, time
from tests.cluster.rig.processes import spawn
from tests.cluster.rig.usage import in_use
# nohup, and a shell's background jobs, ignore some signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with in_use("mine") as use:
    layout = use.begin()
    spawn("sleeper", ["sleep", "1000"], records=layout.processes, log=layout.logs / "sleeper.log")
    print("booted", flush=True)
    {then}
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state"


def user(then: str) -> "subprocess.Popen[str]":
    """A process that has booted the cluster."""
    process = tied.popen(
        [sys.executable, "-c", USER.format(then=then)], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "booted\n"
    return process


def daemon() -> Process:
    [process] = recorded(Layout.of("mine").processes)
    assert process.alive
    return process


def eventually(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_cluster_ends_with_its_user(number: signal.Signals):
    process = user("time.sleep(1000)")
    sleeper = daemon()
    process.send_signal(number)
    process.wait(timeout=30)
    eventually(lambda: not Layout.of("mine").root.exists())
    assert not sleeper.alive


def test_a_cluster_that_fails_to_boot_is_removed():
    process = user("raise SystemExit(3)")
    assert process.wait(timeout=30) == 3
    assert not Layout.of("mine").root.exists()


def test_a_cluster_that_is_left_running_stays():
    process = user("use.leave_running()")
    assert process.wait(timeout=30) == 0
    sleeper = daemon()
    # Also when others come, and when its next user is killed without booting it again.
    with in_use("other"):
        pass
    assert sleeper.alive
    with in_use("mine") as use:
        use.begin()
    assert not sleeper.alive


def test_the_next_user_waits_for_the_removal(monkeypatch: pytest.MonkeyPatch):
    """The guardian has the lock from the boot on, so nobody boots a cluster that is being removed."""
    process = user("time.sleep(1000)")
    daemon()
    with pytest.raises(RigError, match="in use"), locked(lock_of("mine"), busy="in use"):
        pass
    process.kill()
    process.wait()
    with in_use("mine"):
        assert not Layout.of("mine").root.exists()


def test_the_next_user_of_any_cluster_removes_what_a_killed_guardian_left():
    process = user("print(use._guardian.pid, flush=True); time.sleep(1000)")
    assert process.stdout is not None
    guardian = int(process.stdout.readline())
    sleeper = daemon()
    os.kill(guardian, signal.SIGKILL)
    process.kill()
    process.wait()
    # The guardian shares the lock of the cluster until the kernel has ended it.
    eventually(lambda: start_time_of(guardian) is None)
    assert sleeper.alive
    with in_use("other"):
        assert not sleeper.alive
        assert not Layout.of("mine").root.exists()


def test_a_cluster_in_use_is_no_leftover(state: Path):
    with in_use("one") as use:
        layout = use.begin()
        sleeper = spawn("sleeper", ["sleep", "1000"], records=layout.processes, log=layout.logs / "log")
        usage.remove_abandoned("two")
        assert sleeper.alive
    assert not sleeper.alive
    assert not layout.root.exists()

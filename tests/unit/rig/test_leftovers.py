"""What processes leave that are killed with SIGKILL: no child, no mount, no folder."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import tied
from tests.cluster.rig.layout import CHECKOUT
from tests.cluster.rig.processes import start_time_of
from tests.scratch import scratch_folder

pytestmark = pytest.mark.unit


def start(code: str, *arguments: object, **environment: str) -> tuple["subprocess.Popen[str]", str]:
    """A process, and the first line that it prints."""
    process = tied.popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=CHECKOUT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line
    return process, line


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()


def eventually(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_tied_process_ends_with_its_parent(number: signal.Signals):
    code = (
        "import signal, sys, time; from tests import tied\n"
        "print(tied.popen(['sleep', '1000'], number=signal.Signals(int(sys.argv[1]))).pid, flush=True); time.sleep(1000)"
    )
    parent, line = start(code, int(number))
    child = int(line)
    assert start_time_of(child)
    kill(parent)
    eventually(lambda: start_time_of(child) is None)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")
def test_a_mounted_file_system_ends_with_the_tests(tmp_path: Path):
    """Seen from other processes it is never there, and a loop device is free again when the tests have ended."""
    code = (
        "import sys, time; from pathlib import Path; from tests import filesystems\n"
        "filesystems.take_own_mounts()\n"
        "with filesystems.small_file_system(Path(sys.argv[1]), 16) as mounted:\n"
        "    print(filesystems.kind(mounted), flush=True); time.sleep(1000)"
    )
    process, kind = start(code, tmp_path)
    assert kind in ("ext4", "tmpfs")
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
    assert str(tmp_path) in Path(f"/proc/{process.pid}/mounts").read_text()
    kill(process)

    def backing_files() -> list[str]:
        return [file.read_text() for file in Path("/sys/block").glob("loop*/loop/backing_file")]

    eventually(lambda: not any(str(tmp_path) in file for file in backing_files()))


def test_a_scratch_folder_that_was_left_is_removed_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import time; from tests.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'file').touch(); print(folder, flush=True); time.sleep(1000)"
    )
    process, line = start(code, TMPDIR=str(tmp_path))
    left = Path(line)
    with scratch_folder() as own:
        assert own != left
        assert left.parent == own.parent == tmp_path
        assert (left / "file").exists()  # in use
    kill(process)
    assert left.exists()
    with scratch_folder():
        assert not left.exists()

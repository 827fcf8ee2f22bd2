"""The processes that the rig starts, recorded so that only they are ever ended.

A process is known by its id and its start time together: ids are used again, the pair is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.cluster.rig.shell import RigError, environment, search_path, tail

# The shell puts itself into the control group, then becomes the command: no moment at which a child could escape.
JOIN_GROUP = 'echo $$ > "$0" && exec "$@"'


@dataclass(frozen=True)
class Process:
    """One recorded process."""

    name: str
    pid: int
    start_time: int
    argv: tuple[str, ...]

    @property
    def alive(self) -> bool:
        return start_time_of(self.pid) == self.start_time

    def signal(self, number: signal.Signals) -> None:
        """Send a signal unless the process has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def parse_start_time(stat: str) -> int | None:
    """Start time, in clock ticks since boot, from the text of /proc/<pid>/stat; None for a dead or zombie process.

    The second field is the command's name in brackets and may hold spaces and brackets itself.
    """
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in ("Z", "X"):
        return None
    return int(fields[19])


def start_time_of(pid: int) -> int | None:
    try:
        return parse_start_time(Path(f"/proc/{pid}/stat").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def spawn(
    name: str,
    argv: Sequence[str | Path],
    *,
    records: Path,
    log: Path,
    group: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a process that outlives this one, in a control group when one is given, and record it."""
    words = [str(word) for word in argv]
    if not shutil.which(words[0], path=search_path()):
        raise RigError(f"{name}: {words[0]} is not there")
    wrapped = words if group is None else ["sh", "-c", JOIN_GROUP, str(group / "cgroup.procs"), *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    records.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        child = subprocess.Popen(
            wrapped,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment(env),
            start_new_session=True,
        )
    start_time = start_time_of(child.pid)
    if start_time is None:
        raise RigError(f"{name} ended at once:\n{tail(log)}")
    process = Process(name, child.pid, start_time, tuple(words))
    # Written aside and renamed, because others read the records meanwhile.
    unfinished = records / f"{name}.json.new"
    unfinished.write_text(json.dumps(asdict(process)))
    unfinished.rename(records / f"{name}.json")
    # The child is meant to outlive this object; without this, Popen warns that it was never waited for.
    child.returncode = 0
    return process


def recorded(records: Path) -> list[Process]:
    """Every process that was recorded, alive or not."""
    found = []
    for file in sorted(records.glob("*.json")):
        with contextlib.suppress(ValueError):  # a record that was being written when its writer was killed
            fields = json.loads(file.read_text())
            found.append(Process(fields["name"], fields["pid"], fields["start_time"], tuple(fields["argv"])))
    return found


def stop(processes: Iterable[Process], *, grace: float = 0.0) -> None:
    """End processes: SIGTERM and some time to react when grace is positive, then SIGKILL until all are gone."""
    remaining = list(processes)
    if grace > 0:
        for process in remaining:
            process.signal(signal.SIGTERM)
        remaining = wait_gone(remaining, grace)
    for process in remaining:
        process.signal(signal.SIGKILL)
    if left := wait_gone(remaining, 10.0):
        raise RigError(f"processes that do not end: {', '.join(f'{p.name} ({p.pid})' for p in left)}")


def wait_gone(processes: Iterable[Process], timeout: float) -> list[Process]:
    """Wait for processes to end; returns those that did not."""
    deadline = time.monotonic() + timeout
    left = [process for process in processes if process.alive]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [process for process in left if process.alive]
    return left

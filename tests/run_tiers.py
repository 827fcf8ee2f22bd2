"""Run the tiers of the tests with all their set-up: `make test`, or `python -m tests.run_tiers unit numerics`.

Three lanes run side by side. The tiers of an API server and of a cluster wait most of their time and check what happens
within seconds: they get a processor whenever they need one. The numerics and the small tests take what those leave.
Kubernetes' binaries and the images take minutes to build the first time, at a low priority, too; the lanes wait for them
where they need them. docs/development/testing.md says what each tier takes.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import tied
from tests.scratch import scratch_folder

REPOSITORY = Path(__file__).resolve().parents[1]
TIERS = ("unit", "numerics", "contract", "apiserver", "cluster")
NEED_THE_RIG = ("contract", "apiserver", "cluster")
# Tests of what happens within seconds: whatever else runs meanwhile has a lower priority. The two run one after the other.
GO_FIRST = ("apiserver", "cluster")
LOW = 15
# Seconds that what is stopped has to remove what it made.
PATIENCE = 60.0
# Whole files of tests in several processes. A test of the numerics waits for its ranks, and one of the API server for
# Kubernetes' controllers, so that one process leaves a core idle. Each process has an API server of its own.
PROCESSES = {"numerics": 2, "apiserver": 3}
BY_FILE = ("--dist", "loadfile", "--no-loadscope-reorder")
CHECKS = "lint and verify"


@dataclass(frozen=True)
class Result:
    """What became of one part of the run. code: its exit status."""

    name: str
    code: int
    seconds: float


def tier_command(name: str, exhaustive: bool, extra: list[str]) -> list[str]:
    """pytest for one tier. It looks into the tier's own folder, because importing all tests takes half a minute."""
    marks = name if exhaustive else f"{name} and not exhaustive"
    processes = ["-n", str(PROCESSES[name]), *BY_FILE] if name in PROCESSES else []
    return [sys.executable, "-m", "pytest", f"tests/{name}", "-m", marks, *processes, *extra]


def give_way(leader: int) -> None:
    """A low priority for a process that leads a session, and for all that it will start."""
    os.setpriority(os.PRIO_PROCESS, leader, LOW)
    # Where Linux shares processors between sessions first, a process's own priority counts within its session alone.
    with contextlib.suppress(OSError):
        Path(f"/proc/{leader}/autogroup").write_text(str(LOW))


class Runner:
    """Runs commands, and keeps what became of them."""

    def __init__(self, folder: Path) -> None:
        self.results: list[Result] = []
        self._folder = folder
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        # The tests start some hundred Python processes, and each would compile the project's modules for itself.
        self._environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run(self, name: str, command: list[str], *, aside: bool = False) -> int:
        """Run a command to its end; its exit status. 5, no test, is a failure, too.

        aside: it has a low priority, and its output comes when it has ended.
        """
        started, log = time.monotonic(), self._folder / f"{name.replace(' ', '-')}.log"
        if not aside:
            print(f"\n== {name}", flush=True)
        with log.open("wb") as out:
            process = self._start(command, out.fileno() if aside else None)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
            self.results.append(Result(name, code, time.monotonic() - started))
            if aside:
                print(f"\n== {name}", log.read_text(errors="replace"), sep="\n", flush=True)
        return code

    def _start(self, command: list[str], out: int | None) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise SystemExit(1)
            into = subprocess.STDOUT if out is not None else None
            process = tied.popen(
                command,
                number=signal.SIGTERM,
                cwd=REPOSITORY,
                env=self._environment,
                stdout=out,
                stderr=into,
                start_new_session=out is not None,
            )
            if out is not None:
                give_way(process.pid)
            self._running.add(process)
            return process

    @contextmanager
    def beside(self, work: Callable[[], object]) -> Iterator[None]:
        """Call a function in a thread, and wait for its end afterwards."""
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        except BaseException:
            self.stop()
            raise
        finally:
            thread.join()

    def stop(self) -> None:
        """End what still runs, and start nothing more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()
        for process in running:
            end(process)


def end(process: "subprocess.Popen[bytes]", patience: float = PATIENCE) -> None:
    """Wait for a process that was asked to end. A test that catches SIGTERM itself takes it from pytest, so that it goes on: it is killed."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Build:
    """What the cluster tiers need, built in the background."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "build.log"
        command = ["nice", "-n", "10", sys.executable, "-m", "tests.cluster.rig", "build"]
        with self._log.open("wb") as out:
            self._process = tied.popen(
                command,
                number=signal.SIGTERM,
                cwd=REPOSITORY,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def succeeds(self) -> bool:
        """Wait for the end of it; whether all was built."""
        return self._process.wait() == 0

    def finish(self) -> Result:
        """Wait for the end of it, and show the end of what it said."""
        started = time.monotonic()
        print("\n== waiting for Kubernetes' binaries and the images", flush=True)
        code = self._process.wait()
        print("".join(self._log.read_text(errors="replace").splitlines(keepends=True)[-40:]), flush=True)
        return Result("build (rest of it)", code, time.monotonic() - started)

    def stop(self) -> None:
        """End it, if it still runs."""
        self._process.terminate()
        end(self._process)


def run_all(tiers: list[str], runner: Runner, build: Build | None, arguments: argparse.Namespace) -> None:
    """All lanes. When the build fails, what needs it is left out."""
    aside = len(tiers) > 1

    def run(*names: str, aside: bool = False) -> None:
        for name in names:
            if name in tiers:
                runner.run(name, tier_command(name, arguments.all, arguments.pytest.split()), aside=aside)

    def numerics() -> None:
        run("numerics", aside=aside)

    def small() -> None:
        if arguments.checks:
            runner.run(CHECKS, ["make", "--keep-going", "lint", "verify"], aside=aside)
        run("unit", aside=aside)
        if build is not None and build.succeeds():
            run("contract", aside=aside)

    with runner.beside(numerics), runner.beside(small):
        if build is not None:
            runner.results.append(build.finish())
            if runner.results[-1].code == 0:
                run(*GO_FIRST)


def main() -> int:
    """Exit status 0 when every part passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiers", nargs="*", choices=[*TIERS, []], help="default: all")
    parser.add_argument("--all", action="store_true", help="also the tests that are marked exhaustive")
    parser.add_argument("--checks", action="store_true", help="also `make lint verify`, beside the numerics")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    arguments = parser.parse_args()
    tiers = [tier for tier in TIERS if tier in (arguments.tiers or TIERS)]
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends what it started
    with scratch_folder() as folder:
        runner, build = Runner(folder), None
        if set(tiers) & set(NEED_THE_RIG):
            if os.geteuid() != 0:
                raise SystemExit("the cluster tiers need root, for network namespaces; run one of: unit numerics")
            build = Build(folder)
        try:
            run_all(tiers, runner, build, arguments)
        finally:
            runner.stop()
            if build is not None:
                build.stop()
    print(f"\n{'tier':<20} {'result':<8} {'seconds':>8}")
    for result in runner.results:
        print(f"{result.name:<20} {'ok' if result.code == 0 else 'FAILED':<8} {result.seconds:>8.0f}")
    failures = sum(result.code != 0 for result in runner.results)
    print(f"{len(runner.results) - failures} passed, {failures} failed in {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Run every tier of the tests with all its set-up: `make test`, or `python -m tests.run_tiers unit numerics`.

Kubernetes' binaries and the images take minutes to build the first time. That work runs beside the tiers that need none
of it, at a lower priority. The numerics run beside the tiers of small tests; what it prints comes when it has ended.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests import tied
from tests.scratch import scratch_folder

REPOSITORY = Path(__file__).resolve().parents[1]
TIERS = ("unit", "numerics", "contract", "apiserver", "cluster")
NEED_THE_RIG = ("contract", "apiserver", "cluster")
# Tests of what happens within seconds: nothing else may run meanwhile.
NEED_QUIET = ("apiserver", "cluster")
# These mostly wait for Kubernetes' controllers: two processes, each with an API server of its own and whole files of tests.
IN_PROCESSES = {"apiserver": ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]}


def start_build(log: Path) -> subprocess.Popen[bytes]:
    """Build what the cluster tiers need, in the background."""
    command = ["nice", "-n", "10", sys.executable, "-m", "tests.cluster.rig", "build"]
    with log.open("wb") as out:
        return tied.popen(
            command,
            number=signal.SIGTERM,
            cwd=REPOSITORY,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )


class Tier:
    """One tier's pytest, from its start on. log: where its output goes until it has ended; at once without it."""

    def __init__(self, name: str, extra: list[str], log: Path | None = None) -> None:
        self.name = name
        self._log = log
        self._started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-m", name, *IN_PROCESSES.get(name, ()), *extra]
        if log is None:
            print(f"\n== {name}", flush=True)
            self._process = tied.popen(command, number=signal.SIGTERM, cwd=REPOSITORY)
        else:
            with log.open("wb") as out:
                self._process = tied.popen(
                    command, number=signal.SIGTERM, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT
                )

    def result(self) -> tuple[str, int, float]:
        """Name, pytest's exit status and the seconds it took. Exit status 5, no test, is a failure like any other."""
        code = self._process.wait()
        seconds = time.monotonic() - self._started
        if self._log is not None:
            print(f"\n== {self.name}", self._log.read_text(errors="replace"), sep="\n", flush=True)
        return self.name, code, seconds

    def stop(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


def main() -> int:
    """Exit status 0 when every tier passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiers", nargs="*", choices=[*TIERS, []], help="default: all")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    arguments = parser.parse_args()
    tiers = [tier for tier in TIERS if tier in (arguments.tiers or TIERS)]
    build = None
    results: list[tuple[str, int, float]] = []
    with scratch_folder() as folder:
        log = folder / "build.log"
        beside: Tier | None = None
        if set(tiers) & set(NEED_THE_RIG):
            if os.geteuid() != 0:
                raise SystemExit("the cluster tiers need root, for network namespaces; run one of: unit numerics")
            build = start_build(log)
        try:
            if "numerics" in tiers and len(tiers) > 1:
                beside = Tier("numerics", arguments.pytest.split(), folder / "numerics.log")
                tiers.remove("numerics")
            for tier in tiers:
                if beside is not None and tier in NEED_QUIET:
                    results.append(beside.result())
                    beside = None
                if build is not None and tier in NEED_THE_RIG:
                    started = time.monotonic()
                    print("\n== waiting for Kubernetes' binaries and the images", flush=True)
                    failed = build.wait()
                    print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-40:]), flush=True)
                    results.append(("build (rest of it)", failed, time.monotonic() - started))
                    build = None
                    if failed:
                        break
                results.append(Tier(tier, arguments.pytest.split()).result())
            if beside is not None:
                results.append(beside.result())
                beside = None
        finally:
            if beside is not None:
                beside.stop()
            if build is not None:
                build.terminate()
                build.wait()
    print(f"\n{'tier':<20} {'result':<8} {'seconds':>8}")
    for name, code, seconds in results:
        print(f"{name:<20} {'ok' if code == 0 else 'FAILED':<8} {seconds:>8.0f}")
    failures = sum(code != 0 for _, code, _ in results)
    print(f"{len(results) - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

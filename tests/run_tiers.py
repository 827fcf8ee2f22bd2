"""Run every tier of the tests with all its set-up: `make test`, or `python -m tests.run_tiers unit numerics`.

Kubernetes' binaries and the images take minutes to build the first time. That work runs beside the tiers that need none
of it, at a lower priority.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
TIERS = ("unit", "numerics", "contract", "apiserver", "cluster")
NEED_THE_RIG = ("contract", "apiserver", "cluster")


def start_build(log: Path) -> subprocess.Popen[bytes]:
    """Build what the cluster tiers need, in the background."""
    command = ["nice", "-n", "10", sys.executable, "-m", "tests.cluster.rig", "build"]
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def run_tier(tier: str, extra: list[str]) -> tuple[int, float]:
    """pytest's exit status and the seconds it took. Exit status 5, no test, is a failure like any other."""
    print(f"\n== {tier}", flush=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", "pytest", "-m", tier, *extra], cwd=REPOSITORY, check=False).returncode
    return code, time.monotonic() - started


def main() -> int:
    """Exit status 0 when every tier passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiers", nargs="*", choices=[*TIERS, []], help="default: all")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    arguments = parser.parse_args()
    tiers = [tier for tier in TIERS if tier in (arguments.tiers or TIERS)]
    build = None
    results: list[tuple[str, int, float]] = []
    with tempfile.TemporaryDirectory(prefix="dpo-tiers-") as folder:
        log = Path(folder) / "build.log"
        if set(tiers) & set(NEED_THE_RIG):
            if os.geteuid() != 0:
                raise SystemExit("the cluster tiers need root, for network namespaces; run one of: unit numerics")
            build = start_build(log)
        try:
            for tier in tiers:
                if build is not None and tier in NEED_THE_RIG:
                    started = time.monotonic()
                    print("\n== waiting for Kubernetes' binaries and the images", flush=True)
                    failed = build.wait()
                    print("".join(log.read_text(errors="replace").splitlines(keepends=True)[-40:]), flush=True)
                    results.append(("build (rest of it)", failed, time.monotonic() - started))
                    build = None
                    if failed:
                        break
                results.append((tier, *run_tier(tier, arguments.pytest.split())))
        finally:
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

"""Check a GPU in a few minutes: `make bench-gpu`, or `python -m benchmarks.gpu facts attention`.

Parts run in processes of their own, in the order of what they are worth, until the time is over. Each line says PASS or FAIL, the number and its
limit. Nothing is downloaded: weights and tokens are random, lengths are those of HH-RLHF pairs. `--device cpu --tiny` runs every part in a test.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.gpu.checks import Setting
from benchmarks.gpu.parts import PARTS
from tests import tied


def run_here(name: str, setting: Setting) -> None:
    """Run a part in this process; a line of JSON for each finding."""
    began = time.monotonic()
    for check in PARTS[name](setting):
        print(check.line(), flush=True)
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)


def run_apart(name: str, setting: Setting, seconds: float) -> list[dict[str, Any]]:
    """Run a part in a process of its own; its findings, and one that failed when it did not end well."""
    where = ["--device", setting.device, "--folder", setting.folder, *(["--tiny"] if setting.tiny else [])]
    command = [sys.executable, "-m", "benchmarks.gpu", name, "--here", *where]
    error = ""
    try:
        done = tied.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        output = done.stdout
        if done.returncode:
            error = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired as late:
        output, error = (late.stdout or b"").decode(), f"not finished in {seconds:.0f} s"
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if error:
        found.append({"part": name, "name": "ended", "value": error, "limit": None, "passed": False})
    return found


def table(found: list[dict[str, Any]]) -> Table:
    """The findings for people."""
    made = Table("part", "check", "number", "limit", "")
    for check in found:
        value, limit = check["value"], check["limit"]
        shown = value if isinstance(value, str) else f"{value:.4g}"
        bound = "" if limit is None else f"{'≥' if check.get('least') else '≤'} {limit:g}"
        made.add_row(check["part"], check["name"], shown, bound, "PASS" if check["passed"] else "FAIL")
    return made


def main() -> None:
    """Run the parts; fails when a check does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "all", []], default="all", help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test")
    parser.add_argument("--seconds", type=float, default=420.0, help="for all parts together")
    parser.add_argument("--out", type=Path, help="folder for gpu.json")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    named = [options.parts] if isinstance(options.parts, str) else options.parts
    names = [name for name in PARTS if name in named or "all" in named]
    if options.here:
        run_here(names[0], Setting(options.device, options.tiny, options.folder))
        return
    end, found = time.monotonic() + options.seconds, []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if (left := end - time.monotonic()) > 0:
                found += run_apart(name, Setting(options.device, options.tiny, folder), left)
            else:
                found.append({"part": name, "name": "ended", "value": "no time left", "limit": None, "passed": False})
    Console(width=140).print(table(found))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1))
    if not all(check["passed"] for check in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

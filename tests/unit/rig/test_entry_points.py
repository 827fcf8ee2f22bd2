"""Whatever starts the rig installs the Debian packages that it needs, and what make starts ends with make.

Each entry point really runs, on a machine that has none of the packages: in mounts of its own, with their commands removed.
An `apt-get` there writes down how it is called, and puts commands in place that write down their name and fail. So an entry
point ends as soon as it uses a package, and an entry point without its set-up ends because a command is missing.
"""

import ast
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer

from tests import tied
from tests.cluster.rig.__main__ import app
from tests.cluster.rig.layout import CHECKOUT, STATE_VARIABLE
from tests.cluster.rig.packages import CLUSTER, COMPILER, CONTROL_PLANE
from tests.run_tiers import end

pytestmark = pytest.mark.unit

NOTHING: dict[str, str] = {}
RIG = "tests.cluster.rig.__main__"
ALONE = ["-q", "-n", "0", "-p", "no:cacheprovider", "-x", "--tb=line"]
# Commands of the rig, and what they need.
COMMANDS = {
    "up": CLUSTER,
    "images": CLUSTER,
    "build": CLUSTER,
    # These ask for a cluster that runs, and booting it has installed the packages.
    "down": NOTHING,
    "status": NOTHING,
    "kubeconfig": NOTHING,
    "volumes": NOTHING,
}
# Modules that can be run and that reach the rig: arguments, and what they need.
MODULES = {
    "tests.cluster.demo": ([], CLUSTER),
    "tests.run_tiers": (["contract"], CLUSTER),
    "benchmarks.operator": ([], CONTROL_PLANE),
    "benchmarks.operator_scale": (["--jobs", "100"], CONTROL_PLANE),
    "tests.campaign.__main__": (["--engine", "real", "--minutes", "1"], CONTROL_PLANE),
    "benchmarks.recovery": (["--inputs", "."], CLUSTER),
}
# Tests that use the rig by its fixtures. tests.faults runs such tests, too.
TESTS = {
    "tests/apiserver/test_crd_refusals.py": CONTROL_PLANE,
    "tests/cluster/test_training.py": CLUSTER,
    "tests/cluster/campaign/test_fault_ranks.py": CLUSTER,
}
# Tests that only take a program from the rig that it builds with Go, which needs no package.
BUILT_ONLY = {"tests/contract/stores"}


def main_modules() -> set[str]:
    """Modules of the tests and the benchmarks that can be run."""
    found = set()
    for top in ("tests", "benchmarks"):
        for file in (CHECKOUT / top).rglob("*.py"):
            if file.name == "__main__.py" or 'if __name__ == "__main__"' in file.read_text():
                found.add(".".join(file.relative_to(CHECKOUT).with_suffix("").parts))
    return found


@cache
def reaches_the_rig(module: str) -> bool:
    """Whether a module is part of the rig, imports it, or names it to a process that it starts, directly or not."""
    seen, left = set(), [module]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        file = CHECKOUT.joinpath(*name.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if not file.is_file():
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                left += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
            elif isinstance(node, ast.Import):
                left += [each.name for each in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                left += [node.value] if re.fullmatch(r"(tests|benchmarks)(\.\w+)+", node.value) else []
    return any(name.startswith("tests.cluster.rig") for name in seen)


def test_every_entry_point_of_the_rig_is_tried_here():
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == set(COMMANDS)
    # This file only has the words in it.
    assert {name for name in main_modules() if reaches_the_rig(name)} - {
        RIG,
        "tests.unit.rig.test_entry_points",
    } == set(MODULES)
    conftests = {str(file.parent.relative_to(CHECKOUT)) for file in (CHECKOUT / "tests").rglob("conftest.py")}
    with_the_rig = {folder for folder in conftests if reaches_the_rig(f"{folder.replace('/', '.')}.conftest")}
    assert with_the_rig == {str(Path(test).parent) for test in TESTS} | BUILT_ONLY


@dataclass
class NewMachine:
    """A machine without the packages; processes see it from inside their own mounts."""

    folder: Path

    def run(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end there, with an empty cache."""
        (self.folder / "changes").mkdir()
        self.record.touch()
        # go.mod's own programs and Kubernetes' are no packages: the stand-in ends what would build them.
        stubs = {"apt-get": self.apt_get(), "go": self.go()}
        for name, text in stubs.items():
            file = self.folder / name
            file.write_text(text)
            file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        there = [*(CLUSTER | COMPILER), *stubs]
        doomed = [path for name in there for path in ([name] if name.startswith("/") else self.places(name))]
        script = f"""\
mount -t tmpfs none {self.folder}/changes
mkdir {self.folder}/changes/upper {self.folder}/changes/work
mount -t overlay none -o lowerdir=/usr,upperdir={self.folder}/changes/upper,workdir={self.folder}/changes/work /usr
rm -f {shlex.join(doomed)}
cp {self.folder}/apt-get {self.folder}/go /usr/bin/
exec "$@"
"""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "CI"))}
        environment = kept | {
            "PATH": "/usr/bin:/bin",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            STATE_VARIABLE: str(self.folder / "state"),
        }
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", script, "sh", *argv]
        return subprocess.run(
            words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    @property
    def record(self) -> Path:
        return self.folder / "record"

    @property
    def installed(self) -> set[str]:
        """Packages that were installed."""
        lines = [line for line in self.record.read_text().splitlines() if " install " in line]
        return {word for line in lines for word in line.partition(" install ")[2].split() if not word.startswith("-")}

    @staticmethod
    def places(name: str) -> list[str]:
        return [f"/usr/{folder}/{name}" for folder in ("bin", "sbin", "local/bin", "local/sbin")]

    def stub(self, name: str) -> str:
        return f"#!/bin/sh\necho used {name} >> {self.record}\nexit 1\n"

    def go(self) -> str:
        newest = 'if [ "$1" = version ]; then echo go version go99.1 linux/amd64; exit 0; fi'
        return self.stub("go").replace("\n", f"\n{newest}\n", 1)

    def apt_get(self) -> str:
        lines = ["#!/bin/sh", f'echo "apt-get $*" >> {self.record}', 'case "$*" in *" install "*) ;; *) exit 0 ;; esac']
        for name, package in (CLUSTER | COMPILER).items():
            place = name if name.startswith("/") else f"/usr/sbin/{name}"
            body = shlex.quote(self.stub(Path(name).name))
            lines.append(f'case " $* " in *" {package} "*) mkdir -p {Path(place).parent}')
            lines.append(f"printf %s {body} > {place}; chmod +x {place} ;; esac")
        return "\n".join(lines) + "\n"


@pytest.fixture
def machine(tmp_path: Path) -> NewMachine:
    if os.geteuid() != 0:
        pytest.skip("mounts of its own need root")
    return NewMachine(tmp_path)


def sets_up(machine: NewMachine, needs: dict[str, str], *argv: str) -> None:
    done = machine.run(*argv)
    said = done.stdout + done.stderr
    record = machine.record.read_text()
    assert not re.search("no such command|is not there|not found|No such file", said), said[-4000:]
    assert machine.installed == set(needs.values()), said[-4000:]
    if needs:
        assert "used " in record, said[-4000:]
        assert record.startswith("apt-get"), record
    else:
        assert record == "", said[-4000:]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_rig_sets_up_a_new_machine(machine: NewMachine, command: str):
    sets_up(machine, COMMANDS[command], sys.executable, "-m", "tests.cluster.rig", command)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_uses_the_rig_sets_up_a_new_machine(machine: NewMachine, module: str):
    arguments, needs = MODULES[module]
    sets_up(machine, needs, sys.executable, "-m", module, *arguments)


@pytest.mark.parametrize("test", TESTS)
def test_a_test_that_uses_the_rig_sets_up_a_new_machine(machine: NewMachine, test: str):
    sets_up(machine, TESTS[test], sys.executable, "-m", "pytest", *ALONE, test)


def recipes() -> dict[str, list[str]]:
    """The Makefile's targets, and the lines of their recipes."""
    found: dict[str, list[str]] = {}
    for line in (CHECKOUT / "Makefile").read_text().splitlines():
        if target := re.match(r"([a-z-]+):(?!=)", line):
            found[target[1]] = []
        elif line.startswith("\t") and found:
            found[list(found)[-1]].append(line.strip())
    return found


def test_what_a_make_target_starts_ends_with_make():
    started = [
        line for lines in recipes().values() for line in lines if re.search(r"-m (tests|benchmarks)|dpo run", line)
    ]
    assert len(started) > 10
    assert [line for line in started if not line.startswith("@$(TIED) $(BIN)/")] == []


def test_tests_and_benchmarks_start_processes_that_end_with_them():
    """A process that is started by subprocess itself would outlive its killed parent."""
    own = {"tests/tied.py", "tests/cluster/rig/processes.py", "tests/cluster/rig/usage.py"}
    found = set()
    for top in ("tests", "benchmarks"):
        for file in (CHECKOUT / top).rglob("*.py"):
            if "subprocess.Popen(" in file.read_text().replace('"subprocess.Popen("', ""):
                found.add(str(file.relative_to(CHECKOUT)))
    assert found == own


def test_a_tier_that_takes_no_notice_of_the_signal_is_killed():
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    process = tied.popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    end(process, 0.2)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL

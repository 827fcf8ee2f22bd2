"""Processes of `dpo run`: how they are started, which variables they get, and how they end together."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dpo_operator.api import exitcodes, names
from dpo_operator.api.phases import FIRST, Step
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.cli.attempts import Ending
from dpo_operator.cli.localfolder import LocalRunError
from dpo_operator.cli.parent import signal_at_parents_end

# Prints which of these packages a Python lacks.
_NEEDED = ("vllm", "dpo_trainer")
_LOOK = f"import importlib.util as u; print(*(name for name in {_NEEDED} if u.find_spec(name) is None))"


@dataclass
class Processes:
    """Processes of one run.

    claims: folder whose subfolders stand for the claims of pvc:// sources. look: called again and again while processes run. stopping: whether
    the user has asked for the end of the run.
    """

    work: Path
    spec: DPOJobSpec
    claims: Path
    metrics_port: int
    look: Callable[[], None] = lambda: None
    stopping: bool = False
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, commands: list[tuple[list[str], dict[str, str]]], step: Step, attempt: int) -> Ending:
        """Run processes until all have ended; the first failure ends the others and is the result."""
        # Without this process nobody can stop them; SIGTERM makes a training save its state first, as Ctrl-C does.
        setup = signal_at_parents_end(signal.SIGTERM)
        self._running = [
            subprocess.Popen(argv, env=env, start_new_session=True, preexec_fn=setup) for argv, env in commands
        ]
        first = 0
        if self.stopping:  # the signal came between two phases
            self.end()
        while any(p.poll() is None for p in self._running):
            failed = next((p.returncode for p in self._running if p.returncode), 0)
            if failed and not first:
                first = failed
                # Peers usually exit by themselves with a message; SIGTERM is for those that don't.
                deadline = time.monotonic() + 20
            if first and time.monotonic() > deadline:
                self.end()
                deadline = time.monotonic() + 60
            self.look()
            time.sleep(0.1)
        codes = [128 - p.returncode if p.returncode < 0 else p.returncode for p in self._running if p.returncode]
        self._running = []
        if not codes:
            return Ending(step.phase, attempt)
        least = min(exitcodes.echo(code) for code in codes)
        primary = [code for code in codes if exitcodes.echo(code) == least]
        code = 128 - first if first < 0 else first
        code = code if code in primary else primary[0]
        return Ending.read(self.work, step.phase, attempt, code, step.folder)

    def command(self, *words: str, python: str = sys.executable) -> list[str]:
        """argv of the trainer. words: the subcommand and its own options. python: that runs it."""
        return [
            python, "-m", "dpo_trainer", *words,
            "--job-file", str(self.work / "job.json"), "--work-dir", str(self.work),
        ]  # fmt: skip

    def generator(self, attempt: int, node: int, port: int, step: Step) -> tuple[list[str], dict[str, str]]:
        """A launcher of generators. Raises LocalRunError as generate_python does."""
        python, more = generate_python(self.spec, os.environ)
        processes = {"PET_NPROC_PER_NODE": str(self.spec.generators_per_node)}
        environment = self.environment(attempt, node, port, step) | processes | more
        return self.command("launch", "--phase", "generate", python=python), environment

    def environment(
        self, attempt: int, node: int = 0, port: int = names.MASTER_PORT, step: Step = FIRST
    ) -> dict[str, str]:
        """The variables that the operator would set, for one launcher. step: whose round or leg it is of."""
        spec = self.spec
        environment = dict(os.environ)
        environment.update(
            {
                names.ENV_JOB_FILE: str(self.work / "job.json"),
                names.ENV_WORK_DIR: str(self.work),
                names.ENV_ATTEMPT: str(attempt),
                names.ENV_ROUND: str(step.round),
                names.ENV_LEG: str(step.leg),
                # Only the first launcher has rank 0, whose metrics count; the others take any free port.
                names.ENV_METRICS_PORT: str(self.metrics_port if node == 0 else 0),
                names.ENV_CLAIMS_DIR: str(self.claims),
                "DPO_BIND_ADDRESS": "127.0.0.1",
                "PET_NNODES": str(spec.nodes),
                "PET_NPROC_PER_NODE": str(spec.processes_per_node),
                "PET_NODE_RANK": str(node),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
        )
        environment.pop(names.ENV_TERMINATION_LOG, None)
        environment.update({variable.name: variable.value for variable in spec.pod.env})
        if spec.nodes > 1 and spec.gpus_per_node and "CUDA_VISIBLE_DEVICES" not in os.environ and _gpus():
            # Each "node" of this machine gets its own GPUs.
            mine = range(node * spec.gpus_per_node, (node + 1) * spec.gpus_per_node)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu) for gpu in mine)
        return environment

    def end(self) -> None:
        """Ask those that run to end. For signal handlers, too."""
        for process in self._running:
            if process.poll() is None:
                process.terminate()


def generate_python(spec: DPOJobSpec, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The Python that generates, and variables for it. Raises LocalRunError where the job's engine is not there."""
    if not spec.generates_with_vllm:
        return sys.executable, {}
    python = environment.get(names.ENV_GENERATE_PYTHON) or sys.executable
    # The packages beside this one; not a whole environment, whose libraries would hide those of the other Python.
    homes = [
        path
        for path in map(_home, ("dpo_operator", "dpo_trainer"))
        if path.name not in ("site-packages", "dist-packages")
    ]
    there = environment.get("PYTHONPATH", "")
    paths = dict.fromkeys([*map(str, homes), *filter(None, there.split(os.pathsep))])
    more = {"PYTHONPATH": os.pathsep.join(paths)} if python != sys.executable else {}
    try:
        done = subprocess.run(
            [python, "-c", _LOOK], env={**environment, **more}, stdout=subprocess.PIPE, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise LocalRunError(f"{names.ENV_GENERATE_PYTHON}: {python} is no Python that works: {error}") from error
    if missing := done.stdout.split():
        raise LocalRunError(
            f"spec.iterative.generation.engine: vllm needs {' and '.join(missing)}, which {python} does not find. Set {names.ENV_GENERATE_PYTHON} to the "
            "Python of an environment that has it (docs/rounds.md), or use engine transformers"
        )
    return python, more


def _home(package: str) -> Path:
    """Folder that a package lies in."""
    found = importlib.util.find_spec(package)
    return Path(found.origin).parents[1] if found is not None and found.origin is not None else Path()


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _gpus() -> int:
    """NVIDIA GPUs of this machine, counted without CUDA."""
    return len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()])

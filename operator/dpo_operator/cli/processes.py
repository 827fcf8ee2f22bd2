"""Processes of `dpo run`: how they are started, which variables they get, and how they end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dpo_operator.api import exitcodes, names
from dpo_operator.api.phases import FIRST, Step
from dpo_operator.api.types import DPOJobSpec
from dpo_operator.cli.attempts import Ending
from dpo_operator.cli.parent import signal_at_parents_end


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

    def command(self, *words: str) -> list[str]:
        """argv of the trainer. words: the subcommand and its own options."""
        return [
            sys.executable, "-m", "dpo_trainer", *words,
            "--job-file", str(self.work / "job.json"), "--work-dir", str(self.work),
        ]  # fmt: skip

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


def free_port() -> int:
    """A port of the loopback interface that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _gpus() -> int:
    """NVIDIA GPUs of this machine, counted without CUDA."""
    return len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()])

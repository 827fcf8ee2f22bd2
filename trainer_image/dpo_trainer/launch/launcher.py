"""What a training pod runs: one `train` process for each local rank, and one answer for the pod.

A stand-in for torchrun with its variables (PET_*), without its import of torch, its fixed 30 s after SIGTERM and its
exit status of 1 for everything; docs/decisions/0001-own-launcher.md says why. This process needs the standard library
alone until it has to write a message.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_operator.api import names
from dpo_operator.api.exitcodes import ExitCode, info
from dpo_trainer.launch.stacks import ENV_STACKS_FILE, Stacks
from dpo_trainer.launch.supervisor import Gang, Patience, exit_code
from dpo_trainer.runtime.devices import has_gpu
from dpo_trainer.runtime.workdir import WorkDir

if TYPE_CHECKING:
    from dpo_operator.api.reports import Termination


# Activations of megabytes come and go in every step. glibc would give each back to the system, and the next one would begin with a page fault for
# every 4 KiB: a sixth of the time of a small model, for 1 to 5% less memory.
KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": "268435456"}


@dataclass(frozen=True)
class World:
    """Where this pod is among the others, from torchrun's PET_* variables."""

    nodes: int
    processes: int
    node_rank: int
    master_address: str
    master_port: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "World":
        """Raises ValueError with the variable's name."""

        def number(name: str, default: int, least: int) -> int:
            text = environment.get(name, str(default))
            if not text.isdecimal() or int(text) < least:
                raise ValueError(f"{name}: expected a number from {least}, found {text!r}")
            return int(text)

        world = cls(
            nodes=number("PET_NNODES", 1, 1),
            processes=number("PET_NPROC_PER_NODE", 1, 1),
            node_rank=number("PET_NODE_RANK", 0, 0),
            master_address=environment.get("PET_MASTER_ADDR", "127.0.0.1"),
            master_port=environment.get("PET_MASTER_PORT", str(names.MASTER_PORT)),
        )
        if world.node_rank >= world.nodes:
            raise ValueError(f"PET_NODE_RANK: expected less than PET_NNODES ({world.nodes}), found {world.node_rank}")
        return world

    def variables(self, local_rank: int, environment: Mapping[str, str], *, cores: int) -> dict[str, str]:
        """What torchrun would set for a rank, and what glibc does with memory that a step frees on a CPU.

        cores: that this pod may use; 0 when nothing limits it. Then a rank gets one thread, as under torchrun: pods
        that share a node's cores and each start a thread for every core wait for one another most of the time.
        """
        made = {
            "RANK": str(self.rank(local_rank)),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.nodes * self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "GROUP_RANK": str(self.node_rank),
            "GROUP_WORLD_SIZE": str(self.nodes),
            "ROLE_RANK": str(self.rank(local_rank)),
            "ROLE_WORLD_SIZE": str(self.nodes * self.processes),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": self.master_port,
        }
        if not has_gpu(environment) and not any(name.startswith("MALLOC_") for name in environment):
            made |= KEEP_FREED
        if "OMP_NUM_THREADS" not in environment:
            made["OMP_NUM_THREADS"] = str(max(1, cores // self.processes))
        return made

    def rank(self, local_rank: int) -> int:
        """Rank among all processes."""
        return self.node_rank * self.processes + local_rank


def run(job_file: Path, work_dir: Path, command: Sequence[str] | None = None, patience: Patience | None = None) -> int:
    """Run this pod's ranks; returns the pod's exit code and leaves its termination message.

    command: argv of a rank, default `python -m dpo_trainer train`.
    """
    try:
        world = World.from_environment(os.environ)
    except ValueError as error:
        _leave(work_dir, _words(ExitCode.INVALID_CONFIGURATION, str(error), 0))
        return ExitCode.INVALID_CONFIGURATION
    command = command or [
        sys.executable, "-m", "dpo_trainer", "train", "--job-file", str(job_file), "--work-dir", str(work_dir),
    ]  # fmt: skip
    words = Path(tempfile.mkdtemp(prefix="dpo-words-"))
    try:
        cores = cpu_limit(Path("/sys/fs/cgroup"))
        ranks = {local_rank: world.rank(local_rank) for local_rank in range(world.processes)}
        stacks = Stacks(words, WorkDir(work_dir), _attempt(), ranks, _say)
        environments = [
            {
                **os.environ,
                **world.variables(local_rank, os.environ, cores=cores),
                names.ENV_TERMINATION_LOG: str(words / str(local_rank)),
                ENV_STACKS_FILE: str(stacks.file(local_rank)),
            }
            for local_rank in range(world.processes)
        ]
        gang = Gang(command, environments, _say, stacks, patience or Patience())
        try:
            gang.run()
        except OSError as error:  # no memory or no process number for another rank; those that run end with this one
            _leave(work_dir, _words(ExitCode.INTERNAL_ERROR, f"the ranks could not be started: {error}", world.rank(0)))
            return ExitCode.INTERNAL_ERROR
        return _finish(gang, world, words, work_dir)
    finally:
        shutil.rmtree(words, ignore_errors=True)


def cpu_limit(groups: Path) -> int:
    """Whole cores of this container's CPU limit, from its control group (version 2, then 1); 0 without a limit."""
    for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (groups / quota_file).read_text().split()
            quota, period = words[0], words[1] if period_file is None else (groups / period_file).read_text().strip()
        except (OSError, IndexError):
            continue
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            return max(1, int(quota) // int(period))
    return 0


def _finish(gang: Gang, world: World, words: Path, work_dir: Path) -> int:
    """Choose the pod's last words and exit code."""
    local_rank = gang.culprit or 0
    code = exit_code(gang.codes[local_rank])
    said = _read(words / str(local_rank))
    if said is None or said.exit_code != code:
        rank = world.rank(local_rank)
        said = _words(code, _silent_end(rank, gang.codes[local_rank]), rank)
        # Where the run was is known to any rank.
        others = (_read(words / str(other)) for other in sorted(gang.codes))
        said.progress = next((other.progress for other in others if other and other.progress), None)
    _leave(work_dir, said)
    if code:
        ends = ", ".join(f"{world.rank(r)}: {exit_code(c)}" for r, c in sorted(gang.codes.items()))
        _say(f"launch: exit codes by rank: {ends}; this pod's is {code} ({info(code).reason})")
    return code


def _silent_end(rank: int, code: int) -> str:
    """A sentence for a rank that left no message."""
    if code == -signal.SIGKILL:
        return f"rank {rank} was killed by SIGKILL (out of memory, or killed on the node)"
    if code < 0:
        return f"rank {rank} was killed by {signal.Signals(-code).name}"
    return f"rank {rank} ended with exit code {code} and left no message" if code else ""


def _words(code: int, message: str, rank: int) -> "Termination":
    from dpo_trainer.runtime import termination as outcome

    if message:
        _say(f"launch: {message}")
    return outcome.termination("train", _attempt(), code, message, rank=rank)


def _leave(work_dir: Path, words: "Termination") -> None:
    from dpo_trainer.runtime import termination as outcome

    outcome.write_termination(outcome.termination_log(work_dir, "train", _attempt()), words)


def _read(path: Path) -> "Termination | None":
    from dpo_operator.api.reports import Termination

    try:
        return Termination.from_text(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def _attempt() -> int:
    text = os.environ.get(names.ENV_ATTEMPT, "1")
    return int(text) if text.isdecimal() and int(text) > 0 else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

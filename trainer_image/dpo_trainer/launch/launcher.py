"""What a training pod runs: one `train` process for each local rank, and one exit code for the pod.

A pod of generators runs one `generate` process for each GPU in the same way, without a rendezvous.

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
from dpo_operator.api.names import Phase
from dpo_trainer.launch.stacks import ENV_STACKS_FILE, Stacks
from dpo_trainer.launch.supervisor import GracePeriods, Supervisor, exit_code
from dpo_trainer.runtime.devices import ALLOCATOR_NAMES, EXPANDABLE, has_gpu
from dpo_trainer.runtime.workdir import WorkDir

if TYPE_CHECKING:
    from dpo_operator.api.reports import Termination

# Each step allocates and frees activations of megabytes. glibc would return them to the system, and the next one would begin with a
# page fault for every 4 KiB: a sixth of the time of a small model, for 1 to 5% less memory.
KEEP_FREED = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": "268435456"}


@dataclass(frozen=True)
class PodWorld:
    """This pod's place among the pods of the job, from torchrun's PET_* variables."""

    nodes: int
    processes: int
    node_rank: int
    master_address: str
    master_port: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "PodWorld":
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
        """Environment variables of a rank: those of torchrun, and settings of memory: on CPUs of glibc, on GPUs of torch.

        cores: number that this pod may use; 0 without a limit. Then a rank on CPUs gets one thread, as under torchrun: pods
        that share a node's cores and each start a thread for every core wait for one another most of the time. A rank with a GPU gets
        its share of the cores, since its CPU work is short, or an optimizer step over offloaded state that takes all of them.
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
        gpu = has_gpu(environment)
        if gpu and not environment.keys() & ALLOCATOR_NAMES:
            made |= EXPANDABLE
        if not gpu and not any(name.startswith("MALLOC_") for name in environment):
            made |= KEEP_FREED
        if gpu and not cores:
            cores = len(os.sched_getaffinity(0))
        if "OMP_NUM_THREADS" not in environment:
            made["OMP_NUM_THREADS"] = str(max(1, cores // self.processes))
        return made

    def rank(self, local_rank: int) -> int:
        """Rank among all processes."""
        return self.node_rank * self.processes + local_rank


def run(
    job_file: Path,
    work_dir: Path,
    command: Sequence[str] | None = None,
    grace: GracePeriods | None = None,
    *,
    phase: Phase = "train",
) -> int:
    """Run this pod's ranks; writes the pod's termination message and returns its exit code.

    command: argv of a rank, default `python -m dpo_trainer` with the phase. grace: default GracePeriods().
    """
    end = _End(work_dir, phase)
    try:
        world = PodWorld.from_environment(os.environ)
    except ValueError as error:
        end.write(end.termination(ExitCode.INVALID_CONFIGURATION, str(error), 0))
        return ExitCode.INVALID_CONFIGURATION
    command = command or [
        sys.executable, "-m", "dpo_trainer", phase, "--job-file", str(job_file), "--work-dir", str(work_dir),
    ]  # fmt: skip
    messages = Path(tempfile.mkdtemp(prefix="dpo-launch-"))
    try:
        cores = cpu_limit(Path("/sys/fs/cgroup"))
        ranks = {local_rank: world.rank(local_rank) for local_rank in range(world.processes)}
        stacks = Stacks(messages, WorkDir(work_dir), _attempt(), ranks, _say)
        recorder = flight_recorder(os.environ, world.nodes * world.processes, stacks) if phase == "train" else {}
        if recorder:
            stacks.make_folder()
        environments = [
            {
                **os.environ,
                **world.variables(local_rank, os.environ, cores=cores),
                names.ENV_TERMINATION_LOG: str(messages / str(local_rank)),
                ENV_STACKS_FILE: str(stacks.file(local_rank)),
                **recorder,
            }
            for local_rank in range(world.processes)
        ]
        supervisor = Supervisor(command, environments, _say, stacks, grace or GracePeriods())
        try:
            supervisor.run()
        except OSError as error:  # no memory or no process number for another rank; running ranks end with this process
            message = f"the ranks could not be started: {error}"
            end.write(end.termination(ExitCode.INTERNAL_ERROR, message, world.rank(0)))
            return ExitCode.INTERNAL_ERROR
        return _finish(supervisor, world, messages, end)
    finally:
        shutil.rmtree(messages, ignore_errors=True)


def flight_recorder(environment: Mapping[str, str], world_size: int, stacks: Stacks) -> dict[str, str]:
    """Variables by which NCCL's watchdog writes its last collectives beside the ranks' stacks before it aborts a rank; empty without NCCL.

    The files, nccl-0 for rank 0 and so on, are pickles for torch's own analyzer (`torchfrtrace`). Older versions of torch know the TORCH_NCCL names,
    newer ones both.
    """
    if world_size == 1 or not has_gpu(environment):
        return {}
    prefix = str(stacks.work.root / stacks.where() / "nccl-")
    wanted = {
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1", "TORCH_FR_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000", "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": prefix, "TORCH_FR_DUMP_TEMP_FILE": prefix,
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if name not in environment}


def cpu_limit(groups: Path) -> int:
    """Whole cores of this container's CPU limit, from its control group (version 2, then 1); 0 without a limit."""
    for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            fields = (groups / quota_file).read_text().split()
            quota, period = fields[0], fields[1] if period_file is None else (groups / period_file).read_text().strip()
        except (OSError, IndexError):
            continue
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            return max(1, int(quota) // int(period))
    return 0


def _finish(supervisor: Supervisor, world: PodWorld, messages: Path, end: "_End") -> int:
    """Write the pod's termination message and return its exit code. messages: folder of the ranks' termination messages."""
    local_rank = supervisor.primary_failure or 0
    code = exit_code(supervisor.codes[local_rank])
    termination = _read(messages / str(local_rank))
    if termination is None or termination.exit_code != code:
        rank = world.rank(local_rank)
        several = world.nodes * world.processes > 1
        termination = end.termination(code, _describe_exit(rank, supervisor.codes[local_rank], several=several), rank)
        # Progress is the same on every rank, so any rank's will do.
        others = (_read(messages / str(other)) for other in sorted(supervisor.codes))
        termination.progress = next((other.progress for other in others if other and other.progress), None)
    end.write(termination)
    if code:
        ends = ", ".join(f"{world.rank(r)}: {exit_code(c)}" for r, c in sorted(supervisor.codes.items()))
        _say(f"launch: exit codes by rank: {ends}; this pod's is {code} ({info(code).reason})")
    return code


def _describe_exit(rank: int, code: int, *, several: bool) -> str:
    """Message for a rank that wrote no termination message. code: negative is a signal. several: it has peers. Empty for code 0."""
    if code == -signal.SIGKILL:
        return f"rank {rank} was killed by SIGKILL (out of memory, or killed on the node)"
    if -code in (signal.SIGABRT, signal.SIGSEGV) and several:
        name = signal.Signals(-code).name
        return (
            f"rank {rank} was aborted ({name}): on GPUs usually by NCCL's watchdog, because another rank was lost or did not come to a "
            "collective; the log has NCCL's message"
        )
    if code < 0:
        return f"rank {rank} was killed by {signal.Signals(-code).name}"
    return f"rank {rank} ended with exit code {code} and left no message" if code else ""


@dataclass(frozen=True)
class _End:
    """Writes the termination message of the pod's phase."""

    work_dir: Path
    phase: Phase

    def termination(self, code: int, message: str, rank: int) -> "Termination":
        from dpo_trainer.runtime.termination import build_termination

        if message:
            _say(f"launch: {message}")
        return build_termination(self.phase, _attempt(), code, message, rank=rank)

    def write(self, termination: "Termination") -> None:
        from dpo_trainer.runtime.termination import termination_log, write_termination

        write_termination(termination_log(self.work_dir, self.phase, _attempt()), termination)


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

"""The launcher with real processes: the exit code of the pod, when ranks are ended, and the termination message."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_operator.api.exitcodes import ExitCode
from dpo_trainer.launch.launcher import KEEP_FREED, PodWorld, cpu_limit, flight_recorder
from dpo_trainer.launch.stacks import Stacks
from dpo_trainer.launch.supervisor import GracePeriods, Supervisor
from dpo_trainer.runtime.devices import EXPANDABLE
from dpo_trainer.runtime.workdir import WorkDir
from tests.unit.trainer.launched import Pod, wait_for

pytestmark = pytest.mark.unit


def test_ranks_get_torchruns_variables(tmp_path: Path, started: list[Pod]):
    script = """
    keys = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    (out / f"env-{rank}").write_text(json.dumps({k: os.environ[k] for k in keys}))
    assert int(os.environ["OMP_NUM_THREADS"]) >= 1
    leave(0)
    """
    pod = Pod(
        tmp_path, script, 2, PET_NNODES="3", PET_NODE_RANK="2", PET_MASTER_ADDR="first.example", PET_MASTER_PORT="1234"
    )
    started.append(pod)
    code, _, termination = pod.wait()

    assert (code, termination.outcome) == (0, "Succeeded")
    assert json.loads((tmp_path / "env-1").read_text()) == {
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "2",
        "MASTER_ADDR": "first.example", "MASTER_PORT": "1234",
    }  # fmt: skip


@pytest.mark.parametrize("code", [1, 74, *(pytest.param(c, marks=pytest.mark.exhaustive) for c in (65, 70, 78, 255))])
def test_the_pod_reports_the_failed_ranks_exit_code_and_message(tmp_path: Path, started: list[Pod], code: int):
    pod = Pod(tmp_path, f"others()\nleave({code}, 'the cause') if rank == 1 else time.sleep(60)", 2)
    started.append(pod)
    found, said, termination = pod.wait()

    assert found == code
    assert (termination.exit_code, termination.message, termination.rank) == (code, "the cause", 1)
    assert f"this pod's is {code}" in said


def test_the_launcher_writes_the_termination_of_a_killed_rank(tmp_path: Path, started: list[Pod]):
    pod = Pod(tmp_path, "others()\nos.kill(os.getpid(), 9) if rank == 3 else time.sleep(60)", 4)
    started.append(pod)
    code, _, termination = pod.wait()

    assert code == 137
    assert (termination.exit_code, termination.reason, termination.rank) == (137, "Killed", 3)
    assert termination.message == "rank 3 was killed by SIGKILL (out of memory, or killed on the node)"


@pytest.mark.parametrize("first", ["cause", "echo"])
def test_a_lost_peer_never_hides_the_cause(tmp_path: Path, started: list[Pod], first: str):
    cause, echo = (0.0, 0.3) if first == "cause" else (0.3, 0.0)
    script = f"""
    others()
    if rank == 0:
        time.sleep({echo}); leave(75, "lost")
    time.sleep({cause}); leave(65, "bad rows")
    """
    pod = Pod(tmp_path, script, 2)
    started.append(pod)
    code, _, termination = pod.wait()

    assert (code, termination.message) == (65, "bad rows")


@pytest.mark.parametrize("first", ["cause", "abort"])
def test_a_rank_that_aborts_is_not_blamed_for_its_peer(tmp_path: Path, started: list[Pod], first: str):
    cause, abort = (0.0, 0.3) if first == "cause" else (0.3, 0.0)
    script = f"""
    others()
    if rank == 0:
        time.sleep({abort}); os.abort()
    time.sleep({cause}); leave(70, "the cause")
    """
    pod = Pod(tmp_path, script, 2)
    started.append(pod)
    code, _, termination = pod.wait()

    assert (code, termination.message, termination.rank) == (70, "the cause", 1)


def test_a_rank_that_aborts_alone_says_what_that_means(tmp_path: Path, started: list[Pod]):
    pod = Pod(tmp_path, "others()\nos.abort() if rank == 1 else time.sleep(60)", 2)
    started.append(pod)
    code, _, termination = pod.wait()

    assert (code, termination.rank) == (134, 1)
    assert termination.message.startswith("rank 1 was aborted (SIGABRT): on GPUs usually by NCCL's watchdog")


def test_nccl_records_its_last_collectives_beside_the_stacks(tmp_path: Path, started: list[Pod]):
    script = """
    keys = [k for k in os.environ if k.startswith("TORCH_NCCL") or k.startswith("TORCH_FR")]
    (out / f"env-{rank}").write_text(json.dumps({k: os.environ[k] for k in keys}))
    leave(0)
    """
    pod = Pod(tmp_path, script, 2, NVIDIA_VISIBLE_DEVICES="all", TORCH_NCCL_TRACE_BUFFER_SIZE="7")
    started.append(pod)
    pod.wait()

    found = json.loads((tmp_path / "env-1").read_text())
    assert found["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == str(tmp_path / "stacks" / "attempt-1" / "nccl-")
    assert found["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert found["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "7"
    assert (tmp_path / "stacks" / "attempt-1").is_dir()
    work = WorkDir(tmp_path)
    assert flight_recorder({}, 2, Stacks(tmp_path, work, 1, {0: 0}, print)) == {}


def test_killing_a_sibling_that_ignores_sigterm_keeps_the_exit_code(tmp_path: Path, started: list[Pod]):
    script = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    others()
    leave(74, "full") if rank == 0 else time.sleep(60)
    """
    pod = Pod(tmp_path, script, 2)
    started.append(pod)
    begin = time.monotonic()
    code, said, termination = pod.wait()

    assert (code, termination.message) == (74, "full")
    assert "do not end; killing them" in said
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_the_save_however_long_and_exits_143(tmp_path: Path, started: list[Pod], number: int):
    script = """
    import faulthandler; faulthandler.register(signal.SIGUSR1)
    def save(*_):
        time.sleep(3) # longer than any of the launcher's grace periods in this test
        (out / f"saved-{rank}").touch()
        leave(143, "saved")
    signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)
    others()
    time.sleep(60)
    """
    pod = Pod(tmp_path, script, 2)
    started.append(pod)
    wait_for(lambda: len(list(tmp_path.glob("here-*"))) == 2)
    pod.process.send_signal(number)
    code, said, termination = pod.wait()

    assert (code, termination.outcome, termination.message) == (143, "Stopped", "saved")
    assert len(list(tmp_path.glob("saved-*"))) == 2
    # The stacks were dumped during the save, so a hung save would show its place.
    assert "rank.py" in said
    assert "in save" in said


def test_the_launcher_itself_imports_no_torch():
    body = "import sys, dpo_trainer.launch.launcher; print(sorted({'torch', 'pydantic', 'numpy', 'transformers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "[]"


def test_orphans_of_ranks_are_reaped(tmp_path: Path, started: list[Pod]):
    script = """
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.3); (out / "orphan").touch(); os._exit(9)
        os._exit(0)
    os.wait(); others(); time.sleep(1.5); leave(0)
    """
    pod = Pod(tmp_path, script, 1)
    started.append(pod)
    wait_for(lambda: (tmp_path / "orphan").exists())
    time.sleep(0.3)
    children = Path(f"/proc/{pod.process.pid}/task/{pod.process.pid}/children").read_text().split()

    assert len(children) == 1  # the rank alone: the orphan came here and is gone
    assert pod.wait()[0] == 0


def test_ranks_do_not_outlive_a_killed_launcher(tmp_path: Path, started: list[Pod]):
    pod = Pod(tmp_path, "(out / 'pid').write_text(str(os.getpid())); others(); time.sleep(60)", 1)
    started.append(pod)
    wait_for(lambda: (tmp_path / "here-0").exists())
    rank = int((tmp_path / "pid").read_text())
    pod.process.kill()
    pod.process.wait()
    wait_for(lambda: gone(rank))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_hung_ranks_end_after_the_end_of_the_launchers_parent(tmp_path: Path, started: list[Pod]):
    """The launcher gets SIGTERM as its parent is killed; no other process is left to kill ranks that ignore the signal."""
    parent = (
        "import signal, subprocess, sys\n"
        "from dpo_operator.cli.parent import signal_at_parents_end\n"
        "subprocess.run(sys.argv[1:], preexec_fn=signal_at_parents_end(signal.SIGTERM))"
    )
    script = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    others()
    time.sleep(60)
    """
    pod = Pod(tmp_path, script, 2, under=[sys.executable, "-c", parent])
    started.append(pod)
    wait_for(lambda: len(list(tmp_path.glob("here-*"))) == 2)
    ranks = [int((tmp_path / f"pid-{rank}").read_text()) for rank in range(2)]
    pod.process.kill()
    pod.process.wait()
    wait_for(lambda: all(gone(rank) for rank in ranks), 20)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PET_NNODES": "two"}, "PET_NNODES: expected a number from 1, found 'two'"),
        ({"PET_NPROC_PER_NODE": "0"}, "PET_NPROC_PER_NODE: expected a number from 1, found '0'"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "2"}, "PET_NODE_RANK: expected less than PET_NNODES (2), found 2"),
    ],
)
def test_wrong_variables_are_named(tmp_path: Path, started: list[Pod], environment: dict[str, str], message: str):
    pod = Pod(tmp_path, "leave(0)", 1, **environment)
    started.append(pod)
    code, _, termination = pod.wait()

    assert (code, termination.message) == (ExitCode.INVALID_CONFIGURATION, message)


def test_threads_are_shared_among_the_ranks_unless_set():
    world = PodWorld(nodes=1, processes=4, node_rank=0, master_address="m", master_port="1")

    assert world.variables(0, {}, cores=10)["OMP_NUM_THREADS"] == "2"
    assert world.variables(0, {}, cores=2)["OMP_NUM_THREADS"] == "1"
    assert world.variables(0, {}, cores=0)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in world.variables(0, {"OMP_NUM_THREADS": "7"}, cores=10)


def test_on_cpus_freed_memory_is_kept_unless_something_else_is_set():
    world = PodWorld(nodes=1, processes=1, node_rank=0, master_address="m", master_port="1")

    def allocator(**environment: str) -> dict[str, str]:
        return {k: v for k, v in world.variables(0, environment, cores=1).items() if k.startswith("MALLOC_")}

    assert allocator() == KEEP_FREED
    assert allocator(MALLOC_ARENA_MAX="1") == {}
    assert allocator(NVIDIA_VISIBLE_DEVICES="all") == {}


def test_gpus_get_segments_that_grow_and_their_share_of_cores():
    world = PodWorld(nodes=1, processes=2, node_rank=0, master_address="m", master_port="1")

    def made(**environment: str) -> dict[str, str]:
        return world.variables(0, {"NVIDIA_VISIBLE_DEVICES": "all", **environment}, cores=0)

    assert made().items() >= EXPANDABLE.items()
    assert "PYTORCH_ALLOC_CONF" not in made(PYTORCH_CUDA_ALLOC_CONF="max_split_size_mb:512")
    assert "PYTORCH_ALLOC_CONF" not in world.variables(0, {}, cores=0)
    assert made()["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) // 2))


def test_a_rank_that_stops_alone_takes_the_others_with_it(tmp_path: Path):
    script = "import os, time; os._exit(143) if os.environ['R'] == '0' else time.sleep(60)"
    environments = [{**os.environ, "R": str(rank)} for rank in range(2)]
    stacks = Stacks(tmp_path, WorkDir(tmp_path), 1, {0: 0, 1: 1}, print)
    grace = GracePeriods(together=0.5, end=1.0)
    supervisor = Supervisor([sys.executable, "-c", script], environments, print, stacks, grace)
    supervisor.run()

    assert supervisor.codes == {0: 143, 1: -signal.SIGTERM}
    assert supervisor.primary_failure == 0


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 0),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0),
        ({"cpu.max": "nonsense"}, 0),
        ({}, 0),
    ],
)
def test_cpu_limit_is_read_from_the_control_group(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == cores

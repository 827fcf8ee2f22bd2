"""What the rig reads from the kernel's files."""

import os
from pathlib import Path

import pytest

from tests.cluster.rig.cgroups import Group, Hierarchies, parse_mountinfo
from tests.cluster.rig.layout import Layout, locked
from tests.cluster.rig.processes import Process, parse_start_time, recorded, spawn, start_time_of, stop
from tests.cluster.rig.remains import group_of
from tests.cluster.rig.shell import FatalError, RigError, run, wait_for

pytestmark = pytest.mark.unit

V1 = """\
24 1 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/pids rw shared:3 - cgroup cgroup rw,pids
27 24 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
28 24 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
"""
V2 = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n31 1 0:27 / /proc rw - proc proc rw\n"


def test_each_v1_tree_counts_once_and_an_idle_v2_tree_not_at_all():
    found = parse_mountinfo(V1)
    names = ["cpu,cpuacct", "pids", "systemd"]
    assert found.trees == tuple(Path("/sys/fs/cgroup", name) for name in names)
    assert found.tracking == Path("/sys/fs/cgroup/pids")


def test_v2_is_one_tree():
    assert parse_mountinfo(V2) == Hierarchies({}, Path("/sys/fs/cgroup"))
    assert parse_mountinfo(V2).trees == (Path("/sys/fs/cgroup"),)


def test_a_machine_without_control_groups_is_refused():
    with pytest.raises(RigError, match="no control groups"):
        _ = parse_mountinfo("").trees


def stat(name: str, state: str = "S") -> str:
    return f"42 ({name}) {state} " + " ".join(str(number) for number in range(1, 50))


@pytest.mark.parametrize("name", ["sh", "a b", "odd) S 1 (2"])
def test_the_start_time_is_found_behind_any_name(name):
    assert parse_start_time(stat(name)) == 19


@pytest.mark.parametrize("text", [stat("sh", "Z"), stat("sh", "X"), ""])
def test_the_dead_have_no_start_time(text):
    assert parse_start_time(text) is None


def test_a_reused_process_id_is_not_the_recorded_process():
    started = start_time_of(os.getpid())
    assert started is not None
    assert Process("self", os.getpid(), started, ()).alive
    assert not Process("self", os.getpid(), started - 1, ()).alive


def test_a_spawned_process_is_recorded_and_ended(tmp_path):
    process = spawn("sleeper", ["sleep", "1000"], records=tmp_path / "records", log=tmp_path / "log")
    assert recorded(tmp_path / "records") == [process]
    assert process.alive
    stop([process])
    assert not process.alive


def test_a_half_written_record_is_passed_over(tmp_path):
    (tmp_path / "broken.json").write_text('{"name": "x"')
    assert recorded(tmp_path) == []


def test_the_same_name_elsewhere_is_another_cluster():
    here, there = Layout("dev", Path("/a/dev")), Layout("dev", Path("/b/dev"))
    assert group_of(here) != group_of(there)
    assert group_of(here) == group_of(Layout("dev", Path("/a/dev")))
    assert group_of(here).child("n1") == Group(group_of(here).path + "/n1")


def test_a_second_user_is_told_that_a_cluster_is_busy(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(RigError, match="busy"), locked(tmp_path / "lock", busy="busy"):
        pass
    with locked(tmp_path / "lock", busy="busy"):
        pass


def test_a_failed_command_says_what_it_printed():
    with pytest.raises(RigError, match=r"(?s)exit status 3.*the reason"):
        run(["sh", "-c", "echo the reason >&2; exit 3"])


def test_waiting_ends_with_an_answer_a_fatal_error_or_the_time():
    answers = iter([None, 0, "yes"])
    assert wait_for("an answer", lambda: next(answers), timeout=5, every=0) == "yes"

    def fail(error: RigError) -> str:
        raise error

    with pytest.raises(RigError, match="last answer: not yet"):
        wait_for("nothing", lambda: fail(RigError("not yet")), timeout=0.05, every=0.01)
    with pytest.raises(FatalError, match="never"):
        wait_for("nothing", lambda: fail(FatalError("never")), timeout=60)
